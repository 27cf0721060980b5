import io
import random

import numpy as np
import pytest
from PIL import Image, ImageDraw
from support.fakes import FakeText

from alignvl_cli.datasets.check import (
    HASH_BYTES,
    MOST_BITS,
    MOST_COLOUR,
    CheckProgress,
    DataReport,
    check_dataset,
    hash_pictures,
    near_groups,
    signature_of,
)
from alignvl_cli.datasets.dataset import MOST_BYTES, Dataset, ImageSource, Item
from alignvl_cli.encoders.decoding import decode_image
from alignvl_cli.errors import DataError


def scene(seed, size=(160, 120)):
    """A picture of coloured shapes, another for each seed."""
    draw_from = random.Random(seed)
    image = Image.new("RGB", size, tuple(draw_from.randrange(256) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = draw_from.randrange(size[0]), draw_from.randrange(size[1])
        box = (x, y, x + draw_from.randrange(20, 70), y + draw_from.randrange(20, 70))
        draw.ellipse(box, fill=tuple(draw_from.randrange(256) for _ in range(3)))
    return image


def encoded(image, form="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def dataset_of(folder, rows, **more):
    """A dataset of (id, bytes or None for a missing file, captions, split)."""
    items = []
    for name, data, captions, split in rows:
        path = folder / name
        if data is not None:
            path.write_bytes(data)
        items.append(Item(name, str(path), tuple(captions), split, "", ImageSource(path)))
    return Dataset("d", {}, items, **more)


def check(dataset, **changes):
    settings = {"max_pixels": 10**6, "max_rejected": 0.0, "workers": 0} | changes
    *progress, report = check_dataset(dataset, decode_image, **settings)
    assert all(isinstance(record, CheckProgress) for record in progress)
    assert progress[-1].done == progress[-1].total == len(dataset.items)
    assert isinstance(report, DataReport)
    return report


def ids(groups):
    return [[member.id for member in group] for group in groups]


def test_files_and_duplicates_within_and_across_splits(tmp_path):
    one, two, three = scene(1), scene(2), scene(3)
    rows = [
        ("one.png", encoded(one), ["a"], "train"),
        ("two.png", encoded(two), ["b"], "train"),
        ("one again.png", encoded(one), ["c"], "test"),
        ("two.jpg", encoded(two, "JPEG", quality=80), ["d"], "train"),
        ("three.png", encoded(three), ["e"], "val"),
        ("three small.jpg", encoded(three.resize((80, 60)), "JPEG"), ["f"], "test"),
        ("red.png", encoded(Image.new("RGB", (9, 9), "red")), ["g"], "train"),
        ("blue.png", encoded(Image.new("RGB", (9, 9), "blue")), ["h"], "train"),
        ("absent.png", None, ["i"], "train"),
        ("page.png", b"<html>no</html>", ["j"], "train"),
        ("large.png", encoded(Image.new("1", (2000, 1000))), ["k"], "train"),
    ]
    report = check(dataset_of(tmp_path, rows))
    assert (report.images, report.rejected) == (11, 3)
    assert [(bad.id, bad.reason) for bad in report.missing] == [("absent.png", "No such file or directory")]
    assert [bad.id for bad in report.unreadable] == ["page.png", "large.png"]
    assert "HTML" in report.unreadable[0].reason
    assert "--max-pixels" in report.unreadable[1].reason
    assert report.splits == {"train": 5, "val": 1, "test": 2}
    assert ids(report.exact.groups) == ids(report.exact.across) == [["one.png", "one again.png"]]
    assert ids(report.near.groups) == [["two.png", "two.jpg"], ["three.png", "three small.jpg"]]
    assert ids(report.near.across) == [["three.png", "three small.jpg"]]
    assert report.plain == 2


def test_caption_statistics_count_by_hand(tmp_path):
    rows = [
        ("a.png", encoded(scene(1)), ["one two three", "same"], "train"),
        ("b.png", encoded(scene(2)), ["same", "same", "in both"], "train"),
        ("c.png", encoded(scene(3)), ["in both", "x " * 20], "test"),
        ("d.png", encoded(scene(4)), [], "test"),
        ("gone.png", None, ["not counted"], "test"),
    ]
    found = check(
        dataset_of(tmp_path, rows, blank_captions=4, cleaned_captions=5), text=FakeText(max_length=12)
    ).captions
    assert (found.count, found.distinct) == (7, 4)
    assert (found.per_image.least, found.per_image.middle, found.per_image.most) == (0, 7 / 4, 3)
    assert (found.words.least, found.words.middle, found.words.most) == (1, 2, 20)
    assert (found.repeated_within, found.repeated_across) == (2, 1)
    assert (found.images_without, found.blank, found.cleaned) == (1, 4, 5)
    assert found.truncation is not None
    assert (found.truncation.captions, found.truncation.longest, found.truncation.max_length) == (1, 20, 12)
    assert check(dataset_of(tmp_path, rows)).captions.truncation is None


@pytest.mark.parametrize(("lost", "share", "too_many"), [(10, 0.0, False), (11, 0.0, True), (11, 0.5, False)])
def test_ten_images_may_always_be_unreadable(tmp_path, lost, share, too_many):
    rows = [(f"{n}.png", None if n < lost else encoded(scene(n)), ["x"], None) for n in range(24)]
    assert check(dataset_of(tmp_path, rows), max_rejected=share).too_many_rejected is too_many


def test_undeclared_splits_are_those_of_an_extraction_and_said(tmp_path):
    report = check(
        dataset_of(tmp_path, [(f"{n}.png", encoded(scene(n)), ["x"], None) for n in range(40)], notes=("hm",))
    )
    assert sum(report.splits.values()) == 40
    assert report.notes[0] == "hm"
    assert "80/10/10" in report.notes[1]


def test_a_file_longer_than_any_picture_is_not_read(tmp_path):
    dataset = dataset_of(tmp_path, [("good", encoded(scene(1)), ["a"], None), ("long", b"", ["b"], None)])
    with open(tmp_path / "long", "wb") as stream:
        stream.truncate(MOST_BYTES + 1)
    (bad,) = check(dataset).unreadable
    assert bad.id == "long"
    assert "bytes long, more than" in bad.reason


@pytest.mark.slow
def test_worker_processes_find_the_same(tmp_path):
    dataset = dataset_of(tmp_path, [(f"{n}.png", encoded(scene(n % 30)), ["x"], "train") for n in range(40)])
    assert check(dataset, workers=1) == check(dataset)


def test_not_one_readable_image_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"none of the 2 images can be read; the first, .*0\.png: No such file"):
        check(dataset_of(tmp_path, [(f"{n}.png", None, ["x"], None) for n in range(2)]))


def test_a_signature_survives_scaling_and_jpeg_and_tells_colours_apart():
    for seed in range(20):
        picture = scene(seed)
        for copy in (picture.resize((80, 60)), Image.open(io.BytesIO(encoded(picture, "JPEG", quality=75)))):
            assert near_groups([signature_of(picture), signature_of(copy)]) == [[0, 1]]
    red, blue = (Image.new("RGB", (64, 64), "white") for _ in range(2))
    for image, colour in ((red, "#d02020"), (blue, "#2020f0")):
        ImageDraw.Draw(image).ellipse((10, 20, 50, 60), fill=colour)
    assert near_groups([signature_of(red), signature_of(blue)]) == []
    assert signature_of(Image.new("RGB", (50, 50), "red")) is None


def test_a_folder_in_place_of_a_picture_is_unreadable(tmp_path):
    (problem,) = hash_pictures([ImageSource(tmp_path)], decode_image, 100)
    assert (problem.is_missing, "not a regular file" in problem.reason) == (False, True)


def brute_force(signatures):
    """Groups by comparing each with each."""
    table = np.frombuffer(b"".join(signatures), np.uint8).reshape(len(signatures), -1)
    group = list(range(len(table)))
    for i in range(len(table)):
        for j in range(i):
            bits = np.unpackbits(table[i, :HASH_BYTES] ^ table[j, :HASH_BYTES]).sum()
            colour = np.abs(table[i, HASH_BYTES:].astype(int) - table[j, HASH_BYTES:]).max()
            if bits <= MOST_BITS and colour <= MOST_COLOUR and group[i] != group[j]:
                group = [group[j] if one == group[i] else one for one in group]
    members = [[row for row, one in enumerate(group) if one == name] for name in set(group)]
    return sorted(rows for rows in members if len(rows) > 1)


@pytest.mark.parametrize("seed", range(6))
def test_bands_find_what_brute_force_finds(seed):
    rng = np.random.default_rng(seed)
    seeds = rng.integers(0, 256, (15, 56), dtype=np.uint8)
    seeds[::3, :HASH_BYTES] = seeds[0, :HASH_BYTES]  # one layout in many colours
    table = seeds[rng.integers(0, len(seeds), 150)]
    bits = rng.random((150, 64)) < rng.choice([0, 0.03, 0.08, 0.12], (150, 1))
    table[:, :HASH_BYTES] ^= np.packbits(bits, axis=1)
    moved = table[:, HASH_BYTES:].astype(int) + rng.integers(-6, 7, (150, 48)) * rng.choice([1, 1, 1, 2], (150, 1))
    table[:, HASH_BYTES:] = np.clip(moved, 0, 255).astype(np.uint8)
    signatures = [row.tobytes() for row in table]
    found = near_groups(signatures)
    assert found == brute_force(signatures)
    assert len(found) > 3


def test_limits_are_inclusive_and_no_signature_is_no_group():
    zero = np.zeros(56, np.uint8)

    def changed(bits, colour):
        signature = zero.copy()
        signature[:HASH_BYTES] = np.packbits([1] * bits + [0] * (64 - bits))
        signature[-1] = colour
        return signature.tobytes()

    assert near_groups([zero.tobytes(), changed(MOST_BITS, MOST_COLOUR)]) == [[0, 1]]
    assert near_groups([zero.tobytes(), changed(MOST_BITS + 1, 0)]) == []
    assert near_groups([zero.tobytes(), changed(0, MOST_COLOUR + 1)]) == []
    assert near_groups([zero.tobytes()] * 3) == [[0, 1, 2]]
    assert near_groups([]) == []
