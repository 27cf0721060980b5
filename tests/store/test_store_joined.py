"""Several stores read as one: every column, block and split is that of the stores themselves."""

import pickle
from itertools import pairwise

import numpy as np
import pytest
from support.fakes import make_store, write_part

from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.store.joined import JoinedStore, join_stores, shared_images
from alignvl_cli.store.reader import open_store


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return open_store(make_store(folder / "whole.h5", images=90, dim=24, text_dim=16, captions_per_image=(2, 0, 3)))


def parts(whole, folder, sizes=(31, 2, 57)):
    edges = np.cumsum([0, *sizes])
    rows = [np.arange(start, stop) for start, stop in pairwise(edges)]
    return [open_store(write_part(whole, folder / f"part{n}.h5", row_N)) for n, row_N in enumerate(rows)]


def test_the_parts_of_a_store_joined_are_that_store(whole, tmp_path):
    joined = join_stores(parts(whole, tmp_path))
    for column in ("image_id", "image_uri", "text_caption", "split_names"):
        assert getattr(joined, column) == getattr(whole, column), column
    for column in ("image_sha256", "image_split", "text_image"):
        np.testing.assert_array_equal(getattr(joined, column), getattr(whole, column))
    assert joined.split_sizes() == whole.split_sizes()
    for split in ("all", "train", "val", "test"):
        for mine, its in zip(vars(joined.rows(split)).values(), vars(whole.rows(split)).values(), strict=True):
            np.testing.assert_array_equal(mine, its)


@pytest.mark.parametrize("seed", range(5))
def test_any_rows_in_any_order_are_those_of_the_whole(whole, tmp_path, seed):
    joined = join_stores(parts(whole, tmp_path))
    rng = np.random.default_rng(seed)
    for mine, its, total in (
        (joined.image_block, whole.image_block, len(whole.image_id)),
        (joined.text_block, whole.text_block, len(whole.text_caption)),
    ):
        row_N = rng.integers(0, total, int(rng.integers(0, 2 * total)))
        for rows in (row_N, np.sort(row_N), slice(None), slice(40, 50), slice(3, 20, 4), np.arange(0)):
            block = mine(rows)
            assert (block.dtype, block.flags.c_contiguous) == (np.float32, True)
            np.testing.assert_array_equal(block, its(rows))
        for rows in ([-1], [total], [0, total + 5]):
            with pytest.raises(IndexError, match="rows"):
                mine(np.array(rows))


def test_latents_are_read_and_verified_only_when_asked_for(whole, tmp_path):
    paths = [store.path for store in parts(whole, tmp_path)]
    data = bytearray(paths[2].read_bytes())
    place = data.index(whole.image_latent[89].tobytes())
    data[place] ^= 1
    paths[2].write_bytes(data)
    joined = join_stores([open_store(path) for path in paths])
    assert len(joined.rows("all").image) == 90
    joined.image_block(np.arange(33))
    with pytest.raises(DataError, match=r"part2\.h5: damaged in /image/latent"):
        joined.image_block(np.arange(90))


def test_splits_of_other_names_keep_them_and_one_that_none_has_is_told_with_those_there_are(tmp_path):
    stores = [
        open_store(make_store(tmp_path / "a.h5", images=4, splits=["val", "test", "dev", "dev"], seed=1)),
        open_store(make_store(tmp_path / "b.h5", images=3, splits=["extra", "test", "train"], seed=2)),
    ]
    joined = join_stores(stores)
    named = [joined.split_names[code] for code in joined.image_split]
    assert named == ["val", "test", "dev", "dev", "extra", "test", "train"]
    assert joined.split_sizes() == {"val": 1, "test": 2, "dev": 2, "extra": 1, "train": 1}
    assert joined.rows("test").image.tolist() == [1, 5]
    assert joined.rows("val").image.tolist() == [0], "of the stores that have it"
    with pytest.raises(DataError, match=r"a\.h5 and .*b\.h5: no image in a split 'dev2'; .* val \(1 images\), test"):
        joined.rows("dev2")


def test_an_id_of_two_stores_has_their_names_before_it_and_the_others_stay(whole, tmp_path):
    (tmp_path / "more").mkdir()
    ids = [["1", "2", "photos:3"], ["2", "3", "4"], ["2", "3", "5"]]
    names = ["photos.h5", "more/photos.h5", "b.h5"]
    stores = [
        open_store(write_part(whole, tmp_path / name, np.arange(3 * n, 3 * n + 3), ids=ids[n]))
        for n, name in enumerate(names)
    ]
    joined = join_stores(stores)
    assert joined.names == ("photos", "photos-2", "b")
    assert joined.image_id == ["1", "photos:2", "photos:3", "photos-2:2", "photos-2:3", "4", "b:2", "b:3", "5"]
    assert joined.repeated_ids == {"2", "3"}
    there = open_store(write_part(whole, tmp_path / "c.h5", np.arange(3), ids=["photos:2", "photos-2:2", "2"]))
    assert join_stores([stores[0], there]).image_id == ["1", "photos-3:2", "photos:3", "photos:2", "photos-2:2", "c:2"]


def test_what_is_joined_is_told_by_its_contents_and_order(whole, tmp_path):
    first, second, third = parts(whole, tmp_path)
    again = open_store(write_part(whole, tmp_path / "other-name.h5", np.arange(31)))
    assert join_stores([first]) is first
    assert JoinedStore((first, second)).content_hash == JoinedStore((again, second)).content_hash
    hashes = {JoinedStore(one).content_hash for one in ((first, second), (second, first), (first, third), (first,))}
    assert len({*hashes, first.content_hash}) == 5
    copy = pickle.loads(pickle.dumps(JoinedStore((first, second))))
    np.testing.assert_array_equal(copy.image_block(slice(None)), whole.image_block(np.arange(33)))


def test_the_same_store_twice_and_no_store_are_refused(whole, tmp_path):
    first, second, _ = parts(whole, tmp_path)
    again = open_store(write_part(whole, tmp_path / "again.h5", np.arange(31)))
    with pytest.raises(UsageError, match=r"part0\.h5 and .*again\.h5 hold the same pairs: name one of them"):
        join_stores([first, second, again])
    with pytest.raises(UsageError, match="none is named"):
        join_stores([])


def test_validation_images_of_all_are_compared_with_training_images(tmp_path):
    splits = ["train", "train", "val", "test"], ["val", "val", "train", "val"]
    stores = [
        open_store(make_store(tmp_path / f"{n}.h5", images=4, splits=names, seed=1)) for n, names in enumerate(splits)
    ]
    joined = join_stores(stores)
    assert shared_images(stores[:1], "train", joined, "val") == 2
    assert shared_images(stores, "train", joined, "val") == 3
    assert shared_images([], "train", joined, "val") == 0
