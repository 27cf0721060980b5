"""A training as `alignvl train` shows it while it goes on."""

import shlex
from collections.abc import Generator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from alignvl_cli.commands.session import Session
from alignvl_cli.commands.workspace import MARKS

if TYPE_CHECKING:
    from alignvl_cli.training.records import Record

TENSORBOARD = "tensorboard"
"""Folder in the run's, if its figures are logged for TensorBoard too."""


def show_training(session: Session, run: Path, records: Generator["Record", None, None], *, tensorboard: bool) -> None:
    """Draw the records of `run` as they come, and log them; an interruption learns how to go on."""
    from alignvl_cli.report.tensorboard import TensorBoardLog
    from alignvl_cli.report.training_progress import TrainingProgress
    from alignvl_cli.training.records import Started

    try:
        with closing(records), ExitStack() as open_views:
            show = [open_views.enter_context(TrainingProgress(session.err, quiet=session.quiet)).show]
            for record in records:
                if tensorboard and isinstance(record, Started):
                    log = TensorBoardLog(run / TENSORBOARD, record.first_step)
                    show.append(open_views.enter_context(log).show)
                for view in show:
                    view(record)
    except KeyboardInterrupt as stop:
        if (run / MARKS["run"]).is_file():  # there is something to go on with
            stop.add_note(f"go on with `alignvl train --resume {shlex.quote(str(run))}`")
        raise
