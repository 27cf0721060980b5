"""`alignvl index` over several stores, made by real, tiny encoders: what is said, found, moved and shown."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet
import pytest
from PIL import Image
from support.coloured_squares import COLOURS, QUICK
from support.command_line import CommandLine

from alignvl_cli import Like, search
from alignvl_cli.artifacts import read_json
from alignvl_cli.report import map as mapping
from alignvl_cli.retrieval.index import open_index
from alignvl_cli.retrieval.layout import principal_axes
from alignvl_cli.settings import Gallery
from alignvl_cli.store.reader import open_store


def list_pairs(file: Path, names: dict[str, int]) -> None:
    """A list of pairs whose pictures, of the given names, have each their own shade of a colour."""
    rows = []
    for name, number in names.items():
        colour, rgb = list(COLOURS.items())[number % 3]
        path = file.with_suffix("") / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), tuple(min(255, value + number // 3) for value in rgb)).save(path)
        rows.append(
            {"image": f"{path.parent.name}/{name}", "captions": [f"{colour} square {number}", colour], "id": name}
        )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def two(tmp_path_factory, tiny_encoders) -> CommandLine:
    """A workspace with a run of the store `photos` and the store `more`, of which two pictures are in both, two ids
    too, and an index of both."""
    folder = tmp_path_factory.mktemp("two")
    alignvl = CommandLine(folder / "workspace")
    list_pairs(folder / "photos.jsonl", {f"{number}.png": number for number in range(40)})
    list_pairs(folder / "more.jsonl", {**{f"n{n}.png": n for n in range(38, 60)}, "5.png": 70, "6.png": 71})
    for name in ("photos", "more"):
        alignvl.succeeds("extract", folder / f"{name}.jsonl", "-o", folder / f"{name}.h5", *tiny_encoders)
    alignvl.succeeds("train", folder / "photos.h5", *QUICK)
    return alignvl


@pytest.fixture(scope="module")
def stores(two) -> list[str | Path]:
    folder = two.workspace.parent
    return ["--data", folder / "photos.h5", "--data", folder / "more.h5"]


@pytest.fixture(scope="module")
def index(two, stores) -> Path:
    return Path(two.succeeds("index", *stores).strip())


def test_what_comes_of_several_stores_is_said_and_recorded(two, stores, tmp_path):
    result = two("index", *stores, "-o", tmp_path / "index")
    assert result.stdout == f"{tmp_path / 'index'}\n"
    said = " ".join(result.stderr.split())
    assert "indexed 64 images and 128 captions" in said
    assert "photos.h5: 40 images, 80 captions" in said
    assert "more.h5: 24 images, 48 captions" in said
    assert "2 pictures are in both stores: one hit each, with a count" in said
    assert "ids that are in both stores have the store's name before them here: photos:ID and more:ID" in said
    record = read_json(tmp_path / "index" / "index.json", "index")
    assert [store["name"] for store in record["stores"]] == ["photos", "more"]
    told = two.succeeds("inspect", tmp_path / "index")
    assert "64 images, 128 captions of split all of 2 stores" in told
    assert "stores.1.content_hash" in told
    one = two("index", *stores[:2], "-o", tmp_path / "one")
    assert "photos.h5: 40 images" not in one.stderr


def test_pictures_of_both_stores_are_found_and_shown(two, index, tmp_path):
    answer = two.succeeds("search", "green", "-k", 70, "--json", "--index", index, "--html", tmp_path / "page.html")
    hits = json.loads(answer)["results"][0]["hits"]
    assert len(hits) == 62
    assert sorted(hit["count"] for hit in hits) == [1] * 60 + [2, 2]
    assert {"photos:5.png", "more:5.png", "0.png", "n50.png"} <= {hit["id"] for hit in hits}
    assert (tmp_path / "page.html").read_text().count('src="data:image/jpeg;base64,') == 62
    like = json.loads(two.succeeds("search", "--like", "more:5.png", "-k", 70, "--json", "--index", index))
    assert len(like["results"][0]["hits"]) == 61
    message = two.fails(2, "search", "--like", "5.png", "--index", index)
    assert "5.png: several stores have an image of this id, here photos:5.png and more:5.png" in message


def test_python_finds_the_same(two, index):
    hits = search(index, [Like("n50.png")], k=70)[0]
    asked = json.loads(two.succeeds("search", "--like", "n50.png", "-k", 70, "--json", "--index", index))
    assert [hit.id for hit in hits] == [hit["id"] for hit in asked["results"][0]["hits"]]


def test_scores_of_compressed_vectors_are_exact_while_all_stores_are_here(two, stores, index, tmp_path):
    folder = tmp_path / "compressed"
    two.succeeds("index", *stores, "-o", folder, "--factory", "SQ4")
    words = ["search", "green", "-k", 62, "--json", "--index"]
    whole, exact = (json.loads(two.succeeds(*words, place)) for place in (index, folder))
    assert (whole["scores"], exact["scores"]) == ("exact", "exact")
    scores = {hit["id"]: hit["score"] for hit in whole["results"][0]["hits"]}
    assert all(hit["score"] == pytest.approx(scores[hit["id"]], abs=1e-5) for hit in exact["results"][0]["hits"])
    more = stores[3].rename(stores[3].with_suffix(".away"))
    try:
        found = two(*words, folder)
        assert json.loads(found.stdout)["scores"] == "approximate"
        said = "".join(found.stderr.split())
        assert f"and{stores[3]},whichexactonescomefrom,isnothere" in said
        assert "photos.h5" not in said
    finally:
        more.rename(stores[3])


def test_stores_that_were_moved_are_found_by_their_content(two, stores, tmp_path):
    two.succeeds("index", *stores, "-o", tmp_path / "compressed", "--factory", "SQ4")
    moved = CommandLine(Path(shutil.copytree(two.workspace, tmp_path / "moved" / "workspace")))
    (moved.workspace / "stores").mkdir(exist_ok=True)
    kept = [Path(path).rename(Path(path).with_suffix(".away")) for path in stores[1::2]]
    try:
        for number, path in enumerate(kept):
            shutil.copy(path, moved.workspace / "stores" / f"another-{number}.h5")
        answer = json.loads(moved.succeeds("search", "green", "--json", "--index", tmp_path / "compressed"))
    finally:
        for path in kept:
            path.rename(path.with_suffix(".h5"))
    assert answer["scores"] == "exact"


@pytest.fixture
def without_umap(monkeypatch):
    monkeypatch.setattr(mapping, "umap", lambda: None)
    places = mapping.make_map.__kwdefaults__
    monkeypatch.setitem(places, "layout", lambda unit_NE, cosine_NK, row_NK, seed: principal_axes(unit_NE))


def test_a_map_has_the_splits_and_pictures_of_both_stores(two, stores, index, tmp_path, without_umap):
    two.succeeds("map", index, "-o", tmp_path / "map.parquet", "--of", "image")
    table = pyarrow.parquet.read_table(tmp_path / "map.parquet")
    opened = [open_store(path) for path in stores[1::2]]
    assert table["split"].to_pylist() == [store.split_names[code] for store in opened for code in store.image_split]
    assert table["id"].to_pylist() == open_index(index).items[Gallery.image].id
    assert table["image"].null_count == 0
    more = stores[3].rename(stores[3].with_suffix(".away"))
    try:
        result = two("map", index, "-o", tmp_path / "without.parquet", "--of", "image")
    finally:
        more.rename(stores[3])
    assert f"thestore{stores[3]}isnothere:splitsarenotknown" in "".join(result.stderr.split())
    assert set(pyarrow.parquet.read_table(tmp_path / "without.parquet")["split"].to_pylist()) == {None}


def test_refusals_have_their_exit_codes_and_leave_nothing(two, stores, tmp_path, tiny_encoders):
    output = ["-o", tmp_path / "index"]
    shutil.copy(stores[3], tmp_path / "copy.h5")
    message = two.fails(2, "index", *stores, "--data", tmp_path / "copy.h5", *output)
    assert "more.h5 and" in message
    assert "hold the same pairs: name one of them" in message
    assert "no such store" in two.fails(3, "index", *stores, "--data", tmp_path / "none.h5", *output)
    list_pairs(tmp_path / "val.jsonl", {f"{number}.png": number for number in range(6)})
    rows = [json.loads(line) | {"split": "val"} for line in (tmp_path / "val.jsonl").read_text().splitlines()]
    (tmp_path / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    two.succeeds("extract", tmp_path / "val.jsonl", "-o", tmp_path / "val.h5", *tiny_encoders)
    message = two.fails(3, "index", *stores, "--data", tmp_path / "val.h5", "--split", "test", *output)
    assert "val.h5: no image in a split 'test'; this store has val (6 images); or say 'all'" in message
    assert not (tmp_path / "index").exists()
    trained_on = sum(row < 6 for row in open_store(stores[1]).rows("train").image)
    result = two("index", *stores[:2], "--data", tmp_path / "val.h5", *output)
    assert trained_on > 1
    assert (
        f"the run was trained on {trained_on} pictures of the validation split: precision and hub correction, which go "
        "by that split, are flattered"
    ) in " ".join(result.stderr.split())


def test_a_store_that_has_grown_is_indexed_again(two, stores, tmp_path, tiny_encoders):
    list_pairs(tmp_path / "own.jsonl", {f"o{number}.png": number for number in range(80, 90)})
    own = ["extract", tmp_path / "own.jsonl", "-o", tmp_path / "own.h5", *tiny_encoders]
    two.succeeds(*own)
    build = ["index", *stores, "--data", tmp_path / "own.h5", "-o", tmp_path / "index"]
    two.succeeds(*build)
    list_pairs(tmp_path / "own.jsonl", {f"o{number}.png": number for number in range(83, 95)})
    two.succeeds(*own, "--overwrite")
    assert "an index is there already; add --overwrite" in two.fails(2, *build)
    two.succeeds(*build, "--overwrite")
    ids = open_index(tmp_path / "index").items[Gallery.image].id
    assert ids[64:] == [f"o{number}.png" for number in range(83, 95)]
