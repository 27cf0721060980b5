"""Automatic batch sizes: measured where it matters, kept by the plan of a run that was begun."""

from dataclasses import replace

import pytest
import torch
from support.fakes import FakeText, FakeVision, make_dataset

from alignvl_cli.errors import DataError
from alignvl_cli.extraction.estimate import choose_batches, measured_size
from alignvl_cli.extraction.events import Finished
from alignvl_cli.extraction.plan import CPU_IMAGES, Batches, make_plan
from alignvl_cli.extraction.run import run_extraction
from alignvl_cli.settings import ExtractConfig
from alignvl_cli.store.reader import open_store

AUTO = ExtractConfig(workers=0)


class Device:
    """Time and memory of an encoder on some device: a start, then so much an item."""

    def __init__(self, start, item, most=10**9, error=None):
        self.start, self.item, self.most = start, item, most
        self.error = error
        self.now = 0.0
        self.tried = []

    def encode(self, size):
        self.tried.append(size)
        if size > self.most:
            raise self.error
        self.now += self.start + self.item * size

    def size(self, most=1024):
        return measured_size(self.encode, lambda: self.now, most)


def test_sizes_grow_while_a_larger_batch_pays():
    assert Device(start=0, item=1).size() == 16, "no start to share: the smallest"
    assert Device(start=100, item=1).size() == 1024
    assert Device(start=100, item=1).size(most=256) == 256, "of four views, a quarter of the pictures"
    middle = Device(start=16, item=1)
    assert middle.size() == 256, "512 are 3 % faster an item"
    assert max(middle.tried) == 512


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), RuntimeError("MPS backend out of memory")], ids=str)
def test_what_does_not_fit_is_not_chosen(error):
    assert Device(start=100, item=1, most=200, error=error).size() == 128
    with pytest.raises(DataError, match="smaller --batch-size"):
        Device(start=1, item=1, most=8, error=error).size()


def test_other_failures_are_not_taken_for_memory():
    with pytest.raises(RuntimeError, match="shape"):
        Device(start=1, item=1, most=8, error=RuntimeError("shape")).size()


def gpu(encoder):
    """The fake, said to be on a GPU."""
    encoder.about = encoder.about | {"device": "cuda"}
    return encoder


def test_cpus_keep_their_rule_and_a_number_its_say(tmp_path):
    dataset = make_dataset(tmp_path / "data", images=4)
    assert choose_batches(dataset, FakeVision(), FakeText(), AUTO, tmp_path / "s.h5") is None
    asked = replace(AUTO, batch_size=5)
    assert choose_batches(dataset, gpu(FakeVision()), gpu(FakeText()), asked, tmp_path / "s.h5") is None
    assert make_plan(dataset, FakeVision(), FakeText(), asked).image_batch == 5
    assert make_plan(dataset, FakeVision(), FakeText(), AUTO).image_batch == CPU_IMAGES


def test_what_was_measured_is_kept_for_the_rest_of_the_work(tmp_path):
    dataset, output = make_dataset(tmp_path / "data", images=70), tmp_path / "s.h5"
    encoders = gpu(FakeVision()), gpu(FakeText())
    measured = choose_batches(dataset, *encoders, AUTO, output)
    assert measured.images >= 16
    assert measured.texts >= 16
    begun = Batches(2, 3)
    running = run_extraction(dataset, *encoders, output, AUTO, settings={}, batches=begun)
    while next(running).done <= 32:
        pass
    running.close()
    again = choose_batches(dataset, *encoders, AUTO, output)
    assert again == begun
    *_, last = run_extraction(dataset, *encoders, output, AUTO, settings={}, batches=again)
    assert isinstance(last, Finished)
    assert last.summary.resumed == 32
    assert open_store(output).made_by["plan"]["text_batch"] == 3
