"""Latents of an older store are reused for the same bytes, the same text and the same encoder, and for nothing else."""

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from support.fakes import FakeText, FakeVision, make_dataset, make_store
from support.killable import Killable, kill
from support.stored import differing, stored_datasets

from alignvl_cli.datasets.dataset import Dataset, ImageSource
from alignvl_cli.distributed import Ranks
from alignvl_cli.errors import DataError, MismatchError
from alignvl_cli.extraction.events import Finished, Note, Progress, Stage
from alignvl_cli.extraction.run import run_extraction
from alignvl_cli.extraction.up_to_date import write_stamps
from alignvl_cli.settings import NO_REUSE, ExtractConfig, StoreDtype
from alignvl_cli.store.reader import open_store

SMALL = ExtractConfig(batch_size=1, workers=0)
"""Batches of one, in which a fake encoder gives an item the same bits whatever else is encoded; shards of 16 images."""


def extract(dataset, output, *, vision=None, text=None, config=SMALL, **options):
    """The summary, and what was noted."""
    *events, last = run_extraction(
        dataset, vision or FakeVision(), text or FakeText(), output, config, settings={}, **options
    )
    assert isinstance(last, Finished)
    if last.stamps is not None:
        write_stamps(output, last.summary.content_hash, dataset.items, last.stamps, last.rejected)
    return last.summary, [event.text for event in events if isinstance(event, Note)]


def changed(dataset: Dataset) -> Dataset:
    """Without items 3 and 20, with the captions of item 5 changed, item 7's picture under another name, item 9 with
    the bytes of item 10, item 11 with new ones, and at the front as many new items as make_dataset gives beyond 60."""
    folder = dataset.items[0].source.path.parent
    new = make_dataset(folder / "new", images=66, captions_per_image=(2, 1)).items[60:]
    items = list(dataset.items)
    items[5] = replace(items[5], captions=("another caption", items[0].captions[0]))
    moved = folder / "moved.png"
    shutil.copy(items[7].source.path, moved)
    items[7] = replace(items[7], id="moved", uri=moved.name, source=ImageSource(moved))
    shutil.copy(items[10].source.path, items[9].source.path)
    Image.new("RGB", (12, 10), (200, 201, 77)).save(items[11].source.path)
    kept = [item for number, item in enumerate(items) if number not in (3, 20)]
    return replace(dataset, record={"format": "fake", "images": "changed"}, items=[*new, *kept])


@pytest.fixture
def grown(tmp_path):
    """Changed data, and the store of what they were before."""
    before, output = make_dataset(tmp_path / "data", images=60), tmp_path / "s.h5"
    extract(before, output)
    return changed(before), output


def fresh(dataset, output, **options):
    return extract(dataset, output.with_name("fresh.h5"), reuse=NO_REUSE, **options)[0]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_store_of_grown_data_is_that_of_a_fresh_extraction(grown, workers):
    dataset, output = grown
    before = open_store(output)
    captions = set(before.text_caption)
    vision, text = FakeVision(), FakeText()
    config = replace(SMALL, workers=workers)
    summary, _ = extract(dataset, output, vision=vision, text=text, config=config, overwrite=True)
    anew = fresh(dataset, output)
    assert differing(stored_datasets(output), stored_datasets(output.with_name("fresh.h5"))) == []
    assert open_store(output).content_hash == anew.content_hash
    assert sum(vision.batches) == 7, "six new pictures and the one with other bytes"
    assert summary.reused_images == summary.distinct_images - 7
    asked = [caption for batch in text.batches for caption in batch]
    assert len(asked) == summary.distinct_captions - summary.reused_captions
    assert not set(asked) & captions
    assert open_store(output).made_by["reused"] == {
        "store": str(output),
        "content_hash": before.content_hash,
        "pictures": summary.reused_images,
        "captions": summary.reused_captions,
        "made_with": [{name: before.made_by["plan"][name] for name in ("device", "libraries")}],
    }
    assert "reused" not in open_store(output.with_name("fresh.h5")).made_by


def test_with_other_batches_reused_latents_are_the_older_ones_and_the_rest_is_within_rounding(grown):
    dataset, output = grown
    before = open_store(output)
    then = dict(zip(map(bytes, before.image_sha256), before.image_block(slice(None)), strict=True))
    extract(dataset, output, config=replace(SMALL, batch_size=4), overwrite=True)
    anew = output.with_name("fresh.h5")
    extract(dataset, anew, config=replace(SMALL, batch_size=4))
    grown_ID, fresh_ID = (open_store(path).image_block(slice(None)) for path in (output, anew))
    assert 0 < abs(grown_ID - fresh_ID).max() < 0.02, "the trace of the batch"
    reused = [
        (row, then[bytes(sha256)])
        for row, sha256 in enumerate(open_store(output).image_sha256)
        if bytes(sha256) in then
    ]
    assert len(reused) == 57
    assert all(np.array_equal(grown_ID[row], latent) for row, latent in reused)


def reading(monkeypatch):
    """Names of the files that are opened from now on."""
    opened, read = [], ImageSource.read
    monkeypatch.setattr(
        ImageSource, "read", lambda source, *most: opened.append(source.path.name) or read(source, *most)
    )
    return opened


def test_a_file_of_the_same_place_size_and_time_is_not_opened(grown, monkeypatch):
    dataset, output = grown
    (dataset.items[30].source.path).touch()
    opened = reading(monkeypatch)
    extract(dataset, output, overwrite=True)
    names = [f"{number:05d}.png" for number in range(60, 66)]
    assert opened == [*names, "moved.png", "00009.png", "00011.png", dataset.items[30].source.path.name]


def test_without_the_record_of_files_each_is_hashed_and_none_decoded(grown, monkeypatch, tmp_path):
    dataset, output = grown
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "data", moved)
    places = [moved / item.source.path.relative_to(tmp_path / "data") for item in dataset.items]
    items = [replace(item, source=ImageSource(place)) for item, place in zip(dataset.items, places, strict=True)]
    opened, decoded = reading(monkeypatch), []
    preprocess = FakeVision().preprocess
    vision = FakeVision(preprocess=lambda image: decoded.append(image) or preprocess(image))
    extract(replace(dataset, items=items), output, vision=vision, overwrite=True)
    assert len(opened) == len(items)
    assert len(decoded) == 7
    fresh(dataset, output)
    assert differing(stored_datasets(output), stored_datasets(output.with_name("fresh.h5"))) == []


def test_what_was_rejected_is_tried_again(tmp_path):
    dataset, output = make_dataset(tmp_path / "data", images=30), tmp_path / "s.h5"
    path = tmp_path / "data" / "00004.png"
    sound = path.read_bytes()
    path.write_bytes(sound[:40])
    assert extract(dataset, output)[0].rejected == 1
    assert extract(dataset, output, overwrite=True)[0].rejected == 1
    path.write_bytes(sound)
    vision = FakeVision()
    summary, _ = extract(dataset, output, vision=vision, overwrite=True)
    assert (summary.rejected, sum(vision.batches), summary.reused_images) == (0, 1, 29)
    fresh(dataset, output)
    assert differing(stored_datasets(output), stored_datasets(output.with_name("fresh.h5"))) == []


FLOAT16 = replace(SMALL, dtype=StoreDtype.float16)


@pytest.mark.parametrize("older", [SMALL, FLOAT16], ids=["float32", "float16"])
def test_float16_is_of_what_would_be_rounded_or_was(tmp_path, older):
    dataset, output = make_dataset(tmp_path / "data", images=30), tmp_path / "s.h5"
    extract(dataset, tmp_path / "older.h5", config=older)
    vision = FakeVision()
    extract(dataset, output, vision=vision, config=FLOAT16, reuse=tmp_path / "older.h5")
    assert not vision.batches
    fresh(dataset, output, config=FLOAT16)
    assert differing(stored_datasets(output), stored_datasets(output.with_name("fresh.h5"))) == []


@pytest.mark.parametrize(
    ("then", "now", "sides", "said"),
    [
        ({"vision": FakeVision(name="other")}, {}, "captions", "vision.model was 'other', now 'fake-vision'"),
        ({"text": FakeText(name="other")}, {}, "pictures", "text.model was 'other', now 'fake-text'"),
        ({"config": replace(SMALL, max_pixels=5000)}, {}, "pictures captions", ""),
        ({}, {"config": replace(SMALL, max_pixels=5000)}, "captions", "max_pixels was"),
        ({"config": FLOAT16}, {}, "", "dtype was 'float16', now 'float32'"),
        ({"vision": FakeVision(name="other"), "text": FakeText(name="other")}, {}, "", "vision.model was 'other'"),
    ],
    ids=["vision", "text", "more pixels", "fewer pixels", "dtype", "both"],
)
def test_only_what_would_be_encoded_alike_is_reused(tmp_path, then, now, sides, said):
    dataset, older = make_dataset(tmp_path / "data", images=20), tmp_path / "older.h5"
    extract(dataset, older, **then)
    if not sides:
        with pytest.raises(MismatchError, match=rf"none of its latents can be reused: .*{said}"):
            extract(dataset, tmp_path / "s.h5", reuse=older, **now)
        summary, notes = extract(dataset, older, overwrite=True, **now)
        assert said in notes[0]
        assert summary.reused_from is None
        return
    vision, text = FakeVision(), FakeText()
    summary, notes = extract(dataset, tmp_path / "s.h5", **{"vision": vision, "text": text, "reuse": older, **now})
    assert bool(vision.batches) != ("pictures" in sides)
    assert bool(text.batches) != ("captions" in sides)
    assert summary.reused_from == older
    assert [said in note for note in notes if "not reused" in note] == [True] * (said != "")


def test_a_precision_of_its_own_is_not_reused(tmp_path):
    dataset, older = make_dataset(tmp_path / "data", images=20), tmp_path / "older.h5"
    extract(dataset, older)
    vision = FakeVision()
    vision.about["precision"] = "bf16"
    _, notes = extract(dataset, tmp_path / "s.h5", vision=vision, reuse=older)
    assert sum(vision.batches) == 20
    assert "precision was 'fp32', now 'bf16'" in notes[0]


def test_a_store_that_does_not_say_how_it_was_made_gives_nothing(tmp_path):
    dataset, older = make_dataset(tmp_path / "data", images=20), make_store(tmp_path / "older.h5")
    with pytest.raises(MismatchError, match="how their latents were made is not recorded"):
        extract(dataset, tmp_path / "s.h5", reuse=older)
    assert "is not recorded" in extract(dataset, older, overwrite=True)[1][0]


def test_a_damaged_store_gives_nothing_and_is_replaced(tmp_path):
    dataset, output = make_dataset(tmp_path / "data", images=20), tmp_path / "s.h5"
    extract(dataset, output)
    with h5py.File(output, "r+") as file:
        file["text/latent"][3, 3] += 1
    with pytest.raises(DataError, match="damaged in /text/latent"):
        extract(dataset, tmp_path / "other.h5", reuse=output)
    with pytest.raises(DataError, match="no such store"):
        extract(dataset, tmp_path / "other.h5", reuse=tmp_path / "none.h5")
    vision = FakeVision()
    _, notes = extract(dataset, output, vision=vision, overwrite=True)
    assert sum(vision.batches) == 20
    assert "no latents are reused" in notes[0]
    assert "damaged in /text/latent" in notes[0]
    open_store(output).verify()


def test_latents_of_one_device_stay_on_record_through_several_reuses(tmp_path):
    dataset, output = make_dataset(tmp_path / "data", images=20), tmp_path / "s.h5"
    vision = FakeVision()
    vision.about["device"] = "cuda"
    extract(dataset, output, vision=vision)
    for _ in range(3):
        extract(dataset, output, overwrite=True)
    devices = [one["device"]["vision"] for one in open_store(output).made_by["reused"]["made_with"]]
    assert devices == ["cpu", "cuda"]


def interrupted(dataset, output, **options):
    """Leave an extraction in its texts."""
    running = run_extraction(dataset, FakeVision(), FakeText(), output, SMALL, settings={}, **options)
    for event in running:
        if isinstance(event, Progress) and event.stage is Stage.texts:
            break
    running.close()


def test_an_interrupted_reuse_is_resumed_and_counts_alike(grown):
    dataset, output = grown
    interrupted(dataset, output, overwrite=True)
    vision = FakeVision()
    summary, _ = extract(dataset, output, vision=vision, overwrite=True)
    assert not vision.batches
    assert summary.reused_images == summary.distinct_images - 7
    fresh(dataset, output)
    assert differing(stored_datasets(output), stored_datasets(output.with_name("fresh.h5"))) == []


def test_another_older_store_is_another_extraction(grown, tmp_path):
    dataset, older = grown
    output = tmp_path / "new.h5"
    interrupted(dataset, output, reuse=older)
    with pytest.raises(MismatchError, match=r"begun with other settings \(reuse.*--restart"):
        extract(dataset, output)
    assert extract(dataset, output, reuse=older)[0].reused_from == older


def test_processes_that_share_the_work_reuse_too(grown, tmp_path):
    dataset, older = grown
    output, encoders, ends = tmp_path / "new.h5", [FakeVision(), FakeVision()], {}

    def run(number):
        options = {"vision": encoders[number], "reuse": older, "ranks": Ranks(number, 2, number, 2)}
        ends[number] = list(
            run_extraction(dataset, options.pop("vision"), FakeText(), output, SMALL, settings={}, **options)
        )

    threads = [threading.Thread(target=run, args=[number], daemon=True) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sum(sum(vision.batches) for vision in encoders) == 7
    fresh(dataset, output)
    assert differing(stored_datasets(output), stored_datasets(output.with_name("fresh.h5"))) == []
    finished = [events[-1].summary for events in ends.values() if events and isinstance(events[-1], Finished)]
    assert finished
    assert all(one.reused_images == one.distinct_images - 7 for one in finished)


@pytest.mark.slow
def test_a_killed_extraction_that_reuses_ends_in_the_same_store(tmp_path):
    """Killed in the pictures and in the captions; meanwhile the older store is there, byte for byte."""
    grows = Killable(tmp_path, images=220, reuse="older.h5")
    older = tmp_path / "older.h5"
    extract(make_dataset(tmp_path / "data", images=60), older, config=ExtractConfig(batch_size=2, workers=0))
    before = older.read_bytes()
    for lines in (60, 70):
        process = grows.start()
        for _ in range(lines):
            assert process.stdout.readline()
        kill(process)
        assert not grows.output.exists()
        assert older.read_bytes() == before
    last = grows.start()
    output, _ = last.communicate(timeout=120)
    assert last.returncode == 0
    assert "reused_images=60" in output
    whole = tmp_path / "whole.h5"
    extract(grows.dataset(), whole, config=ExtractConfig(batch_size=2, workers=0), reuse=older)
    assert differing(stored_datasets(grows.output), stored_datasets(whole)) == []
    assert len(set(grows.journal("images"))) == 160
    assert not Path(f"{grows.output}.partial").exists()
