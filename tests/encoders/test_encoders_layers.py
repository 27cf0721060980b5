"""Latents of several layers: each family's layers against transformers' own hidden states, and what is refused."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from support import tiny_models
from support.families import FAMILIES, save_family

from alignvl_cli.encoders.text import load_text, reload_text
from alignvl_cli.encoders.vision import load_vision, reload_vision
from alignvl_cli.errors import MismatchError, UsageError
from alignvl_cli.settings import Pooling, Precision

TEXTS = ["a red heart", "two dogs running in the snow", "z"]
VISION = {
    "dinov2": (tiny_models.save_dinov2, Pooling.mean, "0,1,last"),
    "dinov2 by class token": (tiny_models.save_dinov2, Pooling.cls, "1,last"),
    "vit": (tiny_models.save_vit, Pooling.cls_mean, "0,2,last"),
    "resnet": (tiny_models.save_resnet, None, "0,1,last"),
    "clip": (tiny_models.save_clip, None, "1,2,last"),
    "clip tower": (tiny_models.save_clip_vision, Pooling.projection, "1,last"),
    "siglip": (tiny_models.save_siglip, None, "0,1,last"),
}
TEXT = {
    "bert": (tiny_models.save_bert, Pooling.mean, "0,1,last"),
    "bert by class token": (tiny_models.save_bert, Pooling.cls, "1,last"),
    "sentence": (tiny_models.save_sentence_transformer, None, "0,1,last"),
    "t5": (tiny_models.save_t5, Pooling.mean, "0,1,last"),
    "clip": (tiny_models.save_clip, None, "1,2,last"),
    "siglip": (tiny_models.save_siglip, None, "1,last"),
}


def vision(folder, pooling, layers):
    return load_vision(str(folder), pooling=pooling, layers=layers, device="cpu", precision=Precision.fp32)


def text(folder, pooling, layers):
    return load_text(str(folder), pooling=pooling, layers=layers, device="cpu", precision=Precision.fp32)


def pictures(encoder):
    draw = np.random.default_rng(0)
    drawn = (Image.fromarray(draw.integers(0, 256, (40 + row, 64, 3), dtype=np.uint8)) for row in range(4))
    return np.stack([encoder.prepare(image) for image in drawn])


def parts_of(encoder, latent_BD):
    widths = [part["width"] for part in encoder.record["parts"]]
    assert sum(widths) == latent_BD.shape[1] == encoder.width
    names = [part["name"] for part in encoder.record["parts"]]
    return dict(zip(names, np.split(latent_BD, np.cumsum(widths)[:-1], axis=1), strict=True))


def unit(latent_BD):
    return latent_BD / np.linalg.norm(latent_BD, axis=1, keepdims=True)


@pytest.mark.slow
@pytest.mark.parametrize("family", VISION)
def test_each_part_of_a_picture_is_the_single_layer_at_unit_length(family, tmp_path):
    save, pooling, layers = VISION[family]
    folder = save(tmp_path)
    several = vision(folder, pooling, layers)
    pixels = pictures(several)
    for name, part in parts_of(several, several.encode(pixels)).items():
        np.testing.assert_allclose(part, unit(vision(folder, pooling, name).encode(pixels)), atol=1e-6)
        assert len(np.unique(part.round(5), axis=0)) == len(pixels), f"{family}: layer {name} is the same for all"
    reloaded = reload_vision(several.record, several.about, "cpu", Precision.fp32)
    np.testing.assert_array_equal(reloaded.encode(pixels), several.encode(pixels))


@pytest.mark.parametrize("family", TEXT)
def test_each_part_of_a_caption_is_the_single_layer_at_unit_length(family, tmp_path):
    save, pooling, layers = TEXT[family]
    folder = save(tmp_path)
    several = text(folder, pooling, layers)
    for name, part in parts_of(several, several.encode(TEXTS)).items():
        np.testing.assert_allclose(part, unit(text(folder, pooling, name).encode(TEXTS)), atol=1e-6)
        assert len(np.unique(part.round(5), axis=0)) == len(TEXTS), f"{family}: layer {name} is the same for all"
    alone = np.concatenate([several.encode([one]) for one in TEXTS])
    np.testing.assert_allclose(alone, several.encode(TEXTS), atol=1e-5)  # padding is no part of any layer
    reloaded = reload_text(several.record, several.about, "cpu", Precision.fp32)
    np.testing.assert_array_equal(reloaded.encode(TEXTS), several.encode(TEXTS))


def test_layers_are_transformers_own_hidden_states(tmp_path):
    folder = tiny_models.save_bert(tmp_path / "bert")
    encoder = text(folder, Pooling.mean, "0,1,last")
    with torch.inference_mode():
        model = transformers.AutoModel.from_pretrained(folder).eval()
        for caption, latent in zip(TEXTS, encoder.encode(TEXTS), strict=True):
            ids = encoder.reader.batch([caption], "cpu")
            states = model(**ids, output_hidden_states=True).hidden_states
            wanted = np.concatenate([unit(states[layer].mean(dim=1).numpy())[0] for layer in (0, 1, 2)])
            np.testing.assert_allclose(latent, wanted, atol=1e-5)
    folder = tiny_models.save_resnet(tmp_path / "resnet")
    images = vision(folder, None, "all")
    pixels = pictures(images)
    with torch.inference_mode():
        model = transformers.AutoModel.from_pretrained(folder).eval()
        states = model(pixel_values=images.values(pixels).contiguous(), output_hidden_states=True).hidden_states
    wanted = np.concatenate([unit(state.mean(dim=(2, 3)).numpy()) for state in states], axis=1)
    np.testing.assert_allclose(images.encode(pixels), wanted, atol=1e-5)


def test_last_alone_is_the_encoder_as_it_always_was(tmp_path):
    folder = tiny_models.save_bert(tmp_path / "bert")
    plain = load_text(str(folder), pooling=Pooling.mean, device="cpu", precision=Precision.fp32)
    for layers in ("last", "2"):  # the highest layer of BERT is its output
        same = text(folder, Pooling.mean, layers)
        np.testing.assert_array_equal(same.encode(TEXTS), plain.encode(TEXTS))
        assert same.record == plain.record
        assert "parts" not in same.record
    other = text(folder, Pooling.mean, "1")
    assert other.record["parts"] == [{"name": "1", "width": plain.width}]
    with pytest.raises(MismatchError, match="parts"):
        reload_text({**plain.record, "parts": [{"name": "1", "width": 7}]}, plain.about, "cpu", Precision.fp32)


@pytest.mark.parametrize(
    ("layers", "wanted"), [("auto", ["0", "1", "last"]), ("all", ["0", "1", "last"]), ("last,0", ["last", "0"])]
)
def test_words_stand_for_layers(layers, wanted, tmp_path, monkeypatch):
    monkeypatch.setattr("alignvl_cli.encoders.layers.SHALLOW", 0)
    encoder = text(tiny_models.save_bert(tmp_path), Pooling.mean, layers)
    assert [part["name"] for part in encoder.record["parts"]] == wanted


@pytest.mark.parametrize(("layers", "wanted"), [(2, []), (3, []), (4, ["0", "2", "last"])])
def test_of_a_shallow_model_auto_takes_the_last_layer_and_says_so(layers, wanted, tmp_path):
    folder = save_family(tmp_path, "bert", FAMILIES["bert"] | {"num_hidden_layers": layers})
    encoder = text(folder, Pooling.mean, "auto")
    assert [part["name"] for part in encoder.record.get("parts", [])] == wanted
    said = f"--text-layers auto takes the last layer alone of {folder}: it has no more than {layers} of them"
    assert encoder.layers.note == ("" if wanted else said)
    assert len(text(folder, Pooling.mean, "all").record["parts"]) == layers + 1


@pytest.mark.slow
def test_automatic_layers_of_the_bundled_encoders_are_those_that_were_measured():
    images = load_vision(
        "bundled:efficientnet-lite0", pooling=None, layers="auto", device="cpu", precision=Precision.fp32
    )
    captions = load_text(
        "bundled:all-minilm-l6-v2", pooling=None, layers="auto", device="cpu", precision=Precision.fp32
    )
    assert images.record["parts"] == [
        {"name": "8", "width": 80},
        {"name": "11", "width": 112},
        {"name": "last", "width": 1280},
    ]
    assert captions.record["parts"] == [{"name": name, "width": 384} for name in ("0", "3", "last")]


@pytest.mark.parametrize(
    ("pooling", "layers", "said"),
    [
        (Pooling.mean, "3", "has no layer 3; it has 0, 1, last"),
        (Pooling.mean, "2,last", "named twice"),
        (Pooling.mean, "0,0", "named twice"),
        (Pooling.cls, "0,last", "the same for every input"),
    ],
)
def test_layers_that_are_not_there_or_say_nothing_are_refused(pooling, layers, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        text(tiny_models.save_bert(tmp_path), pooling, layers)
