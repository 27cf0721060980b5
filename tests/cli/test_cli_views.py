"""Several views of a picture from end to end: extract, a query by picture, verification, exports, plan, refusals."""

import json
import time

import numpy as np
import onnxruntime
import pytest
from PIL import Image, ImageDraw
from support.coloured_squares import COLOURS, QUICK, train_on_colours
from support.command_line import CommandLine
from support.stored import differing, stored_datasets
from support.tiny_models import save_resnet, save_sentence_transformer

import alignvl_cli
from alignvl_cli import DualEncoder, open_store
from alignvl_cli.datasets.dataset import ImageSource
from alignvl_cli.encoders.decoding import decode_image
from alignvl_cli.encoders.vision import VisionEncoder, load_vision
from alignvl_cli.errors import UsageError
from alignvl_cli.report.reproduce import extract_command
from alignvl_cli.settings import Precision

VIEWS = ["--image-layers", "1,last", "--views", 4]


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> CommandLine:
    """A workspace with a store of four views and two layers, a run on it and an index."""
    folder = tmp_path_factory.mktemp("views")
    alignvl = CommandLine(folder / "workspace")
    save_resnet(folder / "vision")
    save_sentence_transformer(folder / "sentences")
    train_on_colours(alignvl, folder, [*words_for(folder), *VIEWS])
    return alignvl


@pytest.fixture(autouse=True)
def in_float32(monkeypatch):
    monkeypatch.setattr("alignvl_cli.retrieval.dual_encoder.choose_precision", lambda asked, device: Precision.fp32)


def words_for(folder):
    return [
        "--vision",
        str(folder / "vision"),
        "--text",
        str(folder / "sentences"),
        "--device",
        "cpu",
        "--precision",
        "fp32",
    ]


def store_of(alignvl):
    (path,) = (alignvl.workspace / "stores").glob("*.h5")
    return open_store(path)


def odd_picture(path):
    """Not square, not its own mirror image, and with clear parts."""
    image = Image.new("RGBA", (50, 34), (*COLOURS["red"], 255))
    ImageDraw.Draw(image).rectangle((3, 5, 20, 25), fill=(0, 80, 200, 0))
    image.save(path)
    return path


def test_a_store_of_views_answers_pictures_seen_the_same_way(seen, tmp_path):
    store, folder = store_of(seen), seen.workspace.parent
    assert len(store.vision["record"]["views"]) == 4
    assert list(store.image_parts) == ["1", "last"]
    plan = store.made_by["plan"]
    assert plan["image_shard"] == 4 * plan["image_batch"], "a shard is as much work as of one view"
    run = next((seen.workspace / "runs").iterdir())
    dual = DualEncoder.load(run, "cpu")
    rows = [0, 17, 44]
    paths = [folder / store.image_uri[row] for row in rows]
    np.testing.assert_allclose(dual.encode_image(paths), dual.project_image(store.image_latent[rows]), atol=1e-5)
    path = odd_picture(tmp_path / "odd.png")
    plain = load_vision(str(folder / "vision"), pooling=None, layers="1,last", device="cpu", precision=Precision.fp32)
    image = decode_image(path.read_bytes(), 10**6)
    seen_once = dual.project_image(plain.encode(np.stack([plain.prepare(image)])))
    assert np.abs(dual.encode_image([path]) - seen_once).max() > 1e-3
    for query in (path, Image.open(path)):
        np.testing.assert_allclose(dual.encode_image([query]), dual.encode_image([path]), atol=1e-6)
    seen.succeeds("inspect", store.path, "--verify", 5)
    hits = json.loads(seen.succeeds("search", "--image", paths[1], "--of", "image", "-k", 1, "--json"))
    assert store.image_id[17] in json.dumps(hits)
    assert "--views 4" in extract_command(store.dataset, store.vision, store.text, {})


def test_the_onnx_graph_takes_the_latent_of_the_views(seen, tmp_path):
    store = store_of(seen)
    dual = DualEncoder.load(next((seen.workspace / "runs").iterdir()), "cpu")
    seen.succeeds("export", "-o", tmp_path / "graphs", "--to", "onnx")
    path = odd_picture(tmp_path / "odd.png")
    session = onnxruntime.InferenceSession(tmp_path / "graphs" / "image_adapter.onnx")
    latent = dual._vision.encode(np.stack([dual._vision.prepare(decode_image(path.read_bytes(), 10**6))]))
    (found,) = session.run(None, {"latent": latent})
    np.testing.assert_allclose(found, dual.encode_image([path]), atol=1e-5)
    (found,) = session.run(None, {"latent": np.array(store.image_latent[:9])})
    np.testing.assert_allclose(found, dual.project_image(store.image_latent[:9]), atol=1e-5)
    card = (tmp_path / "graphs" / "README.md").read_text()
    assert "4 views of a picture: as it is; mirrored; inner 76 %; on white, 1.3 times as large." in card


def test_workers_and_interruption_change_no_bit_and_each_picture_is_opened_once(seen, tmp_path, monkeypatch):
    store, folder = store_of(seen), seen.workspace.parent
    words = ["extract", folder / "own.jsonl", *words_for(folder), *VIEWS]
    seen.succeeds(*words, "--workers", 2, "-o", tmp_path / "workers.h5")
    assert differing(stored_datasets(store.path), stored_datasets(tmp_path / "workers.h5")) == []
    read, opened = ImageSource.read, []

    def counted(self, most):
        opened.append(self.path)
        if len(opened) == 50:
            raise KeyboardInterrupt
        return read(self, most)

    monkeypatch.setattr(ImageSource, "read", counted)
    words += ["--workers", 0, "--batch-size", 2, "-o", tmp_path / "stopped.h5"]
    assert seen(*words).exit_code != 0
    shards = [path for path in (tmp_path / "stopped.h5.partial").rglob("*") if path.suffix == ".npy"]
    assert shards, "a shard is 16 batches of one view: finished work is kept"
    fewer = [*words[:-6], "--views", 2, *words[-6:]]
    assert seen(*fewer).exit_code == 4, "other views are another extraction"
    opened.clear()
    opened += [None] * 60
    seen.succeeds(*words)
    assert len(opened) - 60 < 60
    opened.clear()
    opened += [None] * 60
    seen.succeeds(*words[:-1], tmp_path / "whole.h5")
    assert len(set(opened[60:])) == len(opened[60:]) == 60
    assert differing(stored_datasets(tmp_path / "stopped.h5"), stored_datasets(tmp_path / "whole.h5")) == []


def test_the_plan_counts_the_views(seen, monkeypatch):
    forward, folder = VisionEncoder._vectors, seen.workspace.parent

    def slow(self, pictures):
        time.sleep(0.1)
        return forward(self, pictures)

    monkeypatch.setattr(VisionEncoder, "_vectors", slow)
    words = ["extract", folder / "own.jsonl", *words_for(folder), "--batch-size", 8, "--plan", "--json"]
    one, four = (json.loads(seen.succeeds(*words, "--views", views)) for views in (1, 4))
    assert four["images_per_second"] < 0.5 * one["images_per_second"]
    assert four["store"] != one["store"], "another encoder, another store"


def test_a_store_of_other_views_is_another_encoders(seen, tmp_path):
    folder, run = seen.workspace.parent, next((seen.workspace / "runs").iterdir())
    words = [*words_for(folder), "--image-layers", "1,last"]
    seen.succeeds("extract", folder / "own.jsonl", *words, "--views", 2, "-o", tmp_path / "two.h5")
    assert "encoder" in seen.fails(4, "eval", run, "--data", tmp_path / "two.h5", "--quiet")
    assert seen("train", tmp_path / "two.h5", store_of(seen).path, *QUICK).exit_code == 4


def test_python_takes_the_views_too(seen, tmp_path):
    folder = seen.workspace.parent
    settings = {"vision": str(folder / "vision"), "text": str(folder / "sentences"), "device": "cpu"}
    settings["image_layers"] = "last"
    store = alignvl_cli.extract(folder / "own.jsonl", output=tmp_path / "two.h5", views=2, **settings)
    assert store.vision["record"]["views"] == ["as it is", "mirrored"]
    np.testing.assert_allclose(np.linalg.norm(store.image_latent[:], axis=1), 1, atol=1e-5)
    for views in (3, 0, 2.5, True):
        with pytest.raises(UsageError, match="--views: wanted 1, 2 or 4"):
            alignvl_cli.extract(folder / "own.jsonl", output=tmp_path / "none.h5", views=views, **settings)


@pytest.mark.parametrize("views", ["3", "0", "-1", "two", ""])
def test_views_that_there_are_not_are_refused(seen, views):
    assert "--views: wanted 1, 2 or 4" in seen.fails(2, "extract", "demo:emoji", "--views", views)
