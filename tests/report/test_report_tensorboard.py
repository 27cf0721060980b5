"""Event files: the figures of the records under their steps, those done again once, nothing without the package."""

import sys

import pytest

from alignvl_cli.errors import UsageError
from alignvl_cli.report.progress import TensorBoardLog
from alignvl_cli.training import state as records

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def step(number: int, loss: float) -> records.Step:
    return records.Step(step=number, epoch=1, loss=loss, hard_loss=1.0, tau=0.05, lr=1e-3, skipped=0, pairs_per_s=9.0)


def scalars(folder, name: str) -> list[tuple[int, float]]:
    events = event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_figures_stand_under_their_steps(tmp_path):
    metrics = {"mean_recall": 40.0, "image_to_text": {"R@1": 12.5}}
    with TensorBoardLog(tmp_path) as log:
        log.show(step(5, 2.5))
        log.show(step(10, 1.5))
        log.show(records.Validated(step=10, epoch=1, metrics=metrics, best=True))
        log.show(records.Warned(step=10, text="tau has reached its bound"))
        log.show(records.Finished(result={}))
    assert scalars(tmp_path, "train/loss") == [(5, 2.5), (10, 1.5)]
    assert scalars(tmp_path, "validation/mean_recall") == [(10, 40.0)]
    assert scalars(tmp_path, "validation/image_to_text/R@1") == [(10, 12.5)]


def test_steps_that_are_done_again_are_there_once(tmp_path):
    with TensorBoardLog(tmp_path) as log:
        log.show(step(5, 2.5))
        log.show(step(10, 99.0))
    with TensorBoardLog(tmp_path, first_step=5) as log:
        log.show(step(10, 1.5))
    assert scalars(tmp_path, "train/loss") == [(5, 2.5), (10, 1.5)]


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UsageError, match=r"alignvl\[tensorboard\]"):
        TensorBoardLog(tmp_path / "t")
    assert not (tmp_path / "t").exists()
