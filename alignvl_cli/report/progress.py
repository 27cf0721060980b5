"""Live displays of the long stages: they take a stage's records and draw on the console of stderr.

In a terminal a bar moves; elsewhere a plain line comes now and then; with `--quiet` nothing does.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from alignvl_cli.report.text import safe
from alignvl_cli.training import records


class _Bar:
    """One bar with a line of text beneath it, redrawn in place and gone when the stage is over."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"), console=console
        )
        self._live = Live(console=console, transient=True)
        self._task: TaskID | None = None

    def update(self, name: str, done: int, total: int, beneath: Text) -> None:
        first = self._task is None
        if self._task is None:
            self._task = self._progress.add_task(name, count="")
            self._live.start()
        self._progress.update(self._task, description=name, completed=done, total=total, count=f"{done:,}/{total:,}")
        self._live.update(Group(self._progress, beneath), refresh=first)

    def stop(self) -> None:
        if self._task is not None:
            self._live.update(Text(""), refresh=True)
            self._live.stop()
            self._task = None


class Display:
    """What both displays share: the three ways to show, and an end that always leaves the terminal in order."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._bar = _Bar(console) if console.is_terminal and not quiet else None
        self._handlers: dict[type, Callable[[Any], None]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def _show(self, record: object) -> None:
        if not self._quiet or isinstance(record, records.Warned):
            self._handlers[type(record)](record)

    def _say(self, line: str, style: str = "") -> None:
        self._console.print(safe(line, style))


def joined(parts: list[str]) -> str:
    return ", ".join(filter(None, parts))
