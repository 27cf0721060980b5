"""What every command shares: where results and messages go, and the workspace."""

import os
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignvl_cli.cli.workspace import Workspace

if TYPE_CHECKING:
    from rich.console import Console

PIPED_WIDTH = 140
"""Columns of a table that goes to a file or a pipe: nothing is wrapped there by the size of some window."""


def say_what_fits() -> None:
    """Characters that a stream cannot encode (`LANG=C`, a Windows code page) are written as escapes, not refused; what
    is said into a closed one is lost, and lands in no file that is opened later."""
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115 - for as long as we are
        elif name != "stdin" and hasattr(stream, "reconfigure"):  # not one that somebody put there
            with suppress(OSError):  # of a stream that has been put on another file, and wants to seek in that
                stream.reconfigure(errors="backslashreplace")


@dataclass
class Session:
    """The outside of one command: stdout for the result alone, stderr for everything else."""

    workspace: Workspace
    quiet: bool = False

    def __post_init__(self) -> None:
        self.workspace = replace(self.workspace, warn=self.warn)

    @cached_property
    def is_main(self) -> bool:
        """Whether this process is the one that speaks and claims places: `torchrun` starts several."""
        from alignvl_cli.distributed import ranks_here

        return ranks_here().is_main

    @cached_property
    def out(self) -> "Console":
        """The console of the result."""
        piped = not sys.stdout.isatty()
        return _console(width=PIPED_WIDTH if piped and "COLUMNS" not in os.environ else None, highlight=False)

    @cached_property
    def err(self) -> "Console":
        """The console of progress, summaries and warnings."""
        piped = not sys.stderr.isatty()
        return _console(stderr=True, highlight=False, soft_wrap=piped)

    def newest_run(self) -> Path:
        """The workspace's newest run, said on stderr: the user named none."""
        path = self.workspace.newest_run()
        self.note(f"using the newest run, {path}")
        return path

    def result(self, line: str | Path) -> None:
        """Print the one line that scripts read: never wrapped, styled or shortened."""
        if self.is_main:
            print(line, flush=True)

    def document(self, value: Any) -> None:
        """Print the result as JSON, in which no character acts on a terminal."""
        from alignvl_cli.report.text import json_text

        self.result(json_text(value))

    def show(self, renderable: Any, *, is_whole: bool = False) -> None:
        """Print the result as rich renders it; `is_whole` leaves lines that are too long to the terminal."""
        self.out.print(renderable, soft_wrap=is_whole)

    def note(self, text: str) -> None:
        """Say on stderr what was chosen or done, unless `--quiet`."""
        if self.is_main and not self.quiet:
            self.err.print(_shown(text), style="dim", markup=False)

    def warn(self, text: str) -> None:
        """Say on stderr what may mislead; `--quiet` does not silence it."""
        self.err.print(f"warning: {_shown(text)}", style="yellow", markup=False)


def _console(**options: Any) -> "Console":
    """A console that leaves a reader who has gone (`| head`) to the app's error boundary; rich would exit with 1."""
    from rich.console import Console

    class Piped(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return Piped(**options)


def _shown(text: str) -> str:
    from alignvl_cli.report.text import visible_lines

    return visible_lines(text)
