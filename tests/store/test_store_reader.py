"""A store gives back what was written, and says in one message what is wrong with one that was damaged."""

import shutil

import h5py
import numpy as np
import pytest
from support.fakes import concept, make_store

from alignvl_cli.errors import DataError
from alignvl_cli.store.reader import creation_counter, open_store
from alignvl_cli.store.schema import BLOCK_BYTES, DATASETS, FORMAT, Rejected


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A store whose latents fill several digest blocks."""
    folder = tmp_path_factory.mktemp("sound")
    return make_store(folder / "store.h5", images=600, dim=1024, captions_per_image=(0, 1, 3))


@pytest.fixture
def store_path(sound, tmp_path):
    return shutil.copy(sound, tmp_path / "store.h5")


def test_rows_come_back_as_written(tmp_path):
    captions = ["a dog", "a dög 🐕", "a dog", "", "x" * 100_000]
    rejected = [Rejected("lost", "lost.png", "No such file or directory")]
    path = make_store(
        tmp_path / "s.h5", images=3, captions_per_image=(2, 0, 3), captions=captions, dim=5, rejected=rejected
    )
    store = open_store(path)
    assert store.image_id == ["s0-item00000", "s0-item00001", "s0-item00002"]
    assert store.image_uri == [f"{name}.png" for name in store.image_id]
    assert store.image_label == ["label 0", "label 1", "label 2"]
    assert store.text_caption == captions
    assert store.text_image.tolist() == [0, 0, 2, 2, 2]
    assert store.rejected == rejected
    assert store.image_sha256.shape == (3, 32)
    np.testing.assert_array_equal(store.image_block(np.arange(3)), [concept(name, 5) for name in store.image_id])
    assert store.vision["about"] == {"id": "fake"}
    assert store.made_by["stage"] == "extract"


def test_a_path_may_be_a_string(store_path):
    assert open_store(str(store_path)).content_hash == open_store(store_path).content_hash
    assert open_store(str(store_path)).path == store_path


def test_latents_are_mapped_from_page_borders(sound):
    store = open_store(sound)
    for name, latent in (("image/latent", store.image_latent), ("text/latent", store.text_latent)):
        assert isinstance(latent, np.memmap)
        assert not latent.flags.writeable
        with h5py.File(sound) as file:
            dataset = file[name]
            assert (dataset.chunks, dataset.compression) == (None, None)
            assert dataset.id.get_offset() % 4096 == 0
            np.testing.assert_array_equal(latent, dataset[:])


def test_plain_h5py_reads_a_store(sound):
    with h5py.File(sound) as file:
        assert file.attrs["format"] == FORMAT
        assert file["image/id"].asstr()[1] == "s0-item00001"
        assert list(file["image/split"].attrs["names"]) == ["train", "val", "test"]
        assert all(f"digest/{name}" in file for name in DATASETS)


def test_a_split_has_its_rows_and_positions_within_them(tmp_path):
    splits = ["test", "train", "test", "train", "val", "night"]
    store = open_store(make_store(tmp_path / "s.h5", images=6, captions_per_image=(1, 2, 3), splits=splits, dim=4))
    test = store.rows("test")
    assert test.image.tolist() == [0, 2]
    assert test.text.tolist() == [0, 3, 4, 5]
    assert test.text_image.tolist() == [0, 1, 1, 1]
    assert store.rows("night").image.tolist() == [5]
    everything = store.rows("all")
    assert everything.image.tolist() == list(range(6))
    assert everything.text_image.tolist() == store.text_image.tolist()
    assert store.split_sizes() == {"train": 2, "val": 1, "test": 2, "night": 1}


@pytest.mark.parametrize("absent", ["val", "nowhere"])
def test_an_absent_or_empty_split_names_those_there_are(tmp_path, absent):
    store = open_store(make_store(tmp_path / "s.h5", images=4, splits={"train": 0.5, "test": 0.5}, dim=4))
    with pytest.raises(DataError, match=rf"'{absent}'.*train \(2 images\), test \(2 images\)"):
        store.rows(absent)


def test_every_pair_is_found_again(tmp_path):
    store = open_store(make_store(tmp_path / "s.h5"))
    rows = store.rows("test")
    sim_TI = store.text_block(rows.text) @ store.image_block(rows.image).T
    assert (sim_TI.argmax(axis=1) == rows.text_image).all()


@pytest.mark.parametrize("rows", [slice(10, 20), np.arange(10, 20), np.array([599, 3, 3, 250]), np.array([], int)])
def test_a_block_equals_the_rows_of_the_file(sound, rows):
    block = open_store(sound).image_block(rows)
    with h5py.File(sound) as file:
        np.testing.assert_array_equal(block, file["image/latent"][:][rows])
    assert (block.dtype, block.flags.c_contiguous, block.flags.writeable) == (np.float32, True, True)


def test_rows_outside_are_a_bug_of_the_caller(sound):
    with pytest.raises(IndexError):
        open_store(sound).image_block(np.array([600]))


def overwrite_byte(path, name, offset):
    with h5py.File(path) as file:
        at = file[name].id.get_offset() + offset
    with open(path, "r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)
        stream.seek(at)
        stream.write(bytes([byte[0] ^ 1]))


def test_a_flipped_byte_is_noticed_when_its_block_is_loaded(store_path):
    overwrite_byte(store_path, "image/latent", BLOCK_BYTES + 5)  # rows 256 to 511
    store = open_store(store_path)
    np.testing.assert_array_equal(store.image_block(slice(0, 256)), store.image_latent[:256])
    np.testing.assert_array_equal(store.image_block(np.array([599])), store.image_latent[599:])
    with pytest.raises(DataError, match="image/latent, rows 256 to 511"):
        store.image_block(np.array([300]))
    with pytest.raises(DataError, match="damaged"):
        store.verify()


@pytest.mark.parametrize("name", ["image/split", "text/image"])
def test_a_flipped_byte_in_the_rows_is_noticed_on_opening(store_path, name):
    overwrite_byte(store_path, name, 0)
    with pytest.raises(DataError, match=name):
        open_store(store_path)


@pytest.mark.parametrize("name", ["image/sha256", "text/caption", "image/label", "rejected/reason"])
def test_verify_reads_every_column(tmp_path, name):
    path = make_store(tmp_path / "s.h5", images=5, dim=3, rejected=[Rejected("a", "b", "c")])
    open_store(path).verify()
    with h5py.File(path, "r+") as file:
        file[name][0] = "other" if name != "image/sha256" else file[name][0] ^ 1
    store = open_store(path)
    with pytest.raises(DataError, match=name):
        store.verify()


@pytest.mark.parametrize("name", ["made_by", "vision", "encoder_hash", "content_hash", "dataset"])
def test_a_changed_attribute_is_noticed_on_opening(store_path, name):
    with h5py.File(store_path, "r+") as file:
        file.attrs[name] = file.attrs[name].replace("a", "b") + " "
    with pytest.raises(DataError, match="attributes"):
        open_store(store_path)


def test_changed_split_names_are_noticed_on_opening(store_path):
    with h5py.File(store_path, "r+") as file:
        file["image/split"].attrs["names"] = ["test", "val", "train"]
    with pytest.raises(DataError, match="attributes"):
        open_store(store_path)


def rewrite(path, name, array, **attributes):
    with h5py.File(path, "r+") as file:
        del file[name]
        file.create_dataset(name, data=array)


BROKEN = {
    "a missing dataset": (lambda path: delete(path, "text/latent"), "not a complete store"),
    "no digests": (lambda path: delete(path, "digest"), "not a complete store"),
    "too few rows": (lambda path: rewrite(path, "image/split", np.zeros(3, np.uint8)), "/image/split has shape"),
    "latents of three dimensions": (lambda path: rewrite(path, "image/latent", np.zeros((2, 2, 2), "f4")), "has shape"),
    "latents in double precision": (lambda path: rewrite(path, "image/latent", np.zeros((600, 1024))), "float64"),
    "ids that are numbers": (lambda path: rewrite(path, "image/id", np.arange(600)), "holds int64, not text"),
    "a group for a dataset": (lambda path: group_for(path, "image/latent"), "/image/latent"),
    "another format": (lambda path: set_format(path, "something/1"), "not a store"),
    "a later version": (lambda path: set_format(path, "alignvl.store/9"), "alignvl.store/9, and this version reads"),
    "a format that is no text": (lambda path: set_format(path, 7), "not a store"),
    "half the file": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "truncated"),
    "the first 100 bytes": (lambda path: path.write_bytes(path.read_bytes()[:100]), "truncated"),
    "a text file": (lambda path: path.write_text("not a store\n"), "not a store"),
    "an empty file": (lambda path: path.write_bytes(b""), "not a store"),
}


def delete(path, name):
    with h5py.File(path, "r+") as file:
        del file[name]


def group_for(path, name):
    with h5py.File(path, "r+") as file:
        del file[name]
        file.create_group(name)


def set_format(path, value):
    with h5py.File(path, "r+") as file:
        file.attrs["format"] = value


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_store_is_one_clear_error(store_path, how):
    damage, message = BROKEN[how]
    damage(store_path)
    with pytest.raises(DataError, match=message) as caught:
        open_store(store_path)
    assert str(store_path) in str(caught.value)


def test_a_missing_store_tells_of_its_unfinished_one(tmp_path):
    with pytest.raises(DataError, match=r"no such store; `alignvl extract` makes one, `alignvl inspect`"):
        open_store(tmp_path / "s.h5")
    (tmp_path / "s.h5.partial").mkdir()
    with pytest.raises(DataError, match="unfinished"):
        open_store(tmp_path / "s.h5")
    with pytest.raises(DataError, match="not a file"):
        open_store(tmp_path / "s.h5.partial")


def resealed(path, monkeypatch, **change):
    """A store whose digests hold although its rows are wrong: written with the writer's own checks off."""
    monkeypatch.setattr("alignvl_cli.store.writer._check_rows", lambda rows: None)
    return make_store(path, images=4, captions_per_image=(1,), dim=3, **change)


def test_latents_that_are_not_finite_are_refused_with_their_row(tmp_path, monkeypatch):
    latent = np.ones((4, 3), np.float32)
    latent[2, 1] = np.nan
    monkeypatch.setattr("alignvl_cli.store.writer._Writer._cast", lambda self, name, block, *rest: block)
    store = open_store(make_store(tmp_path / "s.h5", images=4, captions_per_image=(1,), dim=3, image_latent=latent))
    assert store.image_block(np.array([0, 1, 3])).tolist() == np.ones((3, 3)).tolist()
    with pytest.raises(DataError, match=r"row 2 \(image 's0-item00002'\) is not finite"):
        store.image_block(slice(None))


def test_row_pointers_and_ids_are_checked_on_opening(tmp_path, monkeypatch):
    monkeypatch.setattr("support.fakes.np.repeat", lambda rows, counts: np.array([0, 1, 2, 9]))
    latent = np.ones((4, 3), np.float32)
    path = resealed(tmp_path / "pointer.h5", monkeypatch, text_latent=latent, captions=list("abcd"))
    with pytest.raises(DataError, match="text/image"):
        open_store(path)


def test_split_codes_are_checked_on_opening(tmp_path, monkeypatch):
    monkeypatch.setattr("support.fakes._split_codes", lambda splits, images: (["train"], [0, 0, 1, 0]))
    with pytest.raises(DataError, match="/image/split holds 1"):
        open_store(resealed(tmp_path / "s.h5", monkeypatch))


def test_the_counter_is_read_without_the_rows(store_path, tmp_path):
    assert creation_counter(store_path) == 0
    assert creation_counter(make_store(tmp_path / "seventh.h5", images=3, dim=2, counter=7)) == 7
    store_path.write_bytes(store_path.read_bytes()[:5000])
    assert creation_counter(store_path) is None
    assert creation_counter(tmp_path / "absent.h5") is None


def test_half_precision_is_widened(tmp_path):
    from alignvl_cli.settings import StoreDtype

    store = open_store(make_store(tmp_path / "s.h5", images=4, dim=6, dtype=StoreDtype.float16))
    assert store.image_latent.dtype == np.float16
    block = store.image_block(slice(None))
    assert block.dtype == np.float32
    expected = np.stack([concept(name, 6) for name in store.image_id])
    np.testing.assert_allclose(block, expected, rtol=2**-11)


def test_a_store_of_other_layout_is_read_too(store_path):
    """Chunked latents, as another tool may rewrite them, cannot be mapped, but hold the same bytes."""
    before = open_store(store_path)
    latent = before.image_block(slice(None))
    with h5py.File(store_path, "r+") as file:
        del file["image/latent"]
        file.create_dataset("image/latent", data=latent, chunks=(64, 1024), compression="gzip")
    after = open_store(store_path)
    assert not isinstance(after.image_latent, np.memmap)
    np.testing.assert_array_equal(after.image_block(slice(None)), latent)
    assert after.content_hash == before.content_hash
