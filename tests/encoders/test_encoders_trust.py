"""A model's own code and pickled weights act only when the user says so, each time; both are recorded."""

import json
import sys

import pytest
import torch
import transformers.dynamic_module_utils
from PIL import Image
from safetensors.torch import load_file, save_file
from support import tiny_models
from support.fake_runs import make_run
from support.fakes import make_store
from transformers import Dinov2Model

from alignvl_cli.artifacts import read_json
from alignvl_cli.encoders.text import load_text, reload_text
from alignvl_cli.encoders.vision import load_vision, reload_vision
from alignvl_cli.errors import DataError, MismatchError
from alignvl_cli.retrieval.dual_encoder import DualEncoder
from alignvl_cli.settings import Pooling, Precision, Trust
from alignvl_cli.store.reader import open_store

NONE, CODE, PICKLE = Trust(), Trust(remote_code=True), Trust(pickle=True)
CONFIGURATION = """
from transformers import Dinov2Config

class OwnConfig(Dinov2Config):
    model_type = "own_vision"
"""
MODELING = """
from pathlib import Path
from transformers import Dinov2Model
from .configuration_own import OwnConfig

Path({ran!r}).touch()

class OwnModel(Dinov2Model):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    """A vision model made of its own files, which leave a trace when they run."""
    folder = tiny_models.save_dinov2(tmp_path / "own")
    weights = Dinov2Model.from_pretrained(folder).state_dict()  # under the class's own names, which files need not have
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    tiny_models.write_json(folder / "config.json", config | {"model_type": "own_vision", "auto_map": auto})
    (folder / "configuration_own.py").write_text(CONFIGURATION)
    (folder / "modeling_own.py").write_text(MODELING.format(ran=str(tmp_path / "ran")))
    usual = transformers.dynamic_module_utils.HF_MODULES_CACHE
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != usual])  # where it comes first
    forget_modules()  # of another test, whose folder they would be looked for in
    yield folder
    forget_modules()


def forget_modules():
    """What transformers has loaded of models' own code."""
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


@pytest.fixture
def pickled(tmp_path):
    """A text model whose weights are a .bin alone."""
    folder = tiny_models.save_sentence_transformer(tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def vision(folder, trust=NONE):
    return load_vision(str(folder), pooling=Pooling.cls, device="cpu", precision=Precision.fp32, trust=trust)


def text(folder, trust=NONE):
    return load_text(str(folder), pooling=None, device="cpu", precision=Precision.fp32, trust=trust)


def test_own_code_is_not_run_unasked(own_code, tmp_path):
    with pytest.raises(DataError, match=r"own: .*Python code of its own, which is not run.*--trust-remote-code"):
        load_vision(str(own_code), pooling=None, device="cpu", precision=Precision.fp32)
    with pytest.raises(DataError, match="--trust-remote-code"):
        vision(own_code, PICKLE)
    assert not (tmp_path / "ran").exists()


def test_trusted_code_runs_and_is_recorded_with_its_hash(own_code, tmp_path):
    encoder = vision(own_code, CODE)
    assert (tmp_path / "ran").exists()
    assert encoder.record["class"] == "OwnModel"
    assert encoder.about["trust_remote_code"] is True
    pixels = encoder.prepare(Image.new("RGB", (50, 40), "red"))[None]
    plain = vision(tiny_models.save_dinov2(tmp_path / "plain"))
    assert plain.encode(pixels).tobytes() == encoder.encode(pixels).tobytes()
    assert plain.about["trust_remote_code"] is False
    assert "code" not in plain.record
    before = encoder.record["code"]
    (own_code / "modeling_own.py").write_text((own_code / "modeling_own.py").read_text() + "# changed")
    assert vision(own_code, CODE).record["code"] != before


def test_what_was_trusted_once_is_not_trusted_silently_again(own_code, tmp_path):
    encoder = vision(own_code, CODE)
    (tmp_path / "ran").unlink()
    with pytest.raises(DataError, match="--trust-remote-code"):
        reload_vision(encoder.record, encoder.about, "cpu", Precision.fp32)
    assert not (tmp_path / "ran").exists()
    again = reload_vision(encoder.record, encoder.about, "cpu", Precision.fp32, CODE)
    assert again.record == encoder.record
    (own_code / "modeling_own.py").write_text((own_code / "modeling_own.py").read_text() + "# changed")
    with pytest.raises(MismatchError, match="code: stored"):
        reload_vision(encoder.record, encoder.about, "cpu", Precision.fp32, CODE)


def test_trust_changes_nothing_for_a_model_without_code(tmp_path):
    folder = tiny_models.save_dinov2(tmp_path / "m")
    assert vision(folder, Trust(remote_code=True, pickle=True)).record == vision(folder).record


def test_code_of_another_repository_is_refused(own_code):
    config = json.loads((own_code / "config.json").read_text())
    config["auto_map"]["AutoModel"] = "owner/elsewhere--modeling_own.OwnModel"
    tiny_models.write_json(own_code / "config.json", config)
    with pytest.raises(DataError, match=r"another repository .owner/elsewhere.*local folder"):
        vision(own_code, CODE)


def test_pickled_weights_wait_for_the_flag(pickled, tmp_path):
    with pytest.raises(DataError, match=r"pickled.*convert them to model\.safetensors.*--allow-pickle"):
        text(pickled)
    encoder = text(pickled, PICKLE)
    safe = text(tiny_models.save_sentence_transformer(tmp_path / "safe"))
    assert encoder.encode(["a dog", "b"]).tobytes() == safe.encode(["a dog", "b"]).tobytes()
    assert encoder.record == safe.record  # weights are known by their content, not by the file's format
    assert (encoder.about["allow_pickle"], safe.about["allow_pickle"]) == (True, False)
    with pytest.raises(DataError, match="--allow-pickle"):
        reload_text(encoder.record, encoder.about, "cpu", Precision.fp32)
    assert reload_text(encoder.record, encoder.about, "cpu", Precision.fp32, PICKLE).record == safe.record


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_even_allowed_pickles_hold_tensors_alone(pickled, tmp_path):
    torch.save({"weight": Bomb(tmp_path / "boom")}, pickled / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"cannot load it: its pickled weights .* hold more than tensors"):
        text(pickled, PICKLE)
    assert not (tmp_path / "boom").exists()


def test_a_missing_pickled_shard_is_named(pickled):
    (pickled / "pytorch_model.bin").unlink()
    index = {"weight_map": {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}}
    tiny_models.write_json(pickled / "pytorch_model.bin.index.json", index)
    (pickled / "pytorch_model-00001-of-00002.bin").touch()
    with pytest.raises(DataError, match=r"missing: pytorch_model-00002-of-00002\.bin$"):
        text(pickled, PICKLE)


def test_the_dual_encoder_asks_anew(pickled, tmp_path):
    tower = text(pickled, PICKLE)
    store = open_store(make_store(tmp_path / "s.h5", images=10, dim=8, text_dim=tower.width))
    run = make_run(tmp_path / "run", store, seed=1, embed_dim=8)
    config = read_json(run / "config.json", "config")
    config["text"] = {"record": tower.record, "about": tower.about}
    tiny_models.write_json(run / "config.json", config)
    with pytest.raises(DataError, match="--allow-pickle"):
        DualEncoder.load(run, "cpu").encode_text(["a"])
    assert DualEncoder.load(run, "cpu", allow_pickle=True).encode_text(["a"]).shape == (1, 8)
