"""A training run for TensorBoard (`--report-to tensorboard`): event files in the run folder, nothing sent anywhere."""

from pathlib import Path
from types import TracebackType
from typing import Self

from alignvl_cli.errors import UsageError
from alignvl_cli.report.artifacts import flat
from alignvl_cli.training import state as records


class TensorBoardLog:
    """Writes the figures of each record. Use as a context manager."""

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        """Event files in `folder` of what comes after `first_step`; what was logged of later steps before, which are
        done again, is hidden. UsageError when tensorboard is not installed."""
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_step + 1 if first_step else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def show(self, record: records.Record) -> None:
        """Log one record; only steps, validations and warnings have something to log."""
        if isinstance(record, records.Step):
            for name in ("loss", "hard_loss", "tau", "lr", "skipped", "pairs_per_s"):
                self._writer.add_scalar(f"train/{name}", getattr(record, name), record.step)
        elif isinstance(record, records.Validated):
            for name, value in flat(record.metrics, "/"):
                self._writer.add_scalar(f"validation/{name}", float(value), record.step)
        elif isinstance(record, records.Warned):
            self._writer.add_text("warning", record.text, record.step)


def require_tensorboard() -> None:
    """UsageError, saying what to install, without tensorboard."""
    try:
        import tensorboard  # noqa: F401
    except ImportError as problem:
        raise UsageError(
            '--report-to tensorboard needs the package: pip install "alignvl[tensorboard]" (or leave the flag out)'
        ) from problem
