"""The live display of a study: runs done, the last one, and the time left."""

import json
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.text import Text

from alignvl_cli.ablation import run
from alignvl_cli.report.amounts import counted, roughly
from alignvl_cli.report.progress import Display
from alignvl_cli.report.text import safe


class StudyProgress(Display):
    """Takes a study's events; `verdicts` is there after the last."""

    def __init__(self, console: Console, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console, quiet=quiet)
        self._handlers = {run.Begun: self._begun, run.RunMade: self._made, run.Finished: lambda _: None}
        self._clock = clock
        self._since = 0.0
        self._new = 0
        self.verdicts: dict[str, Any] = {}
        """As in `verdicts.json`."""

    def show(self, event: run.Event) -> None:
        if isinstance(event, run.Finished):
            self.verdicts = json.loads(json.dumps(event.verdicts.to_json()))
        self._show(event)

    def _begun(self, begun: run.Begun) -> None:
        self._since = self._clock()
        reused = f", {begun.reused:,} of them finished before" if begun.reused else ""
        threads = counted(begun.threads, "thread")
        how = f"; {begun.processes} at a time on {begun.device}, {threads} each" if begun.reused < begun.runs else ""
        self._say(f"{begun.runs:,} runs{reused}{how}")
        if self._bar and begun.reused < begun.runs:
            self._bar.update("runs", begun.reused, begun.runs, Text(""))

    def _made(self, event: run.RunMade) -> None:
        self._new += 1
        made = event.made
        left = (self._clock() - self._since) / self._new * (event.runs - event.done)
        what = f"{made.arm}, seed {made.seed}: "
        what += f"mean recall {made.mean_recall:.2f}" if made.failure is None else f"failed: {made.failure}"
        what += f" ({roughly(made.seconds)})"
        for warning in made.warnings:
            self._say(f"{made.arm}, seed {made.seed}: {warning}", "yellow")
        ahead = f", about {roughly(left)} left" if event.done < event.runs else ""
        if self._bar:
            self._bar.update("runs", event.done, event.runs, safe(what + ahead))
            if made.failure is not None:
                self._say(what)
        else:
            self._say(f"{event.done:,}/{event.runs:,} {what}{ahead}")
