"""Figures of a training run as they come, in an experiment tracker: TensorBoard, MLflow, Weights & Biases or Trackio.

Thin: where a tracker keeps its runs, and whether it sends them anywhere, is what its own environment variables say, but
Weights & Biases is offline unless `WANDB_MODE` says otherwise. Without them everything stays on this machine.
"""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from alignvl_cli.artifacts import read_json, write_json
from alignvl_cli.errors import UsageError
from alignvl_cli.report.artifacts import flat
from alignvl_cli.settings import ReportTo
from alignvl_cli.training.run_folder import TRACKER

if TYPE_CHECKING:
    from alignvl_cli.training import state as records

PROJECT = "alignvl"
"""What the runs are filed under where `MLFLOW_EXPERIMENT_NAME`, `WANDB_PROJECT` or `TRACKIO_PROJECT` name nothing."""
TENSORBOARD = "tensorboard"
"""Folder in the run's that TensorBoard's event files are in."""
TRAIN_FIGURES = ("loss", "hard_loss", "tau", "lr", "skipped", "pairs_per_s")


class Tracker(ABC):
    """Logs the records of one run; use as a context manager.

    `id` is what the tracker calls the run: it goes into the run's folder, so that a run that is resumed goes on there.
    Steps that are trained again after an interruption are logged again (TensorBoard hides the first ones). The pairs of
    an ensemble follow each other, step after step."""

    id = ""

    @abstractmethod
    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Figures by name, of one step."""

    def warn(self, text: str, step: int) -> None:  # noqa: B027 - for those that have a place for text
        """A sentence that the user should read; trackers without a place for text leave it out."""

    @abstractmethod
    def close(self, finished: bool) -> None:
        """Nothing more comes; `finished` unless the run was interrupted."""

    def __init__(self) -> None:
        self._finished = False
        self._before = 0
        """Steps of the pairs that were trained before this one."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(self._finished)

    def show(self, record: "records.Record") -> None:
        """Log one record; only steps, validations and warnings have something to log."""
        from alignvl_cli.training import state as records

        if isinstance(record, records.Step):
            self.log(
                {f"train/{name}": float(getattr(record, name)) for name in TRAIN_FIGURES}, self._before + record.step
            )
        elif isinstance(record, records.Validated):
            figures = {f"validation/{name}": float(value) for name, value in flat(record.metrics, "/")}
            self.log(figures, self._before + record.step)
        elif isinstance(record, records.Warned):
            self.warn(record.text, self._before + record.step)
        elif isinstance(record, records.Member):
            self._before = record.steps_before
        elif isinstance(record, records.Finished):
            self._finished = True


class TensorBoard(Tracker):
    """Event files in the run's folder."""

    def __init__(self, run: Path, settings: Mapping[str, Any], known: str) -> None:
        super().__init__()
        self._folder = run / TENSORBOARD
        self._writer: Any = None

    def _at(self, step: int) -> Any:
        """The writer, which hides what was logged of its first step and later ones before."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        return self._writer

    def log(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self._at(step).add_scalar(name, value, step)

    def warn(self, text: str, step: int) -> None:
        self._at(step).add_text("warning", text, step)

    def close(self, finished: bool) -> None:
        if self._writer is not None:
            self._writer.close()


class MLflow(Tracker):
    """A run of the experiment, in the store that MLflow is set up for (`MLFLOW_TRACKING_URI`; `mlflow.db` here)."""

    def __init__(self, run: Path, settings: Mapping[str, Any], known: str) -> None:
        super().__init__()
        import mlflow

        self._client = mlflow.MlflowClient()
        if known:
            self.id = known
            self._client.update_run(known, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        home = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self.id = self._client.create_run(home, run_name=run.name).info.run_id
        for key, value in settings.items():
            self._client.log_param(self.id, key, value)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self._client.log_metric(self.id, re.sub(r"[^\w. :/-]", "-", name), value, step=step)  # no "R@1"

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self.id, status="FINISHED" if finished else "KILLED")


class WeightsAndBiases(Tracker):
    """A run in `WANDB_DIR` (default: `wandb` here) for `wandb sync` to send; sent at once if `WANDB_MODE` says so."""

    def __init__(self, run: Path, settings: Mapping[str, Any], known: str) -> None:
        super().__init__()
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=known or None,
            resume="allow" if known and os.environ.get("WANDB_MODE") == "online" else None,
            mode=None if "WANDB_MODE" in os.environ else "offline",
            config=dict(settings),
            settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True),
        )
        self.id = self._run.id

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log(dict(figures), step=step)

    def warn(self, text: str, step: int) -> None:
        self._run.alert("alignvl", text)

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class Trackio(Tracker):
    """A run in the local database (`TRACKIO_DIR`); on the Hub only where `TRACKIO_SPACE_ID` says so."""

    def __init__(self, run: Path, settings: Mapping[str, Any], known: str) -> None:
        super().__init__()
        import trackio

        with redirect_stdout(StringIO()):  # stdout is for results
            self._run = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", PROJECT),
                name=known or run.name,
                resume="allow" if known else "never",
                config=dict(settings),
                auto_log_gpu=False,
                embed=False,
            )
        self.id = self._run.name

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log(dict(figures), step=step)

    def close(self, finished: bool) -> None:
        with redirect_stdout(StringIO()):  # stdout is for results
            self._run.finish()


TRACKERS: dict[ReportTo, type[Tracker]] = {
    ReportTo.tensorboard: TensorBoard,
    ReportTo.mlflow: MLflow,
    ReportTo.wandb: WeightsAndBiases,
    ReportTo.trackio: Trackio,
}


def require_tracker(to: ReportTo) -> None:
    """UsageError, saying what to install, without the tracker's package."""
    if find_spec(to.value) is None:
        package = '"alignvl[tensorboard]"' if to is ReportTo.tensorboard else to.value
        raise UsageError(f"--report-to {to.value} needs the package: pip install {package} (or leave the flag out)")


def note_tracker(to: ReportTo, run: Path) -> None:
    """Keep in the run folder `run` where its figures go, however early it is interrupted."""
    if not (run / TRACKER).is_file():
        write_json(run / TRACKER, {"report_to": to.value, "id": ""})


def open_tracker(to: ReportTo, run: Path, settings: Mapping[str, Any] | None = None) -> Tracker:
    """The tracker of the run folder `run`, where it was logged before if it was; a new run's `settings` are told to it.

    UsageError without the tracker's package."""
    require_tracker(to)
    note_tracker(to, run)
    kind: Any = TRACKERS[to]
    tracker: Tracker = kind(run, settings or {}, read_json(run / TRACKER, "tracker")["id"])
    write_json(run / TRACKER, {"report_to": to.value, "id": tracker.id})
    return tracker


def tracker_of(run: Path) -> ReportTo | None:
    """Where the figures of the run folder `run` were going when it was interrupted."""
    if (run / TRACKER).is_file():
        return ReportTo(read_json(run / TRACKER, "tracker")["report_to"])
    return ReportTo.tensorboard if (run / TENSORBOARD).is_dir() else None  # runs of version 0.1.0
