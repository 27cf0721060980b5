"""Latents of several layers from end to end: extract, a run that takes some parts, search, exports, import, resume."""

import json

import numpy as np
import onnxruntime
import pytest
from sentence_transformers import SentenceTransformer
from support.coloured_squares import train_on_colours
from support.command_line import CommandLine
from support.stored import differing, stored_datasets
from support.tiny_models import save_dinov2, save_sentence_transformer

from alignvl_cli import DualEncoder, open_store
from alignvl_cli.encoders.vision import VisionEncoder
from alignvl_cli.settings import Precision
from alignvl_cli.training.run_folder import load_run

pytestmark = pytest.mark.usefixtures("auto_of_shallow_models")

LAYERS = ["--image-layers", "1,last", "--image-pooling", "mean", "--text-layers", "auto"]
IN_FLOAT32 = ["--precision", "fp32"]
"""Of the encoders, on processors that compute in bf16 too."""
QUICK = ["--epochs", 1, "--batch-size", 8, "--embed-dim", 8, "--device", "cpu"]


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> CommandLine:
    """A workspace with a store of several parts and a run on all of them."""
    folder = tmp_path_factory.mktemp("parts")
    alignvl = CommandLine(folder / "workspace")
    save_dinov2(folder / "vision")
    save_sentence_transformer(folder / "sentences")
    words = ["--vision", str(folder / "vision"), "--text", str(folder / "sentences"), "--device", "cpu", *IN_FLOAT32]
    train_on_colours(alignvl, folder, [*words, *LAYERS])
    return alignvl


@pytest.fixture(autouse=True)
def in_float32(monkeypatch):
    monkeypatch.setattr("alignvl_cli.retrieval.dual_encoder.choose_precision", lambda asked, device: Precision.fp32)


def store_of(alignvl: CommandLine):
    (path,) = (alignvl.workspace / "stores").glob("*.h5")
    return open_store(path)


def test_a_store_names_its_parts(several):
    store = store_of(several)
    assert store.image_parts == {"1": slice(0, 32), "last": slice(32, 64)}
    assert store.text_parts == {"0": slice(0, 24), "1": slice(24, 48), "last": slice(48, 72)}
    for latent, parts in ((store.image_latent, store.image_parts), (store.text_latent, store.text_parts)):
        for columns in parts.values():
            np.testing.assert_allclose(np.linalg.norm(latent[:, columns], axis=1), 1, atol=1e-5)
    several.succeeds("inspect", store.path, "--verify", 4)


@pytest.mark.slow
def test_a_run_takes_its_parts_and_is_handed_the_whole_latent(several, tmp_path):
    store, run = store_of(several), tmp_path / "run"
    several.succeeds("train", *QUICK, "--image-parts", "last", "--text-parts", "last, 0", "-o", run)
    loaded = load_run(run)
    assert loaded.config["settings"]["text_parts"] == "last,0"
    assert loaded.adapters.shape.image_columns == ((32, 64),)
    assert loaded.adapters.shape.text_columns == ((0, 24), (48, 72))
    dual = DualEncoder.load(run, "cpu")
    latent = np.array(store.text_latent[:5])
    embedded = dual.project_text(latent)
    ignored = latent.copy()
    ignored[:, store.text_parts["1"]] += 1
    np.testing.assert_array_equal(dual.project_text(ignored), embedded)
    heeded = latent.copy()
    heeded[:, store.text_parts["0"]] += np.arange(24)
    assert np.abs(dual.project_text(heeded) - embedded).max() > 1e-3
    encoded = dual.encode_text(store.text_caption[:5])
    np.testing.assert_allclose(encoded, embedded, atol=1e-5)
    assert several("eval", run, "--split", "all").exit_code == 0
    several.succeeds("export", run, "-o", tmp_path / "graphs", "--to", "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "graphs" / "text_adapter.onnx")
    np.testing.assert_allclose(session.run(None, {"latent": latent})[0], embedded, atol=1e-5)
    assert "0, 1, last" in (tmp_path / "graphs" / "README.md").read_text()


def test_all_parts_is_the_default_and_leaves_no_trace(several):
    run = load_run(next((several.workspace / "runs").iterdir()))
    assert not any("parts" in name for name in run.config["settings"])
    assert not any("columns" in name for name in run.config["adapters"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--image-parts", "2"], "it has 1, last"),
        (["--text-parts", "last,last"], "name each part once"),
        (["--text-parts", "auto"], "it has 0, 1, last"),
    ],
)
def test_parts_that_are_not_there_are_refused(several, words, said):
    result = several("train", *QUICK, *words)
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize("words", ["", "1.5", "auto,1", "first"])
def test_layers_that_are_none_are_refused(several, words):
    assert "--text-layers: wanted" in several.fails(2, "extract", "demo:emoji", "--text-layers", words)


def test_a_closed_form_takes_parts_too(several, tmp_path):
    several.succeeds("train", "--method", "cca", "--text-parts", "0", "--device", "cpu", "-o", tmp_path / "cca")
    assert load_run(tmp_path / "cca").adapters.shape.text_columns == ((0, 24),)


def test_sentence_transformers_pools_the_layers(several, tmp_path):
    run = tmp_path / "run"
    several.succeeds("train", *QUICK, "--text-parts", "last,0", "--adapter", "linear", "-o", run)
    result = several("export", run, "-o", tmp_path / "model", "--to", "sentence-transformers")
    assert result.exit_code == 0, result.output
    assert "trust_remote_code=True" in result.stderr
    card = (tmp_path / "model" / "README.md").read_text()
    assert 'SentenceTransformer(".", trust_remote_code=True)' in card
    assert "`trust_remote_code=True` lets it run" in card
    model = SentenceTransformer(str(tmp_path / "model"), device="cpu", trust_remote_code=True)
    texts = ["red", "a Green square", "", "blue square 7 " * 30]
    wanted = DualEncoder.load(run, "cpu").encode_text(texts)
    np.testing.assert_allclose(model.encode(texts), wanted, atol=1e-5)
    assert model.get_embedding_dimension() == 8
    model.save(str(tmp_path / "again"))
    again = SentenceTransformer(str(tmp_path / "again"), device="cpu", trust_remote_code=True)
    np.testing.assert_allclose(again.encode(texts), wanted, atol=1e-5)


@pytest.mark.parametrize("layout", ["npy", "safetensors"])
def test_parts_survive_export_and_import(several, tmp_path, layout):
    store = store_of(several)
    several.succeeds("store", "export", store.path, tmp_path / "files", "--to", layout)
    several.succeeds("store", "import", tmp_path / "files", "--vision", "v", "--text", "t", "-o", tmp_path / "back.h5")
    back = open_store(tmp_path / "back.h5")
    assert (back.image_parts, back.text_parts) == (store.image_parts, store.text_parts)
    several.succeeds("train", back.path, *QUICK, "--text-parts", "0", "-o", tmp_path / "run")


@pytest.mark.slow
def test_an_interrupted_extraction_of_several_parts_ends_in_the_same_store(several, tmp_path, monkeypatch):
    store = store_of(several)
    asked = json.loads(json.dumps(store.made_by["plan"]))
    folder = several.workspace.parent
    words = ["extract", next(folder.glob("*.jsonl")), "--vision", folder / "vision", "--text", folder / "sentences"]
    words += [*LAYERS, "--device", "cpu", "--batch-size", 1, "-o", tmp_path / "again.h5"]
    encode, calls = VisionEncoder.encode, []

    def stops(self, pictures):
        calls.append(len(pictures))
        if len(calls) == 20:
            raise KeyboardInterrupt
        return encode(self, pictures)

    with monkeypatch.context() as patch:
        patch.setattr(VisionEncoder, "encode", stops)
        assert several(*words).exit_code != 0
    assert (tmp_path / "again.h5.partial").is_dir()
    other = [word if word != "auto" else "last" for word in words]
    assert several(*other).exit_code == 4, "other layers are another extraction"
    several.succeeds(*words)
    again = open_store(tmp_path / "again.h5")
    assert again.encoder_hash == store.encoder_hash
    assert again.made_by["plan"]["vision"] == asked["vision"]
    several.succeeds(*[*words[:-1], tmp_path / "whole.h5"])
    assert differing(stored_datasets(again.path), stored_datasets(tmp_path / "whole.h5")) == []
