"""The Typer app: registers the commands and is the one door through which errors leave.

Importing this module loads none of the heavy libraries; a command's room is imported in its body.
"""

import errno
import functools
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from alignvl_cli.cli import (
    ablate,
    classify,
    copy,
    data,
    doctor,
    eval,
    export,
    extract,
    index,
    map,
    probe,
    report,
    search,
    serve,
    train,
)
from alignvl_cli.cli import inspect as inspect_
from alignvl_cli.cli import store as exchange
from alignvl_cli.cli.console import Session, say_what_fits
from alignvl_cli.cli.interrupts import AGAIN, Terminated, signals_unwind, swallowed_stop
from alignvl_cli.cli.options import arguments_of, options_of
from alignvl_cli.cli.workspace import Workspace
from alignvl_cli.errors import AlignvlError, DataError, UsageError
from alignvl_cli.settings import CommonSettings

_LOOK: dict[str, Any] = {
    "no_args_is_help": True,
    "add_help_option": False,  # ours below: Typer converts the value of its own, and loads pydantic for that
    "add_completion": False,
    "rich_markup_mode": None,  # rich's help costs more time than the rest of `--help` together
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 110},
}
app = typer.Typer(**_LOOK)
data_app = typer.Typer(**_LOOK)
app.add_typer(data_app, name="data")
store_app = typer.Typer(**_LOOK)
app.add_typer(store_app, name="store")

RUST_ERROR = re.compile(r"\(os error (\d+)\)")
"""How libraries written in Rust, safetensors and tokenizers, tell of the operating system's errors."""
FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
"""A disk, a file or a quota that takes no more."""

COMMON = inspect.Parameter("common", inspect.Parameter.KEYWORD_ONLY, annotation=CommonSettings)


class SectionedHelp(TyperCommand):
    """Plain help, with the options under the headings that their `rich_help_panel` names."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        if given.get("help"):  # before Typer loads what it converts values with, which takes as long as all the rest
            typer.echo(ctx.get_help())
            ctx.exit()
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as problem:
            problem.message = problem.message.removeprefix("Value error, ")  # pydantic's, and no word for a user
            raise

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
                sections.setdefault(getattr(parameter, "rich_help_panel", None) or kind, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


AFTER_INTERRUPTION = {
    "extract": "run the same command again to resume",
    "ablate": "run the same command again to resume",
}
"""Command -> what the user does next; for the others the same command again is all there is to do. What a command
adds to the exception as a note goes before."""


def register(function: Callable[..., None], name: str, group: typer.Typer = app) -> None:
    """Add `function(session, ...)` to `group`: its own options, the common ones, and the error boundary."""
    own = list(inspect.signature(function).parameters.values())[1:]

    @functools.wraps(function)
    def command(**values: Any) -> None:
        ((_, common),) = arguments_of([COMMON], values)
        say_what_fits()
        with signals_unwind():
            session = Session(Workspace(common.workspace), common.quiet)

            def work() -> None:
                _require_name(values.get("output"))
                _refuse_urls(values)
                function(session, **dict(arguments_of(own, values)))

            code = leave_with(work, common.verbose, AFTER_INTERRUPTION.get(name, AGAIN))
        raise typer.Exit(code)

    parameters = options_of([*own, COMMON])
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del command.__wrapped__
    group.command(name, cls=SectionedHelp)(command)


def _require_name(output: Path | None) -> None:
    """UsageError for an --output that names nothing to make; an empty one, of a variable that is not set, is `.`."""
    if output is not None and not output.name:
        raise UsageError(f"--output: wanted the name of what is to be made, got '{output}'; is a variable in it empty?")


def _refuse_urls(values: dict[str, Any]) -> None:
    """UsageError for a URL where a path is wanted, of which pathlib leaves one slash of two."""
    places = [place for value in values.values() for place in (value if isinstance(value, list) else [value])]
    for place in places:
        if isinstance(place, Path) and (match := re.match(r"(s3|gs|hf|https?):/+", str(place))):
            below = re.split("[?#]", str(place)[match.end() :], maxsplit=1)[0]  # neither user nor query is told
            name = below.rpartition("/")[2] if "/" in below else "NAME"
            url = f"{match[1]}://.../{name}"
            raise UsageError(f"{url}: a URL, where a path is wanted; `alignvl copy URL {name}` brings what is there")


def leave_with(work: Callable[[], None], verbose: bool, next_step: str = AGAIN) -> int:
    """Run `work`, turn whatever leaves it into one message on stderr, and return the exit code."""
    try:
        work()
        sys.stdout.flush()
        if (swallowed := swallowed_stop()) is not None:
            raise swallowed
    except KeyboardInterrupt as stop:
        return _stopped(stop, verbose, next_step)
    except BrokenPipeError:  # the reader of our stdout has gone (`| head`): nothing to say, nobody to hear it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as problem:
        if (swallowed := swallowed_stop()) is not None:  # what a library made of it is no fault of anybody's
            return _stopped(swallowed, verbose, next_step)
        return _failed(*_told(problem, verbose), verbose)
    return 0


def _stopped(stop: KeyboardInterrupt, verbose: bool, next_step: str) -> int:
    word, code = ("terminated", 143) if isinstance(stop, Terminated) else ("interrupted", 130)
    return _failed("; ".join([word, *getattr(stop, "__notes__", [next_step])]), code, verbose)


def _told(problem: Exception, verbose: bool) -> tuple[str, int]:
    """What to say of a failure, and its exit code."""
    if isinstance(problem, AlignvlError):
        return str(problem), problem.exit_code
    from alignvl_cli.cli.doctor import library_that_fails

    if library := library_that_fails(problem):
        what = f"{library} is installed, but does not load ({type(problem).__name__}: {problem})"
        return f"{what}; alignvl doctor says what is wrong and what to do", DataError.exit_code
    if native := RUST_ERROR.search(str(problem)):
        problem = OSError(int(native[1]), os.strerror(int(native[1])))
    if isinstance(problem, OSError):
        is_full = problem.errno in FULL
        place = (is_full and problem.filename2) or problem.filename  # of a copy, where it was going
        where = f"{place}: " if place else ""
        room = "; make room there, or write elsewhere, and run it again" if is_full else ""
        return f"{where}{problem.strerror or problem}{room}", DataError.exit_code
    hint = "" if verbose else " Run it again with --verbose for the traceback."
    what = f"this is a bug in alignvl: {type(problem).__name__}: {problem}.{hint}"
    return f"{what} Please report it with the traceback and what `alignvl doctor` prints.", 1


def _failed(message: str, code: int, verbose: bool) -> int:
    """Say `message`, unwrapped so that it can be searched for, and with `--verbose` where it came from."""
    if verbose:
        traceback.print_exc()
    from alignvl_cli.report.text import visible_lines

    typer.secho(f"alignvl: {visible_lines(message)}", err=True, fg="red")
    return code


def _print_help(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        typer.echo(ctx.get_help())
        raise typer.Exit()


def _print_version(wanted: bool) -> None:
    if wanted:
        from alignvl_cli.artifacts import alignvl_version

        print(f"alignvl {alignvl_version()}")
        raise typer.Exit()


HelpOption = Annotated[
    bool, typer.Option("--help", "-h", callback=_print_help, is_eager=True, help="Show this message and exit.")
]


@app.callback()
def alignvl(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    show_help: HelpOption = False,
) -> None:
    """Align two frozen encoders, a vision model and a text model, and find out what helped.

    In an empty folder, on the built-in demo: alignvl extract, then alignvl train, then alignvl eval
    and alignvl search "red heart" or alignvl serve. Each begins with what the last one made.
    """


@data_app.callback()
def data_(show_help: HelpOption = False) -> None:
    """Look at a dataset before anything is made of it."""


@store_app.callback()
def store_(show_help: HelpOption = False) -> None:
    """Exchange latents with other programs."""


class Shell(StrEnum):
    """What `alignvl completion` prints a script for."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


def completion(
    session: Session, shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="Shell to print it for.")]
) -> None:
    """Print a shell's completion script.

    Keep it where the shell looks:

    \b
    bash  ~/.local/share/bash-completion/completions/alignvl
    zsh   _alignvl in a folder of $fpath, such as ~/.zfunc
    fish  ~/.config/fish/completions/alignvl.fish
    """
    from typer.completion import get_completion_script

    print(get_completion_script(prog_name="alignvl", complete_var="_ALIGNVL_COMPLETE", shell=shell.value).strip())


register(extract.extract, "extract")
register(train.train, "train")
register(eval.eval_, "eval")
register(index.index, "index")
register(search.search, "search")
register(map.map_, "map")
register(serve.serve, "serve")
register(classify.classify, "classify")
register(ablate.ablate, "ablate")
register(report.report, "report")
register(probe.probe, "probe")
register(export.export, "export")
register(copy.copy, "copy")
register(inspect_.inspect_, "inspect")
register(doctor.doctor, "doctor")
register(completion, "completion")
register(data.check, "check", data_app)
register(exchange.export, "export", store_app)
register(exchange.import_, "import", store_app)
