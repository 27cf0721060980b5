"""`auto` layers of every family: several parts that tell inputs apart, or the last layer alone and why."""

import numpy as np
import pytest
from PIL import Image
from support import tiny_models
from support.command_line import CommandLine
from support.families import FAMILIES, save_family
from transformers import AutoConfig, BertModel, ResNetModel

from alignvl_cli.encoders.layers import Layers
from alignvl_cli.encoders.pooling import DEFAULTS
from alignvl_cli.encoders.text import load_text, reload_text
from alignvl_cli.encoders.vision import load_vision, reload_vision
from alignvl_cli.errors import UsageError
from alignvl_cli.settings import Pooling, Precision

pytestmark = pytest.mark.usefixtures("auto_of_shallow_models")

TEXTS = ["a red heart", "two dogs running in the snow", "z"]
VISION = [name for name in FAMILIES if hasattr(AutoConfig.for_model(name), "num_channels")]
HIERA = {"embed_dim": 8, "image_size": [32, 32], "patch_size": [7, 7], "depths": [1, 1], "num_heads": [1, 2]}
"""Has a pooler, and tokens of which nothing tells how to pool them."""


def save_hiera(folder):
    return save_family(folder, "hiera", HIERA | {"num_query_pool": 1})


def vision(folder, layers, pooling=None):
    return load_vision(str(folder), pooling=pooling, layers=layers, device="cpu", precision=Precision.fp32)


def text(folder, layers, pooling=Pooling.mean):
    return load_text(str(folder), pooling=pooling, layers=layers, device="cpu", precision=Precision.fp32)


def pictures(encoder):
    draw = np.random.default_rng(0)
    drawn = (Image.fromarray(draw.integers(0, 256, (40 + row, 64, 3), dtype=np.uint8)) for row in range(3))
    return np.stack([encoder.prepare(image) for image in drawn])


def distinct(latent_BD):
    return len(np.unique(latent_BD.round(5), axis=0)) == len(latent_BD)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_several_parts(name, tmp_path):
    folder = save_family(tmp_path, name)
    if name in VISION:
        pooling = DEFAULTS.get(name, Pooling.mean)
        several, plain = vision(folder, "auto", pooling), vision(folder, "last", pooling)
        inputs = pictures(several)
        reloaded = reload_vision(several.record, several.about, "cpu", Precision.fp32)
    else:
        several, plain = text(folder, "auto"), text(folder, "last")
        inputs = TEXTS
        reloaded = reload_text(several.record, several.about, "cpu", Precision.fp32)
    latent, own = several.encode(inputs), plain.encode(inputs)
    assert several.layers.note == ""
    widths = {part["name"]: part["width"] for part in several.record["parts"]}
    assert len(widths) >= 2
    assert list(widths)[-1] == "last"
    parts = np.split(latent, np.cumsum([*widths.values()])[:-1], axis=1)
    for part in parts:
        np.testing.assert_allclose(np.linalg.norm(part, axis=1), 1, atol=1e-5)
        assert distinct(part) or not distinct(own)  # the random EfficientNet gives one vector for all
    np.testing.assert_allclose(parts[-1], own / np.linalg.norm(own, axis=1, keepdims=True), atol=1e-5)
    alone = np.concatenate([several.encode(inputs[row : row + 1]) for row in range(len(inputs))])
    np.testing.assert_allclose(alone, latent, atol=1e-4)
    np.testing.assert_array_equal(reloaded.encode(inputs), latent)


def silent_bert(self, input_ids=None, attention_mask=None, token_type_ids=None):
    """Of a model that knows nothing of hidden states."""
    return FORWARDS[BertModel](self, input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)


def silent_resnet(self, pixel_values, output_hidden_states=False):
    """Of one that passes the wish over."""
    return FORWARDS[ResNetModel](self, pixel_values)


def flat_resnet(self, pixel_values, output_hidden_states=False):
    """Of one whose layers are laid out otherwise than its output."""
    output = FORWARDS[ResNetModel](self, pixel_values, output_hidden_states=True)
    return output.__class__(**{**output, "hidden_states": tuple(state.flatten(2) for state in output.hidden_states)})


FORWARDS = {BertModel: BertModel.forward, ResNetModel: ResNetModel.forward}


@pytest.mark.parametrize(
    ("save", "load", "pooling", "flag", "patch", "why"),
    [
        (tiny_models.save_bert, text, Pooling.mean, "--text-layers", (BertModel, silent_bert), "shows none"),
        (tiny_models.save_resnet, vision, None, "--image-layers", (ResNetModel, silent_resnet), "shows none"),
        (tiny_models.save_resnet, vision, None, "--image-layers", (ResNetModel, flat_resnet), "laid out otherwise"),
        (save_hiera, vision, Pooling.pooler, "--image-layers", None, "nothing tells how to pool"),
    ],
)
def test_a_family_without_layers_to_show_is_taken_as_it_is_and_refuses_a_list(
    save, load, pooling, flag, patch, why, tmp_path, monkeypatch
):
    if patch is not None:
        monkeypatch.setattr(patch[0], "forward", patch[1])
    folder = save(tmp_path)
    plain, automatic = load(folder, "last", pooling), load(folder, "auto", pooling)
    assert automatic.record == plain.record
    inputs = pictures(plain) if load is vision else TEXTS
    np.testing.assert_array_equal(automatic.encode(inputs), plain.encode(inputs))
    assert automatic.layers == Layers(note=automatic.layers.note)
    assert automatic.layers.note.startswith(f"{flag} auto takes the last layer alone of {folder}: ")
    assert why in automatic.layers.note
    for layers in ("all", "0,last", "1"):
        with pytest.raises(UsageError, match=f"{why}.*; give {flag} last"):
            load(folder, layers, pooling)
    assert load(folder, "last", pooling).layers.note == ""


@pytest.mark.parametrize(
    ("images", "texts", "words"),
    [
        (tiny_models.save_dinov2, tiny_models.save_sentence_transformer, []),
        (tiny_models.save_clip, tiny_models.save_clip, []),
        (tiny_models.save_siglip, tiny_models.save_siglip, []),
        (tiny_models.save_resnet, tiny_models.save_t5, ["--text-pooling", "mean"]),
        (tiny_models.save_vit, tiny_models.save_bert, ["--text-pooling", "cls", "--image-pooling", "pooler"]),
        (
            save_hiera,
            tiny_models.save_bert,
            ["--text-pooling", "mean", "--image-pooling", "pooler"],
        ),
    ],
    ids=["dinov2 sentences", "clip", "siglip", "resnet t5", "vit bert", "hiera bert"],
)
def test_automatic_layers_are_extracted_and_searched(images, texts, words, tmp_path):
    alignvl = CommandLine(tmp_path / "workspace")
    rows = []
    for number in range(24):
        Image.new("RGB", (32, 24), (10 * number, 255 - 9 * number, 80)).save(tmp_path / f"{number}.png")
        split = ("val", "test")[number % 2] if number < 6 else "train"
        rows.append(f"{number}.png,square {'abcdefgh'[number % 8]} {number},{split}\n")
    (tmp_path / "own.csv").write_text("image,caption,split\n" + "".join(rows))
    encoders = ["--vision", images(tmp_path / "vision"), "--text", texts(tmp_path / "text"), *words]
    layers = ["--image-layers", "auto", "--text-layers", "auto"]
    done = alignvl("extract", tmp_path / "own.csv", *encoders, *layers, "--device", "cpu")
    assert done.exit_code == 0, done.output
    is_noted = "--image-layers auto takes the last layer alone" in " ".join(done.stderr.split())
    assert is_noted == (images is save_hiera)
    alignvl.succeeds("train", "--epochs", 1, "--batch-size", 4, "--embed-dim", 8, "--device", "cpu")
    alignvl.succeeds("index")
    assert ".png" in alignvl.succeeds("search", "square a", "-k", 1)
    assert "square" in alignvl.succeeds("search", "--image", tmp_path / "3.png", "-k", 1)
