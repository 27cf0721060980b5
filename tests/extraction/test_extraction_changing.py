"""Pictures that change, come back or vanish while an extraction is under way: the store is that of the files there."""

import hashlib
import os
from pathlib import Path

import pytest
from PIL import Image
from support.fakes import FakeText, FakeVision, make_dataset
from support.stored import differing, stored_datasets

from alignvl_cli.artifacts import read_json, write_json
from alignvl_cli.datasets.dataset import ImageSource
from alignvl_cli.distributed import ALONE, Ranks
from alignvl_cli.encoders.decoding import decode_image
from alignvl_cli.errors import DataError
from alignvl_cli.extraction.events import Finished, Progress, Stage
from alignvl_cli.extraction.run import run_extraction
from alignvl_cli.settings import ExtractConfig
from alignvl_cli.store.reader import open_store

SMALL = ExtractConfig(batch_size=2, workers=0)
"""Shards of 32 images."""
TWO = Ranks(0, 2, 0, 2)


def extract(dataset, output, *, vision=None, config=SMALL, **options):
    *_, last = run_extraction(dataset, vision or FakeVision(), FakeText(), output, config, settings={}, **options)
    assert isinstance(last, Finished)
    return last.summary


def interrupted(dataset, output, ranks=ALONE, config=SMALL):
    """Leave an extraction in its texts: all image shards are finished."""
    running = run_extraction(dataset, FakeVision(), FakeText(), output, config, settings={}, ranks=ranks)
    for event in running:
        if isinstance(event, Progress) and event.stage is Stage.texts:
            break
    running.close()
    assert not output.exists()


def assert_as_if_undisturbed(dataset, output):
    whole = output.with_name("whole.h5")
    extract(dataset, whole)
    assert differing(stored_datasets(output), stored_datasets(whole)) == []


@pytest.mark.parametrize("ranks", [ALONE, TWO], ids=["alone", "shared"])
def test_a_picture_that_was_replaced_is_read_again(tmp_path, ranks):
    dataset, output = make_dataset(tmp_path / "data", images=100), tmp_path / "s.h5"
    interrupted(dataset, output, ranks)
    Image.new("RGB", (12, 10), (200, 201, 77)).save(tmp_path / "data" / "00040.png")
    vision = FakeVision()
    assert extract(dataset, output, vision=vision, ranks=ranks).resumed == 68
    assert sum(vision.batches) == 32, "the shard of the new picture, and no other"
    assert_as_if_undisturbed(dataset, output)


@pytest.mark.parametrize("ranks", [ALONE, TWO], ids=["alone", "shared"])
def test_pictures_that_have_come_back_are_read(tmp_path, ranks):
    dataset, output = make_dataset(tmp_path / "data", images=100), tmp_path / "s.h5"
    away = [tmp_path / "data" / f"{number:05d}.png" for number in (3, 4, 70)]
    for path in away:
        path.rename(path.with_suffix(".away"))
    interrupted(dataset, output, ranks)
    for path in away:
        path.with_suffix(".away").rename(path)
    summary = extract(dataset, output, ranks=ranks)
    assert (summary.rejected, summary.resumed) == (0, 36)
    assert_as_if_undisturbed(dataset, output)


@pytest.mark.parametrize("ranks", [ALONE, TWO], ids=["alone", "shared"])
def test_a_folder_that_was_not_mounted_is_read_once_it_is(tmp_path, ranks):
    dataset, output = make_dataset(tmp_path / "data", images=70), tmp_path / "s.h5"
    (tmp_path / "data").rename(tmp_path / "away")
    with pytest.raises(DataError, match="none of the 70 images can be read"):
        extract(dataset, output, ranks=ranks)
    assert list(tmp_path.iterdir()) == [tmp_path / "away"]
    (tmp_path / "away").rename(tmp_path / "data")
    assert extract(dataset, output, ranks=ranks).images == 70
    assert_as_if_undisturbed(dataset, output)


@pytest.mark.parametrize("ranks", [ALONE, TWO], ids=["alone", "shared"])
def test_latents_stay_with_their_pictures_when_a_lost_shard_brings_others(tmp_path, ranks):
    """Picture 0 stood in the second shard again; now it is picture 33, of which the second shard has the latent: that
    has as many contents as before, and others."""
    dataset, output = make_dataset(tmp_path / "data", images=64), tmp_path / "s.h5"
    data = tmp_path / "data"
    (data / "00032.png").write_bytes((data / "00000.png").read_bytes())
    interrupted(dataset, output, ranks)
    (tmp_path / "s.h5.partial" / "images-000000.json").unlink()
    (data / "00000.png").write_bytes((data / "00033.png").read_bytes())
    extract(dataset, output, ranks=ranks)
    assert_as_if_undisturbed(dataset, output)


def spoiling(monkeypatch, path, spoil, when):
    """The file `path` is spoilt once, right before or right after its bytes are read."""
    read, spoilt = ImageSource.read, []

    def reading(source, at_most=None):
        is_now = source.path == path and not spoilt
        if is_now:
            spoilt.append(path)
        if is_now and when == "before":
            spoil(path)
        data = read(source, at_most)
        if is_now and when == "after":
            spoil(path)
        return data

    monkeypatch.setattr(ImageSource, "read", reading)


def replace(path):
    Image.new("RGB", (31, 17), (3, 99, 201)).save(path)


SPOILT = pytest.mark.parametrize("spoil", [Path.unlink, replace], ids=["vanished", "changed"])
WHEN = pytest.mark.parametrize("when", ["before", "after"])


@pytest.mark.slow
@SPOILT
@WHEN
@pytest.mark.parametrize("twin", [5, 40, 150])
def test_the_bytes_that_were_hashed_are_those_that_were_encoded(tmp_path, monkeypatch, spoil, when, twin):
    """Whatever happens to a file around its one reading: its hash and its latent are of the same bytes, and an equal
    file in its shard, in the next one or further on has its own."""
    dataset, output = make_dataset(tmp_path / "data", images=200), tmp_path / "s.h5"
    data = tmp_path / "data"
    first = (data / "00003.png").read_bytes()
    (data / f"{twin:05d}.png").write_bytes(first)
    spoiling(monkeypatch, data / "00003.png", spoil, when)
    extract(dataset, output)
    store = open_store(output)
    sha256 = dict(zip(store.image_id, map(bytes, store.image_sha256), strict=True))
    latent = dict(zip(store.image_id, store.image_block(slice(None)), strict=True))
    is_gone = spoil is Path.unlink and when == "before"
    assert [entry.id for entry in store.rejected] == (["item3"] if is_gone else [])
    monkeypatch.undo()
    wanted = {f"item{twin}": first}
    if not is_gone:
        wanted["item3"] = first if when == "after" else (data / "00003.png").read_bytes()
    for name, there in wanted.items():
        assert sha256[name] == hashlib.sha256(there).digest()
        pixels = FakeVision().preprocess(decode_image(there, SMALL.max_pixels))
        assert abs(latent[name] - FakeVision().encode(pixels[None])[0]).max() < 0.02, "but for its batch"


@SPOILT
@WHEN
def test_a_file_that_changes_while_it_is_read_is_read_again_by_the_next_run(tmp_path, monkeypatch, spoil, when):
    dataset, output = make_dataset(tmp_path / "data", images=70), tmp_path / "s.h5"
    path = tmp_path / "data" / "00003.png"
    there = path.read_bytes()
    spoiling(monkeypatch, path, spoil, when)
    interrupted(dataset, output)
    monkeypatch.undo()
    path.write_bytes(there)
    vision = FakeVision()
    assert extract(dataset, output, vision=vision).rejected == 0
    assert sum(vision.batches) == (32 if when == "before" else 0), "of the bytes that are there again, or made anew"
    assert_as_if_undisturbed(dataset, output)


@SPOILT
def test_processes_that_share_the_work_refuse_a_file_that_changes_under_them(tmp_path, monkeypatch, spoil):
    dataset, output = make_dataset(tmp_path / "data", images=70), tmp_path / "s.h5"
    path = tmp_path / "data" / "00003.png"
    there = path.read_bytes()
    spoiling(monkeypatch, path, spoil, "after")
    with pytest.raises(DataError, match=r"00003.*changed or went .* run the same command again"):
        extract(dataset, output, ranks=TWO)
    path.write_bytes(there)
    extract(dataset, output, ranks=TWO)
    assert_as_if_undisturbed(dataset, output)


def test_a_resumed_extraction_opens_no_picture_of_a_finished_shard(tmp_path, monkeypatch):
    dataset, output = make_dataset(tmp_path / "data", images=100), tmp_path / "s.h5"
    interrupted(dataset, output)
    os.utime(tmp_path / "data" / "00007.png")
    opened = []
    read = ImageSource.read
    monkeypatch.setattr(
        ImageSource, "read", lambda source, *most: opened.append(source.path.name) or read(source, *most)
    )
    assert extract(dataset, output).resumed == 100
    assert opened == ["00007.png"]
    assert_as_if_undisturbed(dataset, output)


def test_a_folder_of_an_older_version_is_resumed(tmp_path):
    """Its records tell no hash and no time of a file: the files are read, and no shard is made again."""
    dataset, output = make_dataset(tmp_path / "data", images=100), tmp_path / "s.h5"
    interrupted(dataset, output)
    for path in (tmp_path / "s.h5.partial").glob("images-*.json"):
        record = read_json(path, "shard record")
        del record["sha256"], record["stamps"]
        write_json(path, {**record, "vanished": {}})
    vision = FakeVision()
    assert extract(dataset, output, vision=vision).resumed == 100
    assert not vision.batches
    assert_as_if_undisturbed(dataset, output)
