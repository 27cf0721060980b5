"""The hashes tell encoders apart, and nothing but encoders."""

import pytest
import torch
import transformers
from support import tiny_models
from torch import nn

from alignvl_cli.encoders.records import require_same, weights_sha256
from alignvl_cli.errors import MismatchError
from alignvl_cli.store.schema import encoder_hash


def net(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Linear(4, 5))


def test_weights_decide_the_hash():
    assert weights_sha256(net()) == weights_sha256(net())
    assert weights_sha256(net()) != weights_sha256(net(1))
    changed = net()
    with torch.no_grad():
        changed[2].bias[3] += 1e-6
    assert weights_sha256(changed) != weights_sha256(net())
    statistics = net()
    statistics[1].running_mean[0] = 1.0  # a buffer decides latents too
    assert weights_sha256(statistics) != weights_sha256(net())
    assert weights_sha256(net().double()) != weights_sha256(net())
    assert weights_sha256(net()[2:]) != weights_sha256(net())


def test_shape_decides_the_hash():
    flat, square = nn.ParameterList([torch.arange(6.0)]), nn.ParameterList([torch.arange(6.0).reshape(2, 3)])
    assert weights_sha256(flat) != weights_sha256(square)


def test_names_counters_and_memory_layout_do_not():
    renamed = nn.ModuleDict({"z": net()[0], "y": net()[1], "x": net()[2]})
    assert weights_sha256(renamed) == weights_sha256(net())
    counted = net()
    counted[1].num_batches_tracked += 7
    assert weights_sha256(counted) == weights_sha256(net())
    assert weights_sha256(net().to(memory_format=torch.channels_last)) == weights_sha256(net())


def test_unused_tensors_do_not_count():
    other = net()
    nn.init.zeros_(other[2].bias)
    assert weights_sha256(other, unused={"2.bias"}) == weights_sha256(net(), unused={"2.bias"})
    assert weights_sha256(net(), unused={"2.bias"}) != weights_sha256(net())


def test_shards_and_single_files_hash_alike(tmp_path):
    folder = tiny_models.save_dinov2(tmp_path / "one")
    model = transformers.AutoModel.from_pretrained(folder)
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    again = transformers.AutoModel.from_pretrained(tmp_path / "many")
    assert weights_sha256(again) == weights_sha256(model)


def test_encoder_hash_takes_both_sides_and_no_order_of_keys():
    vision, text = {"class": "A", "pooling": "cls"}, {"class": "B"}
    assert encoder_hash(vision, text) == encoder_hash(dict(reversed(vision.items())), text)
    assert (
        len({encoder_hash(vision, text), encoder_hash(text, vision), encoder_hash(vision | {"pooling": "mean"}, text)})
        == 3
    )


def test_a_mismatch_names_each_difference_and_equality_none():
    stored = {"class": "A", "pooling": "cls", "max_length": 5}
    require_same("m", stored, dict(stored))
    with pytest.raises(MismatchError, match="max_length: stored 5, loaded 6; pooling: stored cls, loaded mean"):
        require_same("m", stored, stored | {"pooling": "mean", "max_length": 6})
