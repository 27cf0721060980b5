"""Indexes on disk: whole or absent, verified on opening."""

import json

import numpy as np
import pytest
from pyarrow import parquet
from support.fake_runs import make_run
from support.fakes import make_store

from alignvl_cli.artifacts import file_sha256, read_json
from alignvl_cli.errors import DataError, MismatchError, UsageError
from alignvl_cli.retrieval import index as index_module
from alignvl_cli.retrieval.dual_encoder import DualEncoder
from alignvl_cli.retrieval.index import build_index, open_index
from alignvl_cli.retrieval.search import search
from alignvl_cli.settings import Gallery, HubCorrection
from alignvl_cli.store.reader import open_store
from alignvl_cli.training.run_folder import load_run


@pytest.fixture
def parts(tmp_path):
    store = open_store(make_store(tmp_path / "store.h5", images=20, captions_per_image=(0, 1, 2)))
    return load_run(make_run(tmp_path / "run", store)), store


def test_an_index_says_what_every_row_is(tmp_path, parts):
    run, store = parts
    output = tmp_path / "deep" / "index"
    record = build_index(run, store, "all", output)
    assert sorted(path.name for path in output.iterdir()) == [
        "image.faiss",
        "index.json",
        "items.parquet",
        "text.faiss",
    ]
    assert [path.name for path in output.parent.iterdir()] == ["index"], "no scratch is left"
    items = parquet.read_table(output / "items.parquet").to_pydict()
    assert list(items) == ["modality", "row", "id", "uri", "caption", "content"]
    assert items["modality"] == ["image"] * 20 + ["text"] * len(store.text_caption)
    assert items["id"] == store.image_id + [store.image_id[row] for row in store.text_image]
    firsts = dict(zip(store.text_image[::-1], store.text_caption[::-1], strict=True))
    assert items["caption"][:20] == [firsts.get(row, "") for row in range(20)]
    assert items["caption"][20:] == store.text_caption
    stored = read_json(output / "index.json", "record")
    assert stored == json.loads(json.dumps(record.to_json()))
    assert (stored["schema"], stored["metric"]) == ("alignvl.index/1", "cosine")
    assert stored["factory"] == {"image": "Flat", "text": "Flat"}
    assert (stored["search"], stored["hubness"]) == ({"image": {}, "text": {}}, None)
    assert stored["counts"] == {"images": 20, "captions": len(store.text_caption)}
    assert stored["encoder_hash"] == store.encoder_hash
    assert stored["recall_against_exact"]["image"]["share"] == 1.0
    assert stored["sha256"]["image.faiss"] == file_sha256(output / "image.faiss")


def test_an_opened_index_equals_the_one_that_was_built(tmp_path, parts):
    run, store = parts
    record = build_index(run, store, "test", tmp_path / "index")
    index = open_index(tmp_path / "index")
    assert index.record == record
    assert index.run_path == run.path
    rows = store.rows("test")
    assert index.items[Gallery.image].id == [store.image_id[row] for row in rows.image]
    assert index.items[Gallery.text].caption == [store.text_caption[row] for row in rows.text]
    vectors = index.vectors[Gallery.image].reconstruct_n(0, len(rows.image))
    latent = store.image_block(rows.image)
    np.testing.assert_allclose(vectors, latent / np.linalg.norm(latent, axis=1, keepdims=True), atol=1e-6)


def test_a_complete_index_is_replaced_only_when_asked(tmp_path, parts):
    run, store = parts
    output = tmp_path / "index"
    build_index(run, store, "test", output)
    with pytest.raises(UsageError, match="--overwrite"):
        build_index(run, store, "all", output)
    assert open_index(output).record.split == "test"
    (output / "Thumbs.db").touch()
    build_index(run, store, "all", output, overwrite=True)
    assert open_index(output).record.split == "all"
    assert {path.name for path in tmp_path.iterdir()} == {"store.h5", "run", "index"}


def test_an_empty_folder_is_taken_and_a_folder_of_something_else_never(tmp_path, parts):
    run, store = parts
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".DS_Store").touch()  # a desktop has looked at it
    build_index(run, store, "test", tmp_path / "empty")
    assert open_index(tmp_path / "empty").record.images == len(store.rows("test").image)
    with pytest.raises(UsageError, match="no index is there; name another place"):
        build_index(run, store, "test", run.path, overwrite=True)
    assert load_run(run.path).encoder_hash == run.encoder_hash


def test_a_build_that_dies_leaves_nothing(tmp_path, parts, monkeypatch):
    run, store = parts

    def dies(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(index_module, "_items_table", dies)
    with pytest.raises(KeyboardInterrupt):
        build_index(run, store, "test", tmp_path / "index")
    assert {path.name for path in tmp_path.iterdir()} == {"store.h5", "run"}


def test_other_encoders_are_refused(tmp_path, parts):
    run, _ = parts
    other = open_store(make_store(tmp_path / "other.h5", images=20, encoders="other"))
    with pytest.raises(MismatchError, match="other and other"):
        build_index(run, other, "all", tmp_path / "index")
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("name", ["image.faiss", "text.faiss", "items.parquet"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_part_is_named(tmp_path, parts, name, damage):
    build_index(*parts, "all", tmp_path / "index")
    part = tmp_path / "index" / name
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    match damage:
        case "flip":
            part.write_bytes(data)
        case "cut":
            part.write_bytes(data[:-10])
        case "remove":
            part.unlink()
    with pytest.raises(DataError, match=name):
        open_index(tmp_path / "index")


def test_parts_of_two_indexes_do_not_pass_for_one(tmp_path, parts):
    run, store = parts
    build_index(run, store, "all", tmp_path / "index")
    build_index(run, store, "test", tmp_path / "other")
    target = tmp_path / "index"
    (target / "image.faiss").write_bytes((tmp_path / "other" / "image.faiss").read_bytes())
    record = read_json(target / "index.json", "record")
    record["sha256"]["image.faiss"] = file_sha256(target / "image.faiss")
    (target / "index.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"image\.faiss has 4 rows and items\.parquet 20"):
        open_index(target)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(schema="alignvl.index/9"), "format 'alignvl.index/9'"),
        (lambda record: record.pop("encoder_hash"), "a field is missing"),
        (lambda record: record.update(recall_against_exact=3), "a field is missing"),
        (lambda record: record.update(surprise=1), "a field is missing, unknown"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(tmp_path, parts, change, message):
    build_index(*parts, "all", tmp_path / "index")
    path = tmp_path / "index" / "index.json"
    record = read_json(path, "record")
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match=message):
        open_index(tmp_path / "index")


def test_a_folder_without_a_record_is_no_index(tmp_path):
    with pytest.raises(DataError, match="not an index"):
        open_index(tmp_path)


def test_a_corrected_index_scores_cosine_less_penalty(tmp_path):
    store = open_store(make_store(tmp_path / "s.h5", images=150, captions_per_image=(2,), noise=2.5))
    run = load_run(make_run(tmp_path / "run", store))
    record = build_index(run, store, "test", tmp_path / "plain")
    corrected = build_index(run, store, "test", tmp_path / "nnn", correction=HubCorrection.nnn)
    assert (record.hubness, corrected.metric) == (None, "cosine less a hub penalty")
    assert corrected.hubness["bank"] == "train"
    plain, index = open_index(tmp_path / "plain"), open_index(tmp_path / "nnn")
    for gallery in Gallery:
        vectors = index.vectors[gallery].reconstruct_n(0, index.vectors[gallery].ntotal)
        cosines = plain.vectors[gallery].reconstruct_n(0, len(vectors))
        np.testing.assert_array_equal(vectors[:, :-1], cosines)
        alpha = corrected.hubness["parameters"][gallery.value]["alpha"]
        assert (vectors[:, -1] != 0).any() == (alpha > 0)
    found = search(index, DualEncoder(run, "cpu"), cosines[:3], k=4, of=Gallery.image)
    penalised = index.vectors[Gallery.image].reconstruct_n(0, len(store.rows("test").image))
    for query, hits in zip(cosines[:3], found, strict=True):
        expected = np.sort(penalised[:, :-1] @ query + penalised[:, -1])[::-1]
        np.testing.assert_allclose([hit.score for hit in hits], expected[:4], atol=1e-6)


def test_each_gallery_has_a_factory_and_a_measure_of_its_own(tmp_path):
    store = open_store(make_store(tmp_path / "s.h5", images=400, captions_per_image=(3,)))
    run = load_run(make_run(tmp_path / "run", store))
    record = build_index(run, store, "all", tmp_path / "index", factory="IVF8,Flat")
    assert record.factory == {"image": "IVF8,Flat", "text": "IVF8,Flat"}
    assert all(setting["nprobe"] >= 1 for setting in record.search.values())
    index = open_index(tmp_path / "index")
    assert index.record == record
    found = search(index, DualEncoder(run, "cpu"), np.eye(32, dtype=np.float32), k=400, of=Gallery.image)
    assert all(hit.id in store.image_id for hits in found for hit in hits), "row -1 is never a hit"
    stored = json.loads((tmp_path / "index" / "index.json").read_text())["recall_against_exact"]["text"]
    assert stored["interval"][0] <= stored["share"] <= stored["interval"][1]


def test_what_does_not_fit_the_memory_is_refused_before_anything_is_written(tmp_path, parts):
    with pytest.raises(UsageError, match="--memory"):
        build_index(*parts, "all", tmp_path / "index", memory=100)
    assert not (tmp_path / "index").exists()
