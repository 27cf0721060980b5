"""An index of several stores: what it finds is what an index of the one store finds that has all of their rows."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from pyarrow import parquet
from support.fake_runs import make_run
from support.fakes import make_store, write_part

from alignvl_cli import Like, build_index, search
from alignvl_cli.artifacts import read_json, write_json
from alignvl_cli.errors import DataError, MismatchError, UsageError
from alignvl_cli.retrieval.dual_encoder import DualEncoder
from alignvl_cli.retrieval.index import IndexRecord, StoreBehind, open_index, store_behind
from alignvl_cli.retrieval.search import exact_scores, scoring
from alignvl_cli.retrieval.search import search as ask
from alignvl_cli.settings import Gallery, HubCorrection
from alignvl_cli.store.joined import join_stores
from alignvl_cli.store.reader import open_store
from alignvl_cli.training.run_folder import load_run


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """A store, its even and its odd images as two stores, and a run of it."""
    folder = tmp_path_factory.mktemp("halves")
    store = open_store(make_store(folder / "whole.h5", images=150, captions_per_image=(2, 0, 3), noise=2.5))
    parts = [
        open_store(write_part(store, folder / f"{name}.h5", np.arange(start, 150, 2)))
        for start, name in enumerate(("even", "odd"))
    ]
    return load_run(make_run(folder / "run", store)), store, parts


def found(index, encoder, store, of, rescore=None):
    """Every hit of some queries of the whole store: (id, caption) -> score, in the order of the hits."""
    rows = store.rows("test")
    by_text, by_image = store.text_block(rows.text[:20]), store.image_block(rows.image[:20])
    queries = encoder.project_text(by_text) if of is Gallery.image else encoder.project_image(by_image)
    hits = ask(index, encoder, queries, k=400, of=of, rescore=rescore)
    return [{(hit.id, hit.caption): hit.score for hit in one} for one in hits]


@pytest.mark.parametrize("split", ["all", "test"])
@pytest.mark.parametrize("correction", [None, HubCorrection.nnn])
@pytest.mark.parametrize("of", Gallery)
def test_two_halves_are_searched_as_the_whole(tmp_path, halves, split, correction, of):
    run, store, parts = halves
    encoder = DualEncoder(run, "cpu")
    whole = build_index(run, store, output=tmp_path / "whole", split=split, hubness=correction)
    joined = build_index(run, parts, output=tmp_path / "joined", split=split, hubness=correction)
    assert joined.record.hubness == whole.record.hubness
    assert (joined.record.images, joined.record.captions) == (whole.record.images, whole.record.captions)
    for mine, its in zip(found(joined, encoder, store, of), found(whole, encoder, store, of), strict=True):
        assert list(mine) == list(its)
        np.testing.assert_allclose([*mine.values()], [*its.values()], atol=1e-6)


@pytest.mark.parametrize("correction", [None, HubCorrection.nnn])
@pytest.mark.parametrize("of", Gallery)
def test_compressed_vectors_are_rescored_from_the_stores(tmp_path, halves, correction, of):
    run, store, parts = halves
    encoder = DualEncoder(run, "cpu")
    whole = build_index(run, store, output=tmp_path / "whole", factory="Flat", hubness=correction)
    joined = build_index(run, parts, output=tmp_path / "joined", factory="SQ4", hubness=correction)
    behind = store_behind(joined.record, lambda content_hash, path: open_store(path))
    rescore, approximate = scoring(joined, encoder, of, lambda: behind)
    assert approximate == ""
    assert behind.missing == ()
    raw = found(joined, encoder, store, of)
    mine, its = found(joined, encoder, store, of, rescore), found(whole, encoder, store, of)
    for one, exact, rough in zip(mine, its, raw, strict=True):
        assert one == pytest.approx(exact, abs=1e-5)
        assert rough != pytest.approx(exact, abs=1e-4), "or nothing was compressed"


def test_precision_is_that_of_the_validation_split_of_both(tmp_path, halves):
    run, store, parts = halves
    whole = build_index(run, store, output=tmp_path / "whole", split="test").record.precision
    joined = build_index(run, parts, output=tmp_path / "joined", split="test").record.precision
    assert whole.keys() == joined.keys() == set(Gallery)
    for gallery, curve in whole.items():
        mine = joined[gallery]
        assert (mine.split, mine.queries, mine.gallery) == ("val", curve.queries, curve.gallery)
        assert mine.hits[0] == curve.hits[0]
        np.testing.assert_allclose(mine.precision, curve.precision)
        np.testing.assert_allclose(mine.score, curve.score, atol=2e-6)


def test_a_store_without_a_validation_split_has_no_part_in_what_it_tells(tmp_path, halves):
    run, _, (even, _) = halves
    other = open_store(make_store(tmp_path / "test.h5", images=20, splits=["test"] * 20, seed=5))
    alone = build_index(run, even, output=tmp_path / "alone", split="test", hubness="nnn").record
    both = build_index(run, [even, other], output=tmp_path / "both", split="test", hubness="nnn").record
    assert both.hubness == alone.hubness
    plain = build_index(run, [even, other], output=tmp_path / "plain", split="test").record.precision
    assert {curve.queries for curve in plain.values()} == {
        curve.queries for curve in build_index(run, even, output=tmp_path / "one").record.precision.values()
    }
    more = open_store(make_store(tmp_path / "more.h5", images=20, splits=["test"] * 20, seed=6))
    with pytest.raises(DataError, match=r"test\.h5 and .*more\.h5: no image in a split 'train'"):
        build_index(run, [other, more], output=tmp_path / "none", hubness="nnn")


def test_the_record_names_each_store_and_comes_back_as_written(tmp_path, halves):
    run, _, parts = halves
    index = build_index(run, parts, output=tmp_path / "index", split="test")
    record = index.record
    assert [one.path for one in record.stores] == [str(part.path.resolve()) for part in parts]
    assert [one.content_hash for one in record.stores] == [part.content_hash for part in parts]
    assert [one.splits for one in record.stores] == [part.split_sizes() for part in parts]
    assert [(one.images, one.captions) for one in record.stores] == [
        (len(part.rows("test").image), len(part.rows("test").text)) for part in parts
    ]
    assert (record.shared_pictures, record.validation_seen) == (0, 0)
    assert [(one.name, one.renamed) for one in record.stores] == [("even", 0), ("odd", 0)]
    assert record.store_content_hash == join_stores(parts).content_hash
    assert IndexRecord.read(tmp_path / "index") == record
    items = parquet.read_table(tmp_path / "index" / "items.parquet").to_pydict()
    images = [part.image_id[row] for part in parts for row in part.rows("test").image]
    assert items["id"][: record.images] == images


@pytest.mark.parametrize("stores", [3, ["photos.h5"], [{"path": "photos.h5"}]])
def test_a_record_whose_stores_do_not_fit_is_refused(tmp_path, halves, stores):
    run, _, parts = halves
    build_index(run, parts, output=tmp_path / "index", split="test")
    record = read_json(tmp_path / "index" / "index.json", "index")
    write_json(tmp_path / "index" / "index.json", {**record, "stores": stores})
    with pytest.raises(DataError, match="a field is missing, unknown or wrong"):
        open_index(tmp_path / "index")


@pytest.mark.parametrize("several", [False, True])
def test_of_one_store_the_record_is_what_it_was(tmp_path, halves, several):
    run, store, _ = halves
    build_index(run, [store.path] if several else store, output=tmp_path / "index")
    stored = read_json(tmp_path / "index" / "index.json", "index")
    assert not {"stores", "shared_pictures", "validation_seen"} & stored.keys()
    assert (stored["store"], stored["store_content_hash"]) == (str(store.path.resolve()), store.content_hash)
    record = open_index(tmp_path / "index").record
    assert (record.stores, record.made_of) == (None, [(store.content_hash, str(store.path.resolve()))])


def test_what_does_not_fit_is_refused_by_name_and_nothing_is_written(tmp_path, halves):
    run, _, (even, odd) = halves
    again = shutil.copy(even.path, tmp_path / "again.h5")
    other = make_store(tmp_path / "other.h5", images=9, encoders="other")
    train = make_store(tmp_path / "train.h5", images=9, splits=["train"] * 9, seed=3)
    asked = {"output": tmp_path / "index"}
    with pytest.raises(UsageError, match=r"even\.h5 and .*again\.h5 hold the same pairs: name one of them"):
        build_index(run, [even, odd, again], **asked)
    with pytest.raises(MismatchError, match=r"other\.h5 holds latents of other and other .*was\s+trained on"):
        build_index(run, [even, other], **asked)
    with pytest.raises(
        DataError, match=r"train\.h5: no image in a split 'test'; this store has train \(9 images\); or say 'all'"
    ):
        build_index(run, [even, train], split="test", **asked)
    with pytest.raises(UsageError, match="none is named"):
        build_index(run, [], **asked)
    assert not (tmp_path / "index").exists()
    build_index(run, [even, train], split="all", **asked)


def test_an_id_of_both_stores_stands_for_one_image_of_each(tmp_path, halves):
    run, store, _ = halves
    ids = ["cat", "dog"], ["dog", "sun"]
    rows = np.array([0, 2]), np.array([3, 5])
    paths = [
        write_part(store, tmp_path / f"{name}.h5", row_N, ids=mine)
        for name, row_N, mine in zip(("photos", "more"), rows, ids, strict=True)
    ]
    index = build_index(run, paths, output=tmp_path / "index", factory="Flat")
    assert index.items[Gallery.image].id == ["cat", "photos:dog", "more:dog", "sun"]
    assert [(one.name, one.renamed) for one in index.record.stores] == [("photos", 1), ("more", 1)]
    captions = dict.fromkeys(index.items[Gallery.text].id)
    assert list(captions) == ["cat", "photos:dog", "more:dog", "sun"]
    encoder = DualEncoder(run, "cpu")
    for name, row in (("photos:dog", 2), ("more:dog", 3)):
        ((hit, *_),) = ask(index, encoder, encoder.project_image(store.image_block(np.array([row]))), k=1, of="image")
        assert (hit.id, hit.score) == (name, pytest.approx(1, abs=1e-6))
    others = search(index, [Like("more:dog")], k=9, encoder=encoder)[0]
    assert sorted(hit.id for hit in others) == ["cat", "photos:dog", "sun"]
    with pytest.raises(UsageError, match="dog: several stores have an image of this id, here photos:dog and more:dog"):
        search(index, [Like("dog")], encoder=encoder)


def test_a_picture_of_both_stores_is_one_hit_with_a_count(tmp_path, halves):
    run, store, _ = halves
    one = write_part(store, tmp_path / "one.h5", np.array([0, 2, 3]))
    other = write_part(store, tmp_path / "other.h5", np.array([3, 5, 2, 6]), ids=["three", "five", "two", "six"])
    index = build_index(run, [one, other], output=tmp_path / "index")
    assert index.record.shared_pictures == 2
    assert index.record.images == 7
    encoder = DualEncoder(run, "cpu")
    hits = ask(index, encoder, encoder.project_image(store.image_block(np.array([3]))), k=9, of="image")[0]
    assert len(hits) == 5
    assert {hit.id: hit.count for hit in hits} == {
        store.image_id[0]: 1,
        store.image_id[2]: 2,
        store.image_id[3]: 2,
        "five": 1,
        "six": 1,
    }


def test_validation_pictures_that_the_run_was_trained_on_are_counted(tmp_path):
    stores = [
        open_store(make_store(tmp_path / f"{n}.h5", images=40, seed=1, splits=splits))
        for n, splits in enumerate((["train"] * 30 + ["val"] * 10, ["val"] * 4 + ["train"] * 26 + ["val"] * 10))
    ]
    run = load_run(make_run(tmp_path / "run", stores[0]))
    assert build_index(run, stores, output=tmp_path / "index").record.validation_seen == 4
    of_other = load_run(make_run(tmp_path / "other", open_store(make_store(tmp_path / "s.h5", images=9, seed=2))))
    assert build_index(of_other, stores, output=tmp_path / "index", overwrite=True).record.validation_seen == 0


@pytest.mark.parametrize("gone", [[0], [1], [0, 1]])
def test_without_one_of_the_stores_scores_are_approximate_and_it_is_named(tmp_path, halves, gone):
    run, store, parts = halves
    paths = [shutil.copy(part.path, tmp_path / part.path.name) for part in parts]
    index = build_index(run, paths, output=tmp_path / "index", factory="SQ8")
    for place in gone:
        paths[place].unlink()
    encoder = DualEncoder(run, "cpu")
    there = {path: open_store(path) for path in map(str, paths) if open_or_none(path)}
    behind = store_behind(index.record, lambda content_hash, path: there.get(path))
    assert behind.store is None
    rescore, told = scoring(index, encoder, Gallery.image, lambda: behind)
    assert rescore is None
    named = " and ".join(str(paths[place]) for place in gone)
    assert f"and {named}, which exact ones come from, {'is' if len(gone) == 1 else 'are'} not here" in told
    with pytest.warns(UserWarning, match="approximate"):
        kept = search(index, [Like(store.image_id[3])], k=5, encoder=encoder)[0]
    whole = build_index(run, store, output=tmp_path / "whole")
    assert [hit.id for hit in kept] == [
        hit.id for hit in search(whole, [Like(store.image_id[3])], k=5, encoder=encoder)[0]
    ]


def open_or_none(path):
    try:
        return open_store(path)
    except DataError:
        return None


def test_a_store_that_has_grown_is_indexed_anew_as_it_is(tmp_path, halves):
    run, store, (_, odd) = halves
    mine = write_part(store, tmp_path / "mine.h5", np.array([0, 2, 4]))
    index = build_index(run, [odd, mine], output=tmp_path / "index", factory="SQ8")
    write_part(store, tmp_path / "mine.h5", np.array([2, 4, 6, 8]))
    behind = store_behind(index.record, lambda content_hash, path: None if path.endswith("mine.h5") else odd)
    assert behind == StoreBehind(None, (str(mine.resolve()),))
    grown = build_index(run, [odd, mine], output=tmp_path / "index", factory="SQ8", overwrite=True)
    ids = [store.image_id[row] for row in (2, 4, 6, 8)]
    assert grown.items[Gallery.image].id == [*odd.image_id, *ids]
    assert store.image_id[0] not in grown.items[Gallery.image].id


def test_penalties_of_an_earlier_version_are_not_made_up(tmp_path, halves):
    run, _, parts = halves
    index = build_index(run, parts, output=tmp_path / "index", factory="SQ8", hubness="nnn")
    items = {of: replace(found, penalty=None) for of, found in index.items.items()}
    encoder = DualEncoder(run, "cpu")
    assert exact_scores(replace(index, items=items), encoder, join_stores(parts), Gallery.image) is None


def test_a_search_in_python_gives_exact_scores_and_refuses_what_no_hit_can_be(tmp_path, halves):
    run, store, _ = halves
    encoder, likes = DualEncoder(run, "cpu"), [Like(store.image_id[row]) for row in range(5)]
    flat, squeezed = (
        build_index(run, store, output=tmp_path / factory, factory=factory) for factory in ("Flat", "SQ4")
    )
    exact, rescored = (search(index, likes, k=np.int64(4), encoder=encoder) for index in (flat, squeezed))
    for one, other in zip(exact, rescored, strict=True):
        scores = {hit.id: hit.score for hit in one}
        both = [hit for hit in other if hit.id in scores]
        assert len(both) >= 3
        assert [hit.score for hit in both] == pytest.approx([scores[hit.id] for hit in both], abs=1e-5)
    for wrong in ({"threshold": float("nan")}, {"threshold": 2.0}, {"k": 0}, {"k": 2.5}, {"k": None}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            search(flat, likes, encoder=encoder, **wrong)
