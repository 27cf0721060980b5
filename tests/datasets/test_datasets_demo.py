import hashlib
import io
import tarfile
from collections import Counter

import pytest
from PIL import Image

from alignvl_cli.datasets import demo
from alignvl_cli.datasets.formats import open_dataset
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.settings import DatasetOptions


@pytest.fixture(scope="module")
def emoji():
    return open_dataset("demo:emoji", DatasetOptions())


def opened(item):
    return Image.open(io.BytesIO(item.source.read()))


def on_white(item):
    image = opened(item).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    return white.convert("RGB").tobytes()


def test_size_and_fixed_split(emoji):
    assert len(emoji.items) == 1911
    assert Counter(item.split for item in emoji.items) == {"train": 1311, "val": 200, "test": 400}
    assert len({item.label for item in emoji.items}) == 10
    assert len({item.id for item in emoji.items}) == 1911
    assert emoji.name == "demo-emoji"
    assert emoji.cleaned_captions == 0


def test_the_tar_stays_small_and_is_what_the_record_says(emoji):
    (path,) = {item.source.path for item in emoji.items}
    data = path.read_bytes()
    assert len(data) <= 9_000_000
    assert emoji.record["sha256"] == hashlib.sha256(data).hexdigest()


def test_every_picture_opens_and_sources_point_at_the_members(emoji):
    with tarfile.open(emoji.items[0].source.path) as archive:
        members = [member for member in archive if member.name.endswith(".webp")]
        assert [member.name.removesuffix(".webp") for member in members] == [item.id for item in emoji.items]
        for member, item in zip(members, emoji.items, strict=True):
            stream = archive.extractfile(member)
            assert stream is not None
            assert stream.read() == item.source.read()
            assert opened(item).size == (64, 64)


def test_two_or_three_different_captions_each(emoji):
    for item in emoji.items:
        assert 2 <= len(item.captions) <= 3
        assert len({caption.casefold() for caption in item.captions}) == len(item.captions)
        assert all(caption == caption.strip() != "" and "\ufe0f" not in caption[:1] for caption in item.captions)


def test_known_pictures(emoji):
    captions = {item.id.split("-", 1)[1]: item.captions for item in emoji.items}
    assert captions["red-heart"] == (
        "red heart",
        "emotion, heart, love, red",
        "red heart, love, like, valentines, black, heavy",
    )
    assert captions["andorra-flag"] == (
        "Andorra Flag",
        "flag andorra, ad, flag, nation, country, banner, andorra, andorran",
    )
    assert "man: red hair" in captions["man-red-hair"]


def test_no_picture_and_no_caption_stands_in_two_splits(emoji):
    for things in (lambda item: [on_white(item)], lambda item: [c.casefold() for c in item.captions]):
        splits = {}
        for item in emoji.items:
            for thing in things(item):
                splits.setdefault(thing, set()).add(item.split)
        assert all(len(found) == 1 for found in splits.values())


@pytest.mark.parametrize(
    "variants",
    [
        ("firefighter", "man-firefighter", "woman-firefighter"),
        ("man", "woman", "person", "man-red-hair", "woman-bald", "woman-blond-hair", "person-beard"),
        ("person-walking", "man-walking", "woman-walking-facing-right"),
        ("family", "family-man-woman-boy", "family-adult-child"),
        ("prince", "princess", "person-with-crown"),
        ("santa-claus", "mrs-claus", "mx-claus"),
        ("kiss", "kiss-man-man", "kiss-woman-man"),
        ("women-holding-hands", "people-holding-hands"),
        ("thumbs-up", "thumbs-down"),
        ("light-skin-tone", "dark-skin-tone"),
        ("norway-flag", "bouvet-island-flag"),
    ],
)
def test_variants_of_a_concept_share_a_split(emoji, variants):
    splits = {item.id.split("-", 1)[1]: item.split for item in emoji.items}
    assert len({splits[name] for name in variants}) == 1


def test_each_large_category_has_its_share_of_the_test_split(emoji):
    images = Counter(item.label for item in emoji.items)
    test = Counter(item.label for item in emoji.items if item.split == "test")
    for label, count in images.items():
        if count > 50:
            assert test[label] / count == pytest.approx(400 / 1911, abs=0.03)


def test_licences_travel_with_the_data(emoji):
    text = emoji.items[0].source.path.with_name("LICENSES.txt").read_text(encoding="utf-8")
    for needed in ("Apache License", "Version 2.0, January 2004", "UNICODE LICENSE V3", "Mu-An Chiou", "Cal Henderson"):
        assert needed in text


def test_another_demo_is_a_usage_error_that_lists_those_there_are():
    with pytest.raises(UsageError, match=r"demo:birds.*demo:emoji"):
        open_dataset("demo:birds", DatasetOptions())


def test_manifest_options_do_not_go_with_a_demo(tmp_path):
    with pytest.raises(UsageError, match="--image-root"):
        open_dataset("demo:emoji", DatasetOptions(image_root=tmp_path))


@pytest.mark.parametrize("content", [None, b"", b"no tar at all" * 100])
def test_a_damaged_installation(tmp_path, monkeypatch, content):
    (tmp_path / "emoji").mkdir()
    if content is not None:
        (tmp_path / "emoji" / "emoji.tar").write_bytes(content)
    monkeypatch.setattr(demo.resources, "files", lambda package: tmp_path)
    with pytest.raises(DataError, match="missing or damaged"):
        open_dataset("demo:emoji", DatasetOptions())
