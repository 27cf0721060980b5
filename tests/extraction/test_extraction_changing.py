"""Pictures that change, come back or vanish while an extraction is under way: the store is that of the files there."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image
from support.fakes import FakeText, FakeVision, make_dataset
from support.stored import differing, stored_datasets

from alignvl_cli.datasets.dataset import ImageSource
from alignvl_cli.distributed import Ranks
from alignvl_cli.errors import DataError
from alignvl_cli.extraction.progress import Finished, Progress, Stage
from alignvl_cli.extraction.run import run_extraction
from alignvl_cli.settings import ExtractConfig

SMALL = ExtractConfig(batch_size=2, workers=0)
"""Shards of 32 images."""
COUNT = pytest.mark.parametrize("count", [1, 2], ids=["alone", "shared"])


def extract(dataset, output, *, vision=None, config=SMALL, count=1):
    """The summary of an extraction by `count` ranks, which use the same encoders."""
    vision, text = vision or FakeVision(), FakeText()

    def run(rank):
        ranks = Ranks(rank, count, rank, count)
        return list(run_extraction(dataset, vision, text, output, config, settings={}, ranks=ranks))

    with ThreadPoolExecutor(count) as threads:
        events = list(threads.map(run, range(count)))
    assert isinstance(events[0][-1], Finished)
    return events[0][-1].summary


def interrupted(dataset, output):
    """Leave an extraction in its texts: all image shards are finished."""
    running = run_extraction(dataset, FakeVision(), FakeText(), output, SMALL, settings={})
    for event in running:
        if isinstance(event, Progress) and event.stage is Stage.texts:
            break
    running.close()
    assert not output.exists()


def assert_as_if_undisturbed(dataset, output):
    whole = output.with_name("whole.h5")
    extract(dataset, whole)
    assert differing(stored_datasets(output), stored_datasets(whole)) == []


@COUNT
def test_a_picture_that_was_replaced_is_read_again(tmp_path, count):
    dataset, output = make_dataset(tmp_path / "data", images=100), tmp_path / "s.h5"
    interrupted(dataset, output)
    Image.new("RGB", (12, 10), (200, 201, 77)).save(tmp_path / "data" / "00040.png")
    vision = FakeVision()
    assert extract(dataset, output, vision=vision, count=count).reused == 68
    assert sum(vision.batches) == 32, "the shard of the new picture, and no other"
    assert_as_if_undisturbed(dataset, output)


@COUNT
def test_pictures_that_have_come_back_are_read(tmp_path, count):
    dataset, output = make_dataset(tmp_path / "data", images=100), tmp_path / "s.h5"
    away = [tmp_path / "data" / f"{number:05d}.png" for number in (3, 4, 70)]
    for path in away:
        path.rename(path.with_suffix(".away"))
    interrupted(dataset, output)
    for path in away:
        path.with_suffix(".away").rename(path)
    summary = extract(dataset, output, count=count)
    assert (summary.rejected, summary.reused) == (0, 36)
    assert_as_if_undisturbed(dataset, output)


@COUNT
def test_a_folder_that_was_not_mounted_is_read_once_it_is(tmp_path, count):
    dataset, output = make_dataset(tmp_path / "data", images=70), tmp_path / "s.h5"
    (tmp_path / "data").rename(tmp_path / "away")
    with pytest.raises(DataError, match="none of the 70 images can be read"):
        extract(dataset, output, count=count)
    assert list(tmp_path.iterdir()) == [tmp_path / "away"]
    (tmp_path / "away").rename(tmp_path / "data")
    assert extract(dataset, output, count=count).images == 70
    assert_as_if_undisturbed(dataset, output)


@COUNT
def test_latents_stay_with_their_pictures_when_a_lost_shard_brings_others(tmp_path, count):
    """Picture 0 stood in the second shard again; now it is picture 33, of which the second shard has the latent: that
    has as many contents as before, and others."""
    dataset, output = make_dataset(tmp_path / "data", images=64), tmp_path / "s.h5"
    data = tmp_path / "data"
    (data / "00032.png").write_bytes((data / "00000.png").read_bytes())
    interrupted(dataset, output)
    (tmp_path / "s.h5.partial" / "images-000000.json").unlink()
    (data / "00000.png").write_bytes((data / "00033.png").read_bytes())
    extract(dataset, output, count=count)
    assert_as_if_undisturbed(dataset, output)


def spoiling(monkeypatch, spoil, number):
    """Right after picture `number` is read for the first time, `spoil` is done to its file."""
    read, spoilt = ImageSource.read, []

    def then_spoilt(source, at_most=None):
        data = read(source, at_most)
        if source.path.name == f"{number:05d}.png" and not spoilt:
            spoilt.append(source.path)
            spoil(source.path)
        return data

    monkeypatch.setattr(ImageSource, "read", then_spoilt)


def overwrite(path):
    Image.new("RGB", (12, 10), (1, 2, 3)).save(path)


SPOILT = pytest.mark.parametrize("spoil", [lambda path: path.unlink(), overwrite], ids=["gone", "replaced"])


@SPOILT
@COUNT
def test_what_is_hashed_is_what_is_encoded_whatever_happens_to_the_file(tmp_path, monkeypatch, spoil, count):
    """The hash and the latent are those of the bytes that stood in the file when it was read."""
    dataset, output = make_dataset(tmp_path / "data", images=70), tmp_path / "s.h5"
    extract(dataset, tmp_path / "whole.h5")
    spoiling(monkeypatch, spoil, 3)
    assert extract(dataset, output, count=count).rejected == 0
    assert differing(stored_datasets(output), stored_datasets(tmp_path / "whole.h5")) == []
    assert extract(dataset, tmp_path / "later.h5").rejected == (not (tmp_path / "data" / "00003.png").exists())


@SPOILT
def test_a_picture_that_changed_behind_its_reading_is_noticed_by_the_next_run(tmp_path, monkeypatch, spoil):
    dataset, output = make_dataset(tmp_path / "data", images=70), tmp_path / "s.h5"
    with monkeypatch.context() as patched:
        spoiling(patched, spoil, 3)
        interrupted(dataset, output)
    vision = FakeVision()
    summary = extract(dataset, output, vision=vision)
    assert sum(vision.batches) == 32 - summary.rejected
    assert_as_if_undisturbed(dataset, output)


@pytest.mark.parametrize("change", ["touched", "same size"])
def test_files_with_another_time_are_compared_by_content(tmp_path, change):
    """Another time alone makes no work; another content of the same size does."""
    dataset, output = make_dataset(tmp_path / "data", images=70), tmp_path / "s.h5"
    for item in dataset.items:  # BMP: all of one size
        Image.open(item.source.path).convert("RGB").save(item.source.path, "BMP")
    interrupted(dataset, output)
    path = tmp_path / "data" / "00040.png"
    if change == "touched":
        os.utime(path)
    else:
        path.write_bytes((tmp_path / "data" / "00041.png").read_bytes())
    vision = FakeVision()
    extract(dataset, output, vision=vision)
    assert sum(vision.batches) == (0 if change == "touched" else 31)
    assert_as_if_undisturbed(dataset, output)
