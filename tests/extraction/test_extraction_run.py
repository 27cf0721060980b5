"""An extraction's store is the known answer of the fake encoders, whatever happened on the way."""

import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from support.fakes import FakeText, FakeVision, concept, make_dataset

from alignvl_cli.datasets.dataset import Dataset, ImageSource, Item
from alignvl_cli.errors import DataError, MismatchError, UsageError
from alignvl_cli.extraction.events import Finished, Note, Progress, Stage
from alignvl_cli.extraction.plan import existing_store_matches, make_plan
from alignvl_cli.extraction.run import run_extraction
from alignvl_cli.settings import ExtractConfig, StoreDtype
from alignvl_cli.store.reader import open_store

SMALL = ExtractConfig(batch_size=2, workers=0)
"""Shards of 32 images and 128 captions."""


def extract(dataset, output, *, vision=None, text=None, config=SMALL, **options):
    """All records of one extraction, and its summary."""
    events = list(
        run_extraction(dataset, vision or FakeVision(), text or FakeText(), output, config, settings={}, **options)
    )
    assert isinstance(events[-1], Finished)
    return events, events[-1].summary


def colour_name(item):
    return item.captions[0].split()[0]


def test_latents_are_those_of_their_pictures_and_captions(tmp_path):
    dataset = make_dataset(tmp_path / "data", images=70)
    _, summary = extract(dataset, tmp_path / "s.h5", counter=3)
    store = open_store(tmp_path / "s.h5")
    store.verify()
    assert store.image_id == [item.id for item in dataset.items]
    assert store.text_caption == [caption for item in dataset.items for caption in item.captions]
    rows = store.rows("all")
    expected = [concept(colour_name(item), 16) for item in dataset.items]
    np.testing.assert_allclose(store.image_block(rows.image), expected, atol=0.02)
    np.testing.assert_allclose(store.text_block(rows.text), np.array(expected)[rows.text_image], atol=0.02)
    assert (summary.images, summary.captions, summary.rejected) == (70, 139, 0)
    assert summary.content_hash == store.content_hash
    assert store.made_by["counter"] == 3
    assert sum(summary.split_sizes.values()) == 70
    assert sorted(tmp_path.iterdir()) == [tmp_path / "data", tmp_path / "s.h5"]


def test_equal_pictures_and_equal_captions_are_encoded_once_and_share_bits(tmp_path):
    dataset = make_dataset(tmp_path / "data", images=100, repeat_image_every=3, repeat_caption_every=5)
    vision, text = FakeVision(), FakeText()
    _, summary = extract(dataset, tmp_path / "s.h5", vision=vision, text=text)
    assert sum(vision.batches) == summary.distinct_images == 67
    texts = [caption for batch in text.batches for caption in batch]
    assert len(texts) == len(set(texts)) == summary.distinct_captions
    assert summary.repeated_captions == summary.captions - summary.distinct_captions == 19
    store = open_store(tmp_path / "s.h5")
    image = store.image_block(slice(None))
    assert (image[::3] == image[0]).all()
    latent_of = {}
    for caption, latent in zip(store.text_caption, store.text_block(slice(None)), strict=True):
        assert latent_of.setdefault(caption, latent.tobytes()) == latent.tobytes()
    assert (np.diff(store.image_split[::3]) == 0).all()


def test_batches_are_full_within_a_shard_and_texts_longest_first(tmp_path):
    vision, text = FakeVision(), FakeText()
    extract(make_dataset(tmp_path / "data", images=70), tmp_path / "s.h5", vision=vision, text=text)
    assert vision.batches == [2] * 35
    first_shard = [len(caption.split()) for batch in text.batches[:64] for caption in batch]
    assert first_shard == sorted(first_shard, reverse=True)


def test_worker_processes_change_nothing_and_end(tmp_path):
    dataset = make_dataset(tmp_path / "data", images=90, repeat_image_every=4)
    (tmp_path / "data" / "00050.png").write_bytes(b"<html>")
    _, alone = extract(dataset, tmp_path / "alone.h5")
    _, together = extract(dataset, tmp_path / "together.h5", config=replace(SMALL, workers=2))
    assert (alone.workers, together.workers) == (0, 2)
    assert alone.content_hash == together.content_hash
    assert open_store(tmp_path / "alone.h5").rejected == open_store(tmp_path / "together.h5").rejected
    assert multiprocessing.active_children() == []


def test_unreadable_pictures_are_named_and_take_their_captions_along(tmp_path):
    dataset = make_dataset(tmp_path / "data", images=40)
    data = tmp_path / "data"
    (data / "00003.png").unlink()
    (data / "00007.png").write_bytes(b"")
    (data / "00008.png").write_text("<html>not found</html>")
    (data / "00009.png").unlink()
    (data / "00009.png").mkdir()
    Image.new("RGB", (60, 50)).save(data / "00035.png")
    (data / "00036.png").write_bytes((data / "00035.png").read_bytes())
    (data / "00039.png").write_bytes((data / "00008.png").read_bytes())
    _, summary = extract(dataset, tmp_path / "s.h5", config=replace(SMALL, max_pixels=2999))
    store = open_store(tmp_path / "s.h5")
    bad = [3, 7, 8, 9, 35, 36, 39]
    assert [entry.id for entry in store.rejected] == [f"item{i}" for i in bad]
    reasons = {entry.id: entry.reason for entry in store.rejected}
    assert "No such file" in reasons["item3"]
    assert "not a regular file" in reasons["item9"]
    assert "HTML" in reasons["item8"]
    assert reasons["item39"] == reasons["item8"]
    assert reasons["item36"] == reasons["item35"]
    assert "60 x 50" in reasons["item35"]
    good = [item for i, item in enumerate(dataset.items) if i not in bad]
    assert store.image_id == [item.id for item in good]
    assert store.text_caption == [caption for item in good for caption in item.captions]
    np.testing.assert_allclose(
        store.image_block(slice(None)), [concept(colour_name(item), 16) for item in good], atol=0.02
    )
    assert (summary.rejected, summary.too_many_rejected) == (7, False)


@pytest.mark.parametrize(("lost", "share", "too_many"), [(10, 0.0, False), (11, 0.01, True), (11, 0.2, False)])
def test_above_ten_images_the_share_decides_and_the_store_is_complete(tmp_path, lost, share, too_many):
    dataset = make_dataset(tmp_path / "data", images=60)
    for number in range(lost):
        (tmp_path / "data" / f"{number:05d}.png").unlink()
    _, summary = extract(dataset, tmp_path / "s.h5", config=replace(SMALL, max_rejected=share))
    assert (summary.rejected, summary.too_many_rejected) == (lost, too_many)
    assert len(open_store(tmp_path / "s.h5").image_id) == 60 - lost


def test_nothing_readable_is_an_error_and_leaves_nothing(tmp_path):
    items = [Item(f"i{n}", "x", ("a",), None, "", ImageSource(tmp_path / f"{n}.png")) for n in range(3)]
    with pytest.raises(DataError, match=r"none of the 3 images.*the first, x: No such file.*; are the paths right"):
        extract(Dataset("x", {}, items), tmp_path / "s.h5")
    assert list(tmp_path.iterdir()) == []


def test_grey_depths_that_were_guessed_are_said_once(tmp_path):
    dataset = make_dataset(tmp_path / "data", images=6)
    for row, most in ((1, 0xFFF), (2, 0xFFFF), (4, 0x3FFF)):
        grey = np.linspace(0, most, 20 * 20).astype(np.uint16).reshape(20, 20)
        Image.fromarray(grey).save(dataset.items[row].source.path)
    events, _ = extract(dataset, tmp_path / "s.h5")
    (note,) = (event.text for event in events if isinstance(event, Note) and "16 bits" in event.text)
    assert note.startswith("2 grey pictures of 16 bits")
    assert f"({dataset.items[1].id}: 12)" in note


def test_no_caption_left_is_an_error_and_leaves_nothing(tmp_path):
    dataset = make_dataset(tmp_path / "data", images=3, captions_per_image=(1, 0, 0))
    (tmp_path / "data" / "00000.png").unlink()
    with pytest.raises(DataError, match="no caption at all among the 2 images"):
        extract(dataset, tmp_path / "s.h5")
    assert list(tmp_path.iterdir()) == [tmp_path / "data"]


def test_an_encoder_that_returns_nan_is_named_by_item(tmp_path):
    dataset = make_dataset(tmp_path / "data", images=40)
    with pytest.raises(DataError, match="image 'item33'"):
        extract(dataset, tmp_path / "s.h5", vision=FakeVision(poison=colour_name(dataset.items[33])))
    with pytest.raises(DataError, match="caption '33-0-77 caption"):
        extract(dataset, tmp_path / "s.h5", text=FakeText(poison=colour_name(dataset.items[33])))
    assert not (tmp_path / "s.h5").exists()


def test_splits_are_declared_or_by_content_and_leaks_are_counted(tmp_path):
    splits = ["train", "test"] * 20
    dataset = make_dataset(tmp_path / "data", images=40, splits=splits, repeat_image_every=5)
    events, summary = extract(dataset, tmp_path / "s.h5")
    assert summary.leaks == 1
    assert summary.split_sizes["test"] == 20
    assert [event for event in events if isinstance(event, Note)], "a tenth of train became val: said"


def test_progress_reaches_the_total_of_each_stage(tmp_path):
    events, summary = extract(make_dataset(tmp_path / "data", images=70), tmp_path / "s.h5")
    for stage, total in ((Stage.images, 70), (Stage.texts, summary.distinct_captions)):
        steps = [event for event in events if isinstance(event, Progress) and event.stage is stage]
        assert [step.done for step in steps] == sorted(step.done for step in steps)
        assert (steps[-1].done, steps[-1].total) == (total, total)
        assert steps[-1].rate > 0


def test_images_without_captions_are_counted_unless_they_were_rejected(tmp_path):
    dataset = make_dataset(tmp_path / "data", images=20)
    bare = [replace(item, captions=()) if row < 4 else item for row, item in enumerate(dataset.items)]
    bare[0].source.path.write_bytes(b"no picture")
    _, summary = extract(replace(dataset, items=bare), tmp_path / "s.h5")
    assert (summary.images, summary.rejected, summary.images_without_captions) == (19, 1, 3)


def test_truncated_captions_are_counted_by_row(tmp_path):
    dataset = make_dataset(tmp_path / "data", images=30, captions_per_image=(2,), repeat_caption_every=5)
    _, summary = extract(dataset, tmp_path / "s.h5", text=FakeText(max_length=12))
    rows = [caption for item in dataset.items for caption in item.captions]
    assert summary.truncated_captions == sum(len(caption.split()) > 12 for caption in rows) > 0


def test_half_precision_reports_its_rounding(tmp_path):
    dataset = make_dataset(tmp_path / "data", images=8)
    _, summary = extract(dataset, tmp_path / "s.h5", config=replace(SMALL, dtype=StoreDtype.float16))
    assert 0 < summary.rounding_error < 2**-10
    assert open_store(tmp_path / "s.h5").image_latent.dtype == np.float16


def test_a_store_that_is_there_is_replaced_only_when_asked(tmp_path):
    output = tmp_path / "s.h5"
    extract(make_dataset(tmp_path / "one", images=5), output)
    other = make_dataset(tmp_path / "two", images=6)
    with pytest.raises(UsageError, match=r"made of other data .*images was 5, now 6.*--overwrite"):
        extract(other, output)
    assert len(open_store(output).image_id) == 5
    extract(other, output, overwrite=True)
    assert len(open_store(output).image_id) == 6


def test_overwrite_never_replaces_what_is_no_store(tmp_path):
    output = tmp_path / "data.jsonl"
    output.write_text("precious")
    with pytest.raises(UsageError, match="no store"):
        extract(make_dataset(tmp_path / "data", images=5), output, overwrite=True)
    assert output.read_text() == "precious"


def test_a_complete_store_is_known_again_by_what_decides_it(tmp_path):
    dataset, output = make_dataset(tmp_path / "data", images=5), tmp_path / "s.h5"
    encoders = FakeVision(), FakeText()
    assert not existing_store_matches(output, make_plan(dataset, *encoders, SMALL))
    extract(dataset, output)
    assert existing_store_matches(output, make_plan(dataset, *encoders, SMALL))
    assert existing_store_matches(output, make_plan(dataset, *encoders, replace(SMALL, batch_size=7, workers=1)))
    other_data = replace(dataset, record={"sha256": "other"})
    assert not existing_store_matches(output, make_plan(other_data, *encoders, SMALL))
    assert not existing_store_matches(output, make_plan(dataset, FakeVision(name="b"), FakeText(), SMALL))
    assert not existing_store_matches(output, make_plan(dataset, *encoders, replace(SMALL, dtype=StoreDtype.float16)))
    output.write_bytes(output.read_bytes()[:4000])
    assert not existing_store_matches(output, make_plan(dataset, *encoders, SMALL))


def test_another_plan_is_refused_by_name_until_restarted(tmp_path):
    dataset, output = make_dataset(tmp_path / "data", images=70), tmp_path / "s.h5"
    unfinished(dataset, output, done=32)
    with pytest.raises(MismatchError, match=r"image_batch was 2, now 3.*--restart"):
        extract(dataset, output, config=replace(SMALL, batch_size=3))
    with pytest.raises(MismatchError, match=r"vision\.model was 'fake-vision', now 'b'"):
        extract(dataset, output, vision=FakeVision(name="b"))
    vision = FakeVision()
    extract(dataset, output, vision=vision, config=replace(SMALL, batch_size=3), restart=True)
    assert sum(vision.batches) == 70


def unfinished(dataset, output, *, stage=Stage.images, done, config=SMALL):
    """Leave an extraction once more than `done` is done of a stage, as an exception in the caller would."""
    running = run_extraction(dataset, FakeVision(), FakeText(), output, config, settings={})
    for event in running:
        if isinstance(event, Progress) and event.stage is stage and event.done > done:
            break
    running.close()
    assert not output.exists()


def test_the_same_command_goes_on_and_repeats_no_finished_shard(tmp_path):
    dataset = make_dataset(tmp_path / "data", images=100, repeat_image_every=9)
    (tmp_path / "data" / "00005.png").unlink()
    (tmp_path / "data" / "00006.png").write_bytes(b"x")
    _, undisturbed = extract(dataset, tmp_path / "whole.h5")
    unfinished(dataset, tmp_path / "s.h5", done=64)  # two shards of 32 rows, and some of the third
    vision = FakeVision()
    _, resumed = extract(dataset, tmp_path / "s.h5", vision=vision)
    assert resumed.resumed == 64
    assert sum(vision.batches) < 36
    assert resumed.content_hash == undisturbed.content_hash
    assert open_store(tmp_path / "s.h5").rejected == open_store(tmp_path / "whole.h5").rejected
    text = FakeText()
    unfinished(dataset, tmp_path / "t.h5", stage=Stage.texts, done=128)
    _, again = extract(dataset, tmp_path / "t.h5", text=text)
    assert 0 < sum(map(len, text.batches)) < undisturbed.distinct_captions
    assert again.content_hash == undisturbed.content_hash


@pytest.mark.parametrize("damage", ["latents", "record"])
def test_a_damaged_shard_is_made_again(tmp_path, damage):
    dataset = make_dataset(tmp_path / "data", images=70)
    _, undisturbed = extract(dataset, tmp_path / "whole.h5")
    unfinished(dataset, tmp_path / "s.h5", done=64)
    partial = tmp_path / "s.h5.partial"
    if damage == "latents":
        raw = bytearray((partial / "images-000000.npy").read_bytes())
        raw[-1] ^= 1
        (partial / "images-000000.npy").write_bytes(raw)
    else:
        (partial / "images-000000.json").write_text("{")
    vision = FakeVision()
    _, again = extract(dataset, tmp_path / "s.h5", vision=vision)
    assert 32 <= sum(vision.batches) < 70
    assert again.content_hash == undisturbed.content_hash


def test_two_extractions_of_one_store_do_not_meet(tmp_path):
    dataset, output = make_dataset(tmp_path / "data", images=70), tmp_path / "s.h5"
    first = run_extraction(dataset, FakeVision(), FakeText(), output, SMALL, settings={})
    next(first)
    with pytest.raises(DataError, match="another process"):
        extract(dataset, output)
    with pytest.raises(DataError, match="another process"):
        extract(dataset, output, restart=True)
    assert isinstance(list(first)[-1], Finished)
    assert len(open_store(output).image_id) == 70


def test_an_interrupt_stops_the_workers_and_leaves_what_is_finished(tmp_path):
    dataset, output = make_dataset(tmp_path / "data", images=70), tmp_path / "s.h5"
    config = replace(SMALL, workers=1)
    running = run_extraction(dataset, FakeVision(), FakeText(), output, config, settings={})
    while next(running).done <= 32:
        pass
    with pytest.raises(KeyboardInterrupt):
        running.throw(KeyboardInterrupt())
    assert multiprocessing.active_children() == []
    _, resumed = extract(dataset, output)
    assert resumed.resumed == 32
