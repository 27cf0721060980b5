"""Pictures that change, come back or vanish while an extraction is under way: the store is that of the files there."""

import pytest
from PIL import Image
from support.fakes import FakeText, FakeVision, make_dataset
from support.stored import differing, stored_datasets

from alignvl_cli.distributed import ALONE, Ranks
from alignvl_cli.errors import DataError
from alignvl_cli.extraction import images
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
    assert extract(dataset, output, vision=vision, ranks=ranks).taken_up == 68
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
    assert (summary.rejected, summary.taken_up) == (0, 36)
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


def vanishing(monkeypatch, spoil, number):
    """The first time that picture `number` is to be decoded, `spoil` is done to its file before."""
    prepare, spoilt = images.prepare_sources, []

    def prepared(preprocess, max_pixels, sources, sha256):
        for source in sources:
            if source.path.name == f"{number:05d}.png" and not spoilt:
                spoilt.append(source.path)
                spoil(source.path)
        return prepare(preprocess, max_pixels, sources, sha256)

    monkeypatch.setattr(images, "prepare_sources", prepared)


def overwrite(path):
    path.write_bytes(b"another file")


SPOILT = pytest.mark.parametrize("spoil", [lambda path: path.unlink(), overwrite], ids=["vanished", "changed"])


@SPOILT
@pytest.mark.parametrize("twin", [5, 40, 150])
def test_a_picture_that_goes_before_it_is_decoded_takes_no_equal_one_along(tmp_path, monkeypatch, spoil, twin):
    """The twin stands in the same shard, in the next one (hashed already), or in one that is not read yet."""
    dataset, output = make_dataset(tmp_path / "data", images=200), tmp_path / "s.h5"
    data = tmp_path / "data"
    (data / f"{twin:05d}.png").write_bytes((data / "00003.png").read_bytes())
    vanishing(monkeypatch, spoil, 3)
    extract(dataset, output)
    store = open_store(output)
    assert f"item{twin}" in store.image_id
    assert [entry.id for entry in store.rejected] in ([], ["item3"])
    latent = store.image_block(slice(None))
    stored = dict(zip(store.image_id, latent, strict=True))
    extract(make_dataset(tmp_path / "other", images=4), tmp_path / "other.h5")
    alone = open_store(tmp_path / "other.h5").image_block(slice(None))[3]
    assert abs(stored[f"item{twin}"] - alone).max() < 0.02


@SPOILT
@pytest.mark.parametrize("ranks", [ALONE, TWO], ids=["alone", "shared"])
def test_a_picture_that_went_before_it_was_decoded_is_tried_again(tmp_path, monkeypatch, spoil, ranks):
    dataset, output = make_dataset(tmp_path / "data", images=70), tmp_path / "s.h5"
    path = tmp_path / "data" / "00003.png"
    there = path.read_bytes()
    vanishing(monkeypatch, spoil, 3)
    interrupted(dataset, output, ranks)
    path.write_bytes(there)
    vision = FakeVision()
    assert extract(dataset, output, vision=vision, ranks=ranks).rejected == 0
    assert sum(vision.batches) == 32
    assert_as_if_undisturbed(dataset, output)


def test_a_picture_that_went_for_good_is_named(tmp_path, monkeypatch):
    dataset, output = make_dataset(tmp_path / "data", images=40), tmp_path / "s.h5"
    vanishing(monkeypatch, lambda path: path.unlink(), 3)
    assert extract(dataset, output).rejected == 1
    assert [(entry.id, entry.reason) for entry in open_store(output).rejected] == [
        ("item3", "No such file or directory")
    ]
