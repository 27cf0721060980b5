"""The Typer app: registers the commands and is the one door through which errors leave.

Importing this module loads none of the heavy libraries; a command's room is imported in its body.
"""

import functools
import inspect
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from alignvl_cli.commands import doctor, eval, extract, index, inspect_, search, train
from alignvl_cli.commands.session import Session
from alignvl_cli.commands.workspace import Workspace
from alignvl_cli.errors import AlignvlError, DataError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SHARED = {
    "workspace": Annotated[
        Path,
        typer.Option(
            envvar="ALIGNVL_WORKSPACE", help="Folder of artefacts without an explicit path.", show_default=True
        ),
    ],
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes; warnings stay.")],
    "verbose": Annotated[bool, typer.Option("--verbose", "-v", help="Tracebacks with errors.")],
}
SHARED_DEFAULTS = {"workspace": Path("alignvl-workspace"), "quiet": False, "verbose": False}


class Terminated(KeyboardInterrupt):
    """SIGTERM: unwinds like Ctrl-C, so that what is resumable stays so, and leaves with 143."""


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise Terminated


def register(function: Callable[..., None], name: str) -> None:
    """Add `function(session, ...)` as a command: its own options, the shared ones, and the error boundary."""

    @functools.wraps(function)
    def command(*, workspace: Path, quiet: bool, verbose: bool, **arguments: Any) -> None:
        with _sigterm_unwinds():
            code = leave_with(lambda: function(Session(Workspace(workspace), quiet, verbose), **arguments), verbose)
        raise typer.Exit(code)

    own = list(inspect.signature(function).parameters.values())[1:]
    shared = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=SHARED_DEFAULTS[key], annotation=kind)
        for key, kind in SHARED.items()
    ]
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own] + shared
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del command.__wrapped__  # type: ignore[attr-defined]
    app.command(name)(command)


def leave_with(work: Callable[[], None], verbose: bool) -> int:
    """Run `work`, turn whatever leaves it into one message on stderr, and return the exit code."""
    try:
        work()
        sys.stdout.flush()
    except AlignvlError as problem:
        return _failed(str(problem), problem.exit_code, verbose)
    except Terminated:
        return _failed("terminated; run the same command again to go on", 143, verbose)
    except KeyboardInterrupt:
        return _failed("interrupted; run the same command again to go on", 130, verbose)
    except BrokenPipeError:  # the reader of our stdout has gone (`| head`): nothing to say, nobody to hear it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as problem:
        where = f"{problem.filename}: " if problem.filename else ""
        return _failed(f"{where}{problem.strerror or problem}", DataError.exit_code, verbose)
    except Exception as problem:
        hint = "" if verbose else " Run it again with --verbose for the traceback."
        return _failed(
            f"this is a bug in alignvl: {type(problem).__name__}: {problem}.{hint}"
            " Please report it with the traceback and what `alignvl doctor` prints.",
            1,
            verbose,
        )
    return 0


def _failed(message: str, code: int, verbose: bool) -> int:
    """Say `message`, unwrapped so that it can be searched for, and with `--verbose` where it came from."""
    if verbose:
        traceback.print_exc()
    typer.secho(f"alignvl: {message}", err=True, fg="red")
    return code


class _sigterm_unwinds:
    """While a command runs, SIGTERM raises Terminated; afterwards the former handler is back."""

    def __enter__(self) -> None:
        self.former = signal.signal(signal.SIGTERM, _terminate)

    def __exit__(self, *unwinding: object) -> None:
        signal.signal(signal.SIGTERM, self.former)


def _print_version(wanted: bool) -> None:
    if wanted:
        from alignvl_cli.provenance import alignvl_version

        print(f"alignvl {alignvl_version()}")
        raise typer.Exit()


@app.callback()
def alignvl(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Align two frozen encoders, a vision model and a text model, and find out what helped.

    In an empty folder, on the built-in demo: [bold]alignvl extract[/], then [bold]alignvl train[/], then
    [bold]alignvl eval[/] and [bold]alignvl search "red heart"[/]. Each takes up where the last one left off.
    """


register(extract.extract, "extract")
register(train.train, "train")
register(eval.eval_, "eval")
register(index.index, "index")
register(search.search, "search")
register(inspect_.inspect_, "inspect")
register(doctor.doctor, "doctor")
