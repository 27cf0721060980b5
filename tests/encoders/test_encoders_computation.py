"""Whatever setting of a model moves its output is in its record, and nothing that depends on how a file is written."""

import json

import pytest
import torch
import transformers
from support import tiny_models
from support.families import FAMILIES, built
from transformers import AutoConfig

from alignvl_cli.encoders.records import HOUSEKEEPING, computation_record
from alignvl_cli.encoders.text import load_text, reload_text
from alignvl_cli.encoders.vision import load_vision, reload_vision
from alignvl_cli.errors import MismatchError
from alignvl_cli.settings import Pooling, Precision

READ_UNDECLARED = {"is_causal": None, "sliding_window": None}
"""Settings that transformers reads in decoders whether or not their configurations have them."""
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "silu", "swish", "relu", "tanh", "gated-gelu")


def variants(value):
    """Other values of a setting, by its type."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value * 2, value + 1, value // 2]
    if isinstance(value, float):
        return [value * 3 + 0.1]
    if isinstance(value, str):
        if value in ACTIVATIONS:
            return ["gated-silu" if value == "gated-gelu" else "sigmoid"]
        return {"full_attention": ["sliding_attention"], "sliding_attention": ["full_attention"]}.get(value, [])
    if isinstance(value, dict):
        return [value | {key: other} for key, inner in value.items() for other in variants(inner)]
    if isinstance(value, list):
        places = {0, len(value) - 1} if value else set()
        return [[*value[:at], other, *value[at + 1 :]] for at in places for other in variants(value[at])]
    return [False, 2]


@torch.inference_mode()
def vectors(model):
    """All that may be pooled of one input."""
    if model.main_input_name == "pixel_values":
        output = model(pixel_values=torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    else:
        output = model(input_ids=torch.tensor([[2, 5, 9, 11, 7, 30, 8, 9, 22, 3]]))
    parts = [output.last_hidden_state, getattr(output, "pooler_output", None)]
    return torch.cat([part.flatten() for part in parts if part is not None])


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_what_moves_an_output_is_recorded(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = built(name, FAMILIES[name])
        for tensor in model.parameters():
            torch.nn.init.normal_(tensor, std=0.2)
        weights, expected, record = model.state_dict(), vectors(model), computation_record(model.config)
        moved, silent = set(), set()
        for key, value in (READ_UNDECLARED | model.config.to_dict()).items():
            for other in variants(value) if key not in HOUSEKEEPING else ():
                try:
                    changed = built(name, FAMILIES[name] | {key: other})
                    changed.load_state_dict(weights)
                    found = vectors(changed)
                except Exception:  # no such model, or none of these weights
                    continue
                if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-5, atol=1e-6):
                    moved.add(key)
                    if computation_record(changed.config) == record:
                        silent.add(key)
    assert moved
    assert not silent


def rewrite(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize(
    ("key", "value"), [("hidden_act", "relu"), ("num_attention_heads", 1), ("layer_norm_eps", 0.1)]
)
def test_weights_run_another_way_are_another_encoder(tmp_path, key, value):
    folder = tiny_models.save_dinov2(tmp_path / "m")
    encoder = load_vision(str(folder), pooling=None, device="cpu", precision=Precision.fp32)
    rewrite(folder, **{key: value})
    other = load_vision(str(folder), pooling=None, device="cpu", precision=Precision.fp32)
    assert other.record["weights"] == encoder.record["weights"]
    assert other.record != encoder.record
    with pytest.raises(MismatchError, match=rf"\(config.{key}: stored [^;]*, loaded [^;]*\)"):
        reload_vision(encoder.record, encoder.about, "cpu", Precision.fp32)


def test_each_tower_of_two_records_its_own_settings(tmp_path):
    folder = tiny_models.save_clip(tmp_path / "m")
    text = load_text(str(folder), pooling=None, device="cpu", precision=Precision.fp32)
    vision = load_vision(str(folder), pooling=None, device="cpu", precision=Precision.fp32)
    assert (text.record["config"]["hidden_act"], text.record["config"]["eos_token_id"]) == ("quick_gelu", 3)
    assert vision.record["config"]["patch_size"] == tiny_models.PATCH


def test_the_record_is_what_it_was():
    """A newer transformers that fails here gives every encoder another hash: see what it renamed."""
    assert computation_record(transformers.Dinov2Config(**tiny_models.VISION)) == {
        "hidden_act": "gelu",
        "image_size": 32,
        "layer_norm_eps": 1e-06,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "patch_size": 8,
    }
    assert computation_record(transformers.BertConfig(**tiny_models.TEXT)) == {
        "eos_token_id": 3,
        "hidden_act": "gelu",
        "is_decoder": False,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 40,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "pad_token_id": 0,
    }


def test_how_a_file_spells_a_setting_is_not_recorded(tmp_path):
    """Defaults left out, older names, whole numbers as fractions, settings of training and of older versions."""
    sparse, full = tmp_path / "sparse", tmp_path / "full"
    for folder in (sparse, full):
        folder.mkdir()
    known = {"model_type": "qwen2", **tiny_models.TEXT}
    (sparse / "config.json").write_text(json.dumps(known | {"rope_theta": 10000, "rope_scaling": None}))
    AutoConfig.from_pretrained(sparse).save_pretrained(full)
    rewrite(full, attention_dropout=0.5, use_cache=False, torch_dtype="bfloat16", position_embedding_type="absolute")
    rewrite(full, architectures=["Another"], transformers_version="4.1.0", _name_or_path="/elsewhere")
    records = [computation_record(AutoConfig.from_pretrained(folder)) for folder in (sparse, full)]
    assert records[0] == records[1]
    assert records[0]["rope_parameters"]["rope_theta"] == 10000
    assert records[0]["hidden_act"] == "silu"


def test_a_record_of_an_earlier_version_is_refused_by_name(tmp_path):
    folder = tiny_models.save_bert(tmp_path / "m")
    encoder = load_text(str(folder), pooling=Pooling.mean, device="cpu", precision=Precision.fp32)
    earlier = {key: value for key, value in encoder.record.items() if key != "config"}
    with pytest.raises(MismatchError, match=r"m: the same weights, but .*an earlier alignvl recorded nothing"):
        reload_text(earlier, encoder.about, "cpu", Precision.fp32)
    with pytest.raises(MismatchError, match=r"no longer the encoder .* \(max_length: stored 7, loaded 40\)"):
        reload_text(earlier | {"max_length": 7}, encoder.about, "cpu", Precision.fp32)
