"""`alignvl export --to hub-folder`: a folder, and a model of the Hub, that `DualEncoder.from_pretrained` loads."""

import os
import subprocess
import sys

import numpy as np
import pytest
from huggingface_hub import ModelCard
from support.command_line import QUICK, CommandLine
from support.fake_hub import fake_hub
from support.fakes import make_store

from alignvl_cli import DualEncoder
from alignvl_cli.errors import DataError, UsageError


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A run of fake encoders, evaluated."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "stores").mkdir()
    make_store(folder / "stores" / "fake.h5", images=120, counter=1)
    alignvl = CommandLine(folder)
    alignvl.succeeds("train", *QUICK)
    alignvl.succeeds("eval")
    return folder


@pytest.fixture
def hub_folder(workspace, tmp_path):
    CommandLine(workspace).succeeds("export", "-o", tmp_path / "pair", "--to", "hub-folder")
    return tmp_path / "pair"


def run_of(workspace):
    return next((workspace / "runs").iterdir())


def latents(encoder):
    shape = encoder.run.adapters.shape
    random = np.random.default_rng(0)
    return [random.standard_normal((5, width), dtype=np.float32) for width in (shape.image_width, shape.text_width)]


def test_a_folder_gives_the_runs_embeddings(workspace, hub_folder, tmp_path):
    run = DualEncoder.load(run_of(workspace), "cpu")
    CommandLine(workspace).succeeds("export", "-o", tmp_path / "weights", "--to", "safetensors")
    image_ND, text_ND = latents(run)
    for place in (hub_folder, str(hub_folder), tmp_path / "weights", run_of(workspace)):
        encoder = DualEncoder.from_pretrained(place, "cpu")
        assert np.array_equal(encoder.project_image(image_ND), run.project_image(image_ND))
        assert np.array_equal(encoder.project_text(text_ND), run.project_text(text_ND))
        assert encoder.temperature == run.temperature
        assert (encoder.run.vision, encoder.run.text) == (run.run.vision, run.run.text)


def test_the_card_has_what_a_hub_indexes(workspace, hub_folder):
    about = ModelCard.load(hub_folder / "README.md").data
    assert (about.library_name, about.pipeline_tag) == ("alignvl", "feature-extraction")
    assert about.tags == ["alignvl", "image-text-retrieval"]
    assert about.model_name == run_of(workspace).name
    names = {result.metric_name for result in about.eval_results}
    assert {f"{way} R@{k}" for way in ("image to text", "text to image") for k in (1, 5, 10)} == names
    assert all(0 <= result.metric_value <= 100 for result in about.eval_results)
    assert sorted(path.name for path in hub_folder.iterdir()) == ["README.md", "adapters.safetensors", "config.json"]


def test_what_is_damaged_or_something_else_is_refused(hub_folder, tmp_path):
    weights = (hub_folder / "adapters.safetensors").read_bytes()
    (hub_folder / "adapters.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(DataError, match="sha256 is not the one"):
        DualEncoder.from_pretrained(hub_folder)
    (hub_folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match="neither a run nor what"):
        DualEncoder.from_pretrained(hub_folder)
    with pytest.raises(DataError, match="there is no such folder"):
        DualEncoder.from_pretrained(tmp_path / "none")
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set"):
        DualEncoder.from_pretrained("nobody/nothing")
    with pytest.raises(UsageError, match="device: wanted one of"):
        DualEncoder.from_pretrained(hub_folder, "tpu")


def test_nothing_is_uploaded_unasked_and_a_folder_of_this_machine_is_not_for_the_hub(workspace, tmp_path):
    alignvl, out = CommandLine(workspace), tmp_path / "pair"
    said = alignvl.fails(2, "export", "-o", out, "--to", "safetensors", "--push-to-hub", "me/pair")
    assert "--push-to-hub acts on --to hub-folder alone" in said
    said = alignvl.fails(3, "export", "-o", out, "--to", "hub-folder", "--push-to-hub", "me/pair", "-q")
    assert f"hf upload me/pair {out}" in said
    assert (out / "adapters.safetensors").exists()
    make_store(tmp_path / "own.h5", images=60, encoders=str(tmp_path / "model"))
    alignvl.succeeds("train", tmp_path / "own.h5", "-o", tmp_path / "run", *QUICK)
    said = alignvl.fails(2, "export", tmp_path / "run", "-o", tmp_path / "own", "--to", "hub-folder", "-q")
    assert "is a folder of this machine" in said
    assert not (tmp_path / "own").exists()


LOAD = """
import sys, numpy as np
from alignvl_cli import DualEncoder
latents = np.load(sys.argv[1])
for number, name in enumerate(["me/pair", "me/pair@main"]):
    np.save(sys.argv[2] + str(number), DualEncoder.from_pretrained(name, "cpu").project_text(latents))
DualEncoder.from_pretrained("me/other")
"""


@pytest.mark.slow
def test_a_model_of_the_hub_is_uploaded_on_command_and_loaded_by_its_id(workspace, tmp_path):
    run = DualEncoder.load(run_of(workspace), "cpu")
    np.save(tmp_path / "latents.npy", latents(run)[1])
    export = ["export", run_of(workspace), "-o", tmp_path / "pair", "--to", "hub-folder", "--push-to-hub", "me/pair"]
    with fake_hub() as hub:
        environment = {**os.environ, **hub.environment, "HF_HOME": str(tmp_path / "cache")}

        def python(*words):
            return subprocess.run(
                [sys.executable, *map(str, words)], env=environment, capture_output=True, text=True, check=False
            )

        done = python("-m", "alignvl_cli", *export, "--workspace", workspace)
        assert done.returncode == 0, done.stderr
        assert "uploaded: http://127.0.0.1" in done.stderr.replace("\n", "")
        assert hub.private == {"me/pair"}
        files = {path.name: path.read_bytes() for path in (tmp_path / "pair").iterdir()}
        assert hub.models == {"me/pair": files}
        done = python("-c", LOAD, tmp_path / "latents.npy", tmp_path / "found")
        assert "DataError: me/other: the Hub has no such model" in done.stderr
        for number in range(2):
            found = np.load(tmp_path / f"found{number}.npy")
            assert np.array_equal(found, run.project_text(latents(run)[1]))
        asked = list(hub.asked)
    assert [path for path in asked if "resolve" in path and "README" in path] == [], "only what is loaded is fetched"
