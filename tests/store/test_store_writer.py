"""Whole or absent, checked before it is written, and hashed by what it holds."""

import os
import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from support.fakes import make_store

from alignvl_cli.errors import DataError
from alignvl_cli.settings import StoreDtype
from alignvl_cli.store import schema
from alignvl_cli.store.reader import open_store
from alignvl_cli.store.writer import StoreAbout, StoreRows, write_store

ABOUT = StoreAbout(vision={}, text={}, encoder_hash="e", dataset={}, made_by={})


def rows(**change):
    columns = {
        "image_id": ["a", "b"],
        "image_uri": ["a.png", "b.png"],
        "image_label": ["", ""],
        "image_sha256": np.zeros((2, 32), np.uint8),
        "image_split": [0, 1],
        "split_names": ["train", "val", "test"],
        "text_image": [0, 1, 1],
        "text_caption": ["one", "two", "three"],
    }
    return StoreRows(**(columns | change))


def write(path, *, about=ABOUT, dtype=StoreDtype.float32, images=None, texts=None, **change):
    images = [np.ones((2, 4), np.float32)] if images is None else images
    texts = [np.ones((3, 5), np.float32)] if texts is None else texts
    return write_store(path, rows(**change), about, images, texts, dtype=dtype)


def test_blocks_of_any_length_give_the_same_store(tmp_path):
    latent = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    whole = write(tmp_path / "whole.h5", images=[latent])
    parts = write(tmp_path / "parts.h5", images=iter([latent[:1], latent[:0], latent[1:]]))
    assert whole.content_hash == parts.content_hash
    np.testing.assert_array_equal(open_store(tmp_path / "parts.h5").image_block(slice(None)), latent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": []}, "no image"),
        ({"text_caption": []}, "no caption at all"),
        ({"image_id": ["a", "a"]}, "share the id 'a'"),
        ({"text_caption": ["one", "t\0wo", "three"]}, "/text/caption holds a NUL"),
        ({"image_uri": ["a.png", "\udcff.png"]}, "/image/uri holds text that is not Unicode"),
        ({"split_names": [str(n) for n in range(257)]}, "257 splits"),
        ({"images": [np.array([[1, 2], [3, np.nan]], np.float32)]}, r"row 1 \('b'\) is not finite"),
        ({"texts": [np.full((3, 1), np.inf, np.float32)]}, r"row 0 \('one'\) is not finite"),
    ],
)
def test_what_no_store_may_hold_is_refused_and_leaves_nothing(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        write(tmp_path / "s.h5", **change)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"images": []},
        {"images": [np.ones((1, 4), np.float32)]},
        {"images": [np.ones((3, 4), np.float32)]},
        {"images": [np.ones((1, 4), np.float32), np.ones((1, 5), np.float32)]},
        {"image_uri": ["a.png"]},
        {"text_image": [0, 1, 2]},
        {"image_split": [0, 3]},
    ],
)
def test_rows_that_do_not_fit_are_a_bug_of_the_caller(tmp_path, change):
    with pytest.raises(ValueError, match=r"rows|block|past"):
        write(tmp_path / "s.h5", **change)
    assert list(tmp_path.iterdir()) == []


def test_the_content_hash_is_of_rows_and_latents_alone(tmp_path):
    first = write(tmp_path / "a.h5")
    other_maker = StoreAbout(vision={}, text={}, encoder_hash="e", dataset={"other": 1}, made_by={"by": "another"})
    same = write(tmp_path / "b.h5", about=other_maker, image_uri=["elsewhere/a.png", "elsewhere/b.png"])
    assert same.content_hash == first.content_hash == open_store(tmp_path / "b.h5").content_hash
    assert open_store(tmp_path / "a.h5").digest != open_store(tmp_path / "b.h5").digest
    latent = np.ones((2, 4), np.float32)
    latent[1, 1] = np.nextafter(np.float32(1), np.float32(2))
    changes = [
        {"images": [latent]},
        {"image_id": ["a", "c"]},
        {"image_split": [0, 0]},
        {"text_caption": ["one", "twothree", ""]},
        {"text_caption": ["onet", "wo", "three"]},
        {"text_image": [0, 0, 1]},
        {"split_names": ["val", "train", "test"]},
        {"dtype": StoreDtype.float16},
    ]
    hashes = {write(tmp_path / "c.h5", **change).content_hash for change in changes}
    assert len(hashes | {first.content_hash}) == len(changes) + 1


def test_half_precision_says_what_rounding_it_cost(tmp_path):
    latent = np.array([[1.0, 1 + 2**-11], [0.0, 1000.25]], np.float32)
    written = write(tmp_path / "s.h5", images=[latent], dtype=StoreDtype.float16)
    assert written.rounding_error == 0.25
    assert write(tmp_path / "t.h5", images=[latent]).rounding_error is None


def test_half_precision_refuses_what_it_cannot_hold(tmp_path):
    latent = np.array([[1.0, 2.0], [0.0, -65_505.0]], np.float32)
    with pytest.raises(DataError, match=r"row 1 \('b'\) is beyond float16.*--dtype float32"):
        write(tmp_path / "s.h5", images=[latent], dtype=StoreDtype.float16)


def test_a_writer_that_is_killed_leaves_the_former_store(tmp_path):
    path = make_store(tmp_path / "s.h5", images=3, dim=2, seed=1)
    before = path.read_bytes()
    code = f"""
import sys, os, signal
import alignvl_cli.store.writer as writer
from support import fakes
writer._Writer.attributes = lambda *given: os.kill(os.getpid(), signal.SIGKILL)
fakes.make_store(fakes.Path({str(path)!r}), images=50, dim=200, seed=2)
"""
    killed = subprocess.run([sys.executable, "-c", code])
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    assert open_store(path).image_id[0] == "s1-item00000"


@given(st.lists(st.binary(max_size=3 * schema.BLOCK_BYTES // 8), max_size=40))
def test_block_digests_do_not_depend_on_how_the_bytes_arrive(pieces):
    digest = schema.BlockDigest()
    for piece in pieces:
        digest.update(piece)
    stream = b"".join(pieces)
    starts = range(0, len(stream), schema.BLOCK_BYTES)
    expected = [xxhash.xxh3_64_intdigest(stream[start : start + schema.BLOCK_BYTES]) for start in starts]
    assert digest.finish().tolist() == expected


def test_digests_in_the_file_are_of_the_bytes_in_the_file(tmp_path):
    path = make_store(tmp_path / "s.h5", images=300, dim=1000)
    raw = path.read_bytes()
    with h5py.File(path) as file:
        start, size = file["image/latent"].id.get_offset(), 300 * 1000 * 4
        stored = file["digest/image/latent"][:].tolist()
    latent = raw[start : start + size]
    assert stored == [xxhash.xxh3_64_intdigest(latent[at : at + 2**20]) for at in range(0, size, 2**20)]
    assert len(stored) == 2


def test_the_string_digest_follows_its_definition():
    column = ["a", "", "ümlaut"]
    stream = np.array([1, 0, 7], "<u4").tobytes() + "aümlaut".encode()
    assert schema.digest_strings(column).tolist() == [xxhash.xxh3_64_intdigest(stream)]


def test_nothing_but_the_store_is_left(tmp_path):
    make_store(tmp_path / "s.h5", images=3, dim=2)
    assert os.listdir(tmp_path) == ["s.h5"]
