"""Experiment trackers: each one's own reader finds the figures under their steps, and a resumed run goes on there."""

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.command_line import CommandLine
from support.fakes import make_store

from alignvl_cli.errors import UsageError
from alignvl_cli.report.trackers import note_tracker, open_tracker, tracker_of
from alignvl_cli.settings import ReportTo
from alignvl_cli.training import state as records

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader")  # of MLflow's, in SQLAlchemy
METRICS = {"mean_recall": 40.0, "image_to_text": {"R@1": 12.5}}
Figures = list[tuple[int, float]]


def step(number: int, loss: float) -> records.Step:
    return records.Step(step=number, epoch=1, loss=loss, hard_loss=1.0, tau=0.05, lr=1e-3, skipped=0, pairs_per_s=9.0)


def tensorboard_read(run: Path, name: str) -> Figures:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def mlflow_read(run: Path, name: str) -> Figures:
    import mlflow

    client = mlflow.MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("alignvl").experiment_id])
    assert (found.info.run_name, found.data.params, found.info.status) == (run.name, {"lr": "0.001"}, "FINISHED")
    return [(one.step, one.value) for one in client.get_metric_history(found.info.run_id, name.replace("@", "-"))]


def wandb_read(run: Path, name: str) -> Figures:
    from wandb.proto import wandb_internal_pb2

    found = []
    for path in sorted(run.parent.rglob("run-*.wandb")):
        for data in leveldb_records(path.read_bytes()[7:]):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            row = {one.key or ".".join(one.nested_key): json.loads(one.value_json) for one in record.history.item}
            if name in row:
                found.append((row["_step"], row[name]))
    return found


def leveldb_records(log: bytes) -> Iterator[bytes]:
    """LevelDB's log format, which files of Weights & Biases have after 7 bytes that count as part of the first block: a
    record in fragments (checksum, length, whether it ends here), none of them across blocks of 32 KiB."""
    at, whole = 0, b""
    while at + 7 <= len(log):
        if (left := 32768 - (at + 7) % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", log, at + 4)
        whole += log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last fragment
            yield whole
            whole = b""


def trackio_read(run: Path, name: str) -> Figures:
    from trackio.sqlite_storage import SQLiteStorage

    rows = SQLiteStorage.get_logs("alignvl", run.name)
    return [(row["step"], row[name]) for row in rows if name in row]


READERS = {
    ReportTo.tensorboard: tensorboard_read,
    ReportTo.mlflow: mlflow_read,
    ReportTo.wandb: wandb_read,
    ReportTo.trackio: trackio_read,
}


@pytest.fixture(params=ReportTo)
def tracked(request, tmp_path, monkeypatch):
    """A tracker whose package is there, keeping all it has below the test's folder; and a run's folder."""
    pytest.importorskip(request.param.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    if request.param is ReportTo.trackio:
        for module in [name for name in sys.modules if name.split(".")[0] == "trackio"]:  # reads it when it is imported
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    run = tmp_path / "0001-alignvl-s0"
    run.mkdir()
    yield request.param, run
    if request.param is ReportTo.wandb:
        sys.modules["wandb"].teardown()  # its service process remembers where it wrote


def test_figures_stand_under_their_steps(tracked, capsys):
    to, run = tracked
    with open_tracker(to, run, {"lr": 1e-3}) as tracker:
        tracker.show(step(5, 2.5))
        tracker.show(step(10, 1.5))
        tracker.show(records.Validated(step=10, epoch=1, metrics=METRICS, best=True))
        tracker.show(records.Warned(step=10, text="tau has reached its bound"))
        tracker.show(records.Finished(result={}))
    assert capsys.readouterr().out == ""  # stdout is for results
    assert READERS[to](run, "train/loss") == [(5, 2.5), (10, 1.5)]
    assert READERS[to](run, "validation/mean_recall") == [(10, 40.0)]
    assert READERS[to](run, "validation/image_to_text/R@1") == [(10, 12.5)]


def test_a_run_that_is_resumed_goes_on_where_it_was_logged(tracked):
    to, run = tracked
    with open_tracker(to, run, {"lr": 1e-3}) as tracker:
        tracker.show(step(5, 2.5))
    assert tracker_of(run) is to
    with open_tracker(to, run) as again:
        again.show(step(10, 1.5))
        again.show(records.Finished(result={}))
    assert again.id == tracker.id
    assert READERS[to](run, "train/loss") == [(5, 2.5), (10, 1.5)]


def test_tensorboard_hides_steps_that_are_done_again(tmp_path):
    pytest.importorskip("tensorboard")
    with open_tracker(ReportTo.tensorboard, tmp_path) as tracker:
        tracker.show(step(5, 2.5))
        tracker.show(step(10, 99.0))
    with open_tracker(ReportTo.tensorboard, tmp_path) as tracker:
        tracker.show(step(10, 1.5))
    assert tensorboard_read(tmp_path, "train/loss") == [(5, 2.5), (10, 1.5)]


def member(number):
    before = 300 * (number - 1)
    return records.Member(number=number, of=2, settings={}, epochs=3, total_steps=100, steps_before=before)


def test_the_pairs_of_an_ensemble_follow_each_other(tmp_path):
    pytest.importorskip("tensorboard")
    with open_tracker(ReportTo.tensorboard, tmp_path) as tracker:
        for number, loss in ((1, 2.5), (2, 1.5)):
            tracker.show(member(number))
            tracker.show(step(5, loss))
    assert tensorboard_read(tmp_path, "train/loss") == [(5, 2.5), (305, 1.5)]


def test_an_ensemble_that_is_resumed_keeps_what_was_logged_of_the_pairs_before(tmp_path):
    pytest.importorskip("tensorboard")
    for number, loss in ((1, 2.5), (2, 1.5)):
        with open_tracker(ReportTo.tensorboard, tmp_path) as tracker:
            tracker.show(member(number))
            tracker.show(step(5, loss))
    assert tensorboard_read(tmp_path, "train/loss") == [(5, 2.5), (305, 1.5)]


def test_a_run_that_is_interrupted_before_anything_is_logged_knows_where_to(tmp_path):
    note_tracker(ReportTo.wandb, tmp_path)
    note_tracker(ReportTo.wandb, tmp_path)
    assert tracker_of(tmp_path) is ReportTo.wandb


def test_runs_from_before_there_were_several_trackers_go_on_in_tensorboard(tmp_path):
    assert tracker_of(tmp_path) is None
    (tmp_path / "tensorboard").mkdir()
    assert tracker_of(tmp_path) is ReportTo.tensorboard


@pytest.mark.parametrize("to", ReportTo)
def test_without_the_package_it_says_what_to_install(to, tmp_path, monkeypatch):
    monkeypatch.setattr("alignvl_cli.report.trackers.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=f"--report-to {to.value} needs the package: pip install"):
        open_tracker(to, tmp_path)
    assert not list(tmp_path.iterdir())


class Recorded:
    """Stands in for a tracker's package where it is not installed: keeps what is called, and answers what is asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple, dict]] = []
        self.id, self.name = "known-id", "known-name"

    def __getattr__(self, name: str):
        def call(*words, **named):
            self.calls.append((name, words, named))
            if name == "get_experiment_by_name":
                return None
            if name == "create_run":
                return SimpleNamespace(info=SimpleNamespace(run_id=self.id))
            return self

        return call

    def of(self, *names: str) -> list[tuple]:
        return [(*words, named) for name, words, named in self.calls if name in names]


@pytest.mark.parametrize("to", [ReportTo.mlflow, ReportTo.wandb, ReportTo.trackio])
def test_what_a_tracker_is_told(to, tmp_path, monkeypatch):
    """Held to the packages themselves by the tests above, where they are installed."""
    package = Recorded()
    monkeypatch.setitem(sys.modules, to.value, package)
    monkeypatch.setattr("alignvl_cli.report.trackers.find_spec", lambda name: package)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for finishes in (False, True):
        with open_tracker(to, tmp_path, {"lr": 1e-3}) as tracker:
            tracker.show(step(5, 2.5))
            tracker.show(records.Validated(step=5, epoch=1, metrics=METRICS, best=True))
            tracker.show(records.Warned(step=5, text="tau has reached its bound"))
            if finishes:
                tracker.show(records.Finished(result={}))
    if to is ReportTo.mlflow:
        logged = [(name, value, named["step"]) for _, name, value, named in package.of("log_metric")]
        assert ("validation/image_to_text/R-1", 12.5, 5) in logged
        assert len(package.of("create_run")) == len(package.of("update_run")) == 1
        assert [named["status"] for *_, named in package.of("set_terminated")] == ["KILLED", "FINISHED"]
    else:
        first, again = (named for *_, named in package.of("init"))
        assert ({"train/loss": 2.5}.items()) <= package.of("log")[0][0].items()
        assert len(package.of("finish")) == 2
        if to is ReportTo.wandb:
            assert (first["mode"], first["id"], again["id"]) == ("offline", None, "known-id")
        else:
            assert (first["resume"], again["resume"], again["name"]) == ("never", "allow", "known-name")


@pytest.mark.slow
def test_a_tracker_that_fails_does_not_end_the_training(tmp_path, monkeypatch):
    from alignvl_cli.report import trackers

    class Failing(trackers.Tracker):
        def log(self, figures, step):
            raise OSError("no space left on device")

        def close(self, finished):
            raise OSError("nor at the end")

    monkeypatch.setattr(trackers, "open_tracker", lambda *given: Failing())
    store = make_store(tmp_path / "s.h5", images=60, dim=12, text_dim=10)
    alignvl = CommandLine(tmp_path / "workspace")
    result = alignvl(
        "train", store, "--report-to", "tensorboard", "--size", "pairs", "--epochs", "2", "--device", "cpu"
    )
    assert result.exit_code == 0, result.output
    assert result.stderr.count("the tracker gets no more figures (no space left on device); the training goes on") == 1
