"""The map of an index: its file, its picture, and that other programs read it."""

import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image
from support.fake_runs import make_run
from support.fakes import make_store, write_part

from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.report import map as mapping
from alignvl_cli.report.map import evened, make_map, require_ready, save_map, save_picture
from alignvl_cli.retrieval.dual_encoder import DualEncoder
from alignvl_cli.retrieval.index import build_index, open_index
from alignvl_cli.retrieval.layout import principal_axes
from alignvl_cli.settings import Gallery, HubCorrection
from alignvl_cli.store.joined import join_stores
from alignvl_cli.store.reader import open_store
from alignvl_cli.training.run_folder import load_run


def by_axes(unit_NE, cosine_NK, row_NK, seed):
    """A layout without UMAP, which moves with the seed."""
    return principal_axes(unit_NE) + seed


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("map")
    store = open_store(make_store(folder / "store.h5", images=30, captions_per_image=(1, 2, 0)))
    run = load_run(make_run(folder / "run", store))
    for name, more in (("flat", {}), ("nnn", {"correction": HubCorrection.nnn}), ("sq", {"factory": "SQ8"})):
        build_index(run, store, "all", folder / name, **more)
    return folder, DualEncoder(run, "cpu"), store


def made(opened, name="flat", has_store=True, **changes):
    folder, encoder, store = opened
    asked = {"of": None, "k": 4, "seed": 0, "layout": by_axes, **changes}
    return make_map(open_index(folder / name), encoder, store if has_store else None, **asked)


def rows_of(found, path):
    assert save_map(found, path) == found.kinds().count("image")  # the pictures of a fake store are nowhere
    return pyarrow.parquet.read_table(path).to_pylist()


def test_a_row_says_all_of_an_image_or_a_caption(opened, tmp_path):
    _, encoder, store = opened
    rows = rows_of(made(opened), tmp_path / "map.parquet")
    assert [row["kind"] for row in rows] == ["image"] * 30 + ["text"] * len(store.text_caption)
    assert [row["id"] for row in rows[:30]] == store.image_id
    assert rows[1]["captions"] == store.text_caption[1:3]
    assert (rows[1]["caption"], rows[2]["caption"], rows[2]["captions"]) == (store.text_caption[1], "", [])
    assert [row["caption"] for row in rows[30:]] == store.text_caption
    assert [row["captions"] for row in rows[30:]] == [[caption] for caption in store.text_caption]
    assert [row["split"] for row in rows[:30]] == [store.split_names[code] for code in store.image_split]
    assert [row["split"] for row in rows[30:]] == [rows[owner]["split"] for owner in store.text_image]
    vectors = np.array([row["vector"] for row in rows])
    assert np.allclose(vectors[:30], encoder.project_image(store.image_latent), atol=1e-6)
    assert np.allclose(vectors[30:], encoder.project_text(store.text_latent), atol=1e-6)
    for number, row in enumerate(rows):
        near = row["neighbors"]
        assert number not in near["ids"]
        assert np.allclose(near["distances"], 1 - vectors[near["ids"]] @ vectors[number], atol=1e-6)
        assert near["distances"] == sorted(near["distances"])
    assert [(row["x"], row["y"]) for row in rows] == [tuple(place) for place in made(opened).place_N2.tolist()]
    about = json.loads(pyarrow.parquet.read_schema(tmp_path / "map.parquet").metadata[b"alignvl"])
    assert (about["run"], about["seed"], about["distance"]) == ("run", 0, "1 - cosine")


@pytest.mark.parametrize("of", Gallery)
def test_one_gallery_alone_has_its_own_rows_for_neighbours(opened, tmp_path, of):
    rows = rows_of(made(opened, of=of), tmp_path / "map.parquet")
    assert {row["kind"] for row in rows} == {of.value}
    assert max(max(row["neighbors"]["ids"]) for row in rows) < len(rows)
    assert save_picture(made(opened, of=of), tmp_path / "map.parquet").is_file()


def test_a_map_of_two_stores_is_that_of_the_store_with_the_rows_of_both(opened, tmp_path):
    _, encoder, store = opened
    parts = [write_part(store, tmp_path / f"{n}.h5", np.arange(start, start + 15)) for n, start in enumerate((0, 15))]
    joined = join_stores([open_store(path) for path in parts])
    build_index(encoder.run, joined, "all", tmp_path / "index", factory="SQ8")
    found = make_map(open_index(tmp_path / "index"), encoder, joined, of=None, k=4, seed=0, layout=by_axes)
    assert rows_of(found, tmp_path / "joined.parquet") == rows_of(made(opened), tmp_path / "whole.parquet")


def test_the_same_seed_gives_the_same_bytes(opened, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        save_map(made(opened, seed=seed), tmp_path / f"{name}.parquet")
        save_picture(made(opened, seed=seed), tmp_path / f"{name}.parquet")
    first, again, other = ((tmp_path / f"{name}.parquet").read_bytes() for name in "abc")
    assert first == again != other
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_without_the_store_the_index_itself_is_read_and_splits_are_not_known(opened, tmp_path):
    whole = made(opened)
    kept = made(opened, has_store=False)
    assert np.allclose(kept.unit_NE, whole.unit_NE, atol=1e-6)
    assert {row["split"] for row in rows_of(kept, tmp_path / "map.parquet")} == {None}
    assert np.allclose(made(opened, "nnn", has_store=False).unit_NE, whole.unit_NE, atol=1e-6)
    assert np.allclose(made(opened, "sq", has_store=False).unit_NE, whole.unit_NE, atol=0.02)


def test_pictures_that_are_at_hand_are_in_the_file_and_on_the_map(opened, tmp_path, monkeypatch):
    Image.new("RGB", (300, 200), "red").save(tmp_path / "red.png")
    monkeypatch.setattr(mapping, "picture_bytes", lambda uri: (tmp_path / "red.png").read_bytes())
    assert save_map(made(opened), tmp_path / "map.parquet") == 30, "none is what was indexed"
    sha256 = hashlib.sha256((tmp_path / "red.png").read_bytes()).hexdigest()
    found = made(opened)
    found.index.items[Gallery.image].content[:] = [sha256] * 30
    assert save_map(found, tmp_path / "map.parquet") == 0
    rows = pyarrow.parquet.read_table(tmp_path / "map.parquet").to_pylist()
    assert [row["image"] is None for row in rows] == [row["kind"] == "text" for row in rows]
    assert Image.open(io.BytesIO(rows[0]["image"]["bytes"])).size == (128, 85)
    picture = save_picture(found, tmp_path / "map.parquet").read_bytes()
    drawn = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
    red_HW = (drawn[..., 0] > 200) & (drawn[..., 1] < 60)
    assert red_HW.sum() > 10_000
    (tmp_path / "red.png").write_bytes(b"no picture")
    found.index.items[Gallery.image].content[:] = [hashlib.sha256(b"no picture").hexdigest()] * 30
    assert save_map(found, tmp_path / "map.parquet") == 30


def test_crowded_regions_are_widened_and_order_stays():
    place_N2 = np.random.default_rng(0).standard_normal((50, 2)) ** 3
    even_N2 = evened(place_N2)
    assert (even_N2.argsort(axis=0) == place_N2.argsort(axis=0)).all()
    assert (even_N2.min(), even_N2.max()) == (0, 1)
    assert np.isfinite(evened(np.zeros((5, 2)))).all()


def test_what_is_missing_or_in_the_way_is_told_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(mapping, "umap", lambda: None)
    require_ready(tmp_path / "map.parquet", overwrite=False)
    with pytest.raises(UsageError, match=r"a name in \.parquet"):
        require_ready(tmp_path / "map.csv", overwrite=False)
    (tmp_path / "map.png").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"map\.png: something is there already"):
        require_ready(tmp_path / "map.parquet", overwrite=False)
    require_ready(tmp_path / "map.parquet", overwrite=True)
    (tmp_path / "map.parquet").mkdir()
    with pytest.raises(UsageError, match=r"map\.parquet: something is there already"):
        require_ready(tmp_path / "map.parquet", overwrite=True)


def test_vectors_that_cannot_be_read_back_are_refused(opened, tmp_path):
    folder, _, _ = opened
    index = open_index(folder / "flat")

    class Unreadable:
        def reconstruct(self, row):
            raise RuntimeError("no direct map")

    index.vectors[Gallery.text] = Unreadable()
    with pytest.raises(DataError, match="not read back, and the store"):
        make_map(index, opened[1], None, of=None, k=4, seed=0, layout=by_axes)


@pytest.mark.slow
def test_embedding_atlas_opens_it_and_takes_places_pictures_and_neighbours(opened, tmp_path):
    pytest.importorskip("embedding_atlas", exc_type=ImportError)
    save_map(made(opened), tmp_path / "map.parquet")
    page = (Path(__file__).parents[2] / "docs" / "map.md").read_text(encoding="utf-8")
    (words,) = [line.split() for line in page.splitlines() if line.startswith("embedding-atlas map.parquet")]
    code = "from embedding_atlas.cli import main; main()"
    command = [sys.executable, "-c", code, *words[1:], "--export-application", "app"]
    home = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=tmp_path, env=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    props = json.loads((tmp_path / "app" / "data" / "metadata.json").read_text())["props"]["data"]
    assert props["projection"] == {"x": "x", "y": "y"}
    assert [props[key] for key in ("text", "image", "neighbors")] == ["caption", "image", "neighbors"]
    read = pyarrow.parquet.read_table(tmp_path / "app" / "data" / "dataset.parquet")
    ours = pyarrow.parquet.read_table(tmp_path / "map.parquet")
    for name in ("id", "x", "y", "neighbors"):
        assert read[name].to_pylist() == ours[name].to_pylist(), name
    assert min(read["pagerank"].to_pylist()) > 0
