"""`--text-prefix`: given once to extract, read with every caption and query from then on."""

import json

import numpy as np
import pytest
from support.coloured_squares import train_on_colours
from support.command_line import CommandLine
from support.tiny_models import save_dinov2, save_sentence_transformer

from alignvl_cli.retrieval.dual_encoder import DualEncoder
from alignvl_cli.settings import Precision
from alignvl_cli.store.reader import open_store


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Flags of two tiny encoders, of which the text model is called as an E5 is."""
    folder = tmp_path_factory.mktemp("encoders")
    vision, text = save_dinov2(folder / "dinov2"), save_sentence_transformer(folder / "multilingual-e5-small")
    return ["--vision", str(vision), "--text", str(text), "--device", "cpu", "--precision", "fp32"]


@pytest.fixture(scope="module")
def prefixed(tmp_path_factory, encoders):
    folder = tmp_path_factory.mktemp("prefixed")
    alignvl = CommandLine(folder / "workspace")
    train_on_colours(alignvl, folder, [*encoders, "--text-prefix", "query: "])
    return alignvl


@pytest.mark.slow
def test_extract_asks_for_the_prefix_of_an_e5(empty, prefixed, encoders):
    dataset = prefixed.workspace.parent / "own.jsonl"
    message = empty.fails(2, "extract", dataset, *encoders)
    assert "--text-prefix 'query: '" in message
    assert "--text-prefix ''" in message
    assert "--text-prefix" in empty.fails(2, "data", "check", dataset, "--text", encoders[3])


def test_another_prefix_is_another_store(prefixed, encoders, tmp_path):
    dataset = prefixed.workspace.parent / "own.jsonl"
    (store,) = (prefixed.workspace / "stores").glob("*.h5")
    plain = tmp_path / "plain.h5"
    prefixed.succeeds("extract", dataset, "-o", plain, *encoders, "--text-prefix", "")
    assert open_store(plain).encoder_hash != open_store(store).encoder_hash
    assert not np.allclose(open_store(plain).text_latent, open_store(store).text_latent, atol=1e-3)
    message = prefixed.fails(2, "extract", dataset, "-o", plain, *encoders, "--text-prefix", "query: ")
    assert "text.prefix was '', now 'query: '" in message
    run = prefixed.workspace / "runs" / "0001-alignvl-s0"
    assert "text prefix" in prefixed.fails(4, "eval", run, "--data", plain)


def test_search_classify_verify_and_python_take_the_recorded_prefix(prefixed, monkeypatch):
    monkeypatch.setattr("alignvl_cli.retrieval.dual_encoder.choose_precision", lambda asked, device: Precision.fp32)
    (store,) = (prefixed.workspace / "stores").glob("*.h5")
    dual = DualEncoder.load(prefixed.workspace / "runs" / "0001-alignvl-s0", "cpu")
    row = open_store(store).text_caption.index("red square 0")
    stored = dual.project_text(open_store(store).text_latent[[row]])
    np.testing.assert_allclose(dual.encode_text(["red square 0"]), stored, rtol=0, atol=1e-5)
    found = json.loads(prefixed.succeeds("search", "red square 0", "--of", "text", "-k", "1", "--json"))
    assert "red square 0" in json.dumps(found)
    prefixed.succeeds("classify", "--json")
    verified = json.loads(prefixed.succeeds("inspect", store, "--verify", 4, "--json"))["verify"]
    assert verified["captions"]["largest"] < 1e-6


def test_data_check_counts_the_prefix(prefixed, encoders):
    dataset = prefixed.workspace.parent / "own.jsonl"
    lengths = []
    for prefix in ("", "query: " * 3):
        words = ["data", "check", dataset, "--text", encoders[3], "--text-prefix", prefix, "--json"]
        lengths.append(json.loads(prefixed.succeeds(*words))["captions"]["truncation"])
    assert lengths[0] != lengths[1]
    assert "--text" in prefixed.fails(2, "data", "check", dataset, "--text-prefix", "query: ")
