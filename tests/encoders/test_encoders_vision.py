"""Each way to read a vision model, against transformers' own output, and what a model cannot give."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from support import tiny_models

from alignvl_cli.encoders.vision import load_vision, reload_vision
from alignvl_cli.errors import DataError, MismatchError, UsageError
from alignvl_cli.settings import Pooling, Precision

BATCH_TOLERANCE = 1e-5
"""Largest difference, in units of the latents' standard deviation, that a batch's other members may make (float32)."""


def load(folder, pooling=None, precision=Precision.fp32):
    return load_vision(str(folder), pooling=pooling, device="cpu", precision=precision)


def pictures(count=5):
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (40 + row, 64, 3), dtype=np.uint8)) for row in range(count)]


def pixels(encoder, count=5):
    return np.stack([encoder.prepare(image) for image in pictures(count)])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("vision")
    return {
        "dinov2": tiny_models.save_dinov2(root / "dinov2"),
        "vit": tiny_models.save_vit(root / "vit"),
        "vit without pooler": tiny_models.save_vit(root / "vit-no-pooler", pooler=False),
        "resnet": tiny_models.save_resnet(root / "resnet"),
        "clip": tiny_models.save_clip(root / "clip"),
        "clip tower": tiny_models.save_clip_vision(root / "clip-vision"),
        "siglip": tiny_models.save_siglip(root / "siglip"),
    }


def reference(folder, pooling, values):
    """The same vector by transformers' documented classes alone."""
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    with torch.inference_mode():
        if kind in ("clip", "siglip"):
            both = transformers.AutoModel.from_pretrained(folder).eval()
            output = both.vision_model(pixel_values=values)
            if pooling is Pooling.projection:
                return both.visual_projection(output.pooler_output).numpy()
        elif pooling is Pooling.projection:
            model = transformers.CLIPVisionModelWithProjection.from_pretrained(folder).eval()
            return model(pixel_values=values).image_embeds.numpy()
        else:
            output = transformers.AutoModel.from_pretrained(folder).eval()(pixel_values=values)
    hidden = output.last_hidden_state.numpy()
    patches = hidden.mean(axis=(2, 3)) if hidden.ndim == 4 else hidden[:, hidden.shape[1] - 16 :].mean(axis=1)
    return {
        Pooling.cls: lambda: hidden[:, 0],
        Pooling.mean: lambda: patches,
        Pooling.cls_mean: lambda: np.concatenate([hidden[:, 0], patches], axis=1),
        Pooling.pooler: lambda: output.pooler_output.flatten(1).numpy(),
    }[pooling]()


WITH_CLASS_TOKEN = {Pooling.cls, Pooling.mean, Pooling.cls_mean}
ABLE = {
    "dinov2": WITH_CLASS_TOKEN | {Pooling.pooler},
    "vit": WITH_CLASS_TOKEN | {Pooling.pooler},
    "vit without pooler": WITH_CLASS_TOKEN,
    "resnet": {Pooling.mean, Pooling.pooler},
    "clip": WITH_CLASS_TOKEN | {Pooling.pooler, Pooling.projection},
    "clip tower": WITH_CLASS_TOKEN | {Pooling.pooler, Pooling.projection},
    "siglip": {Pooling.mean, Pooling.pooler},
}
CASES = [(name, pooling) for name, able in ABLE.items() for pooling in Pooling if pooling in able]


@pytest.mark.parametrize(("name", "pooling"), CASES, ids=str)
def test_each_pooling_is_the_vector_it_names(folders, name, pooling):
    encoder = load(folders[name], pooling)
    batch = pixels(encoder)
    latent = encoder.encode(batch)
    expected = reference(folders[name], pooling, encoder.values(batch))
    assert latent.dtype == np.float32
    assert latent.shape == (5, encoder.width)
    assert expected.std(axis=0).max() > 1e-3  # pictures differ
    np.testing.assert_allclose(latent, expected, rtol=0, atol=1e-5)
    assert encoder.record["pooling"] == pooling.value
    assert encoder.about["pooling_source"] == "asked"


@pytest.mark.parametrize("name", ABLE)
def test_what_a_model_cannot_give_is_refused_with_what_it_can(folders, name):
    for pooling in set(Pooling) - ABLE[name]:
        with pytest.raises(UsageError, match="cannot give --image-pooling") as refusal:
            load(folders[name], pooling)
        offered = set(str(refusal.value).rsplit("it can give: ", 1)[1].split(", "))
        assert offered == {able.value for able in ABLE[name]}


@pytest.mark.parametrize(
    ("name", "pooling"),
    [
        ("dinov2", "cls"),
        ("vit", "cls"),
        ("vit without pooler", "cls"),
        ("resnet", "pooler"),
        ("clip", "pooler"),
        ("clip tower", "pooler"),
        ("siglip", "pooler"),
    ],
)
def test_default_pooling_by_model_type(folders, name, pooling):
    encoder = load(folders[name])
    assert (encoder.record["pooling"], encoder.about["pooling_source"]) == (pooling, "table")


def test_a_model_type_without_default_asks(tmp_path, folders):
    config = transformers.BeitConfig(**tiny_models.VISION)
    folder = tiny_models.save_model(tmp_path / "beit", transformers.BeitModel, config)
    transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    with pytest.raises(UsageError, match=r"model type beit.*--image-pooling; it can give: cls, mean, pooler"):
        load(folder)


def test_registers_are_no_patches(tmp_path):
    config = transformers.Dinov2WithRegistersConfig(**tiny_models.VISION, mlp_ratio=2, num_register_tokens=4)
    folder = tiny_models.save_model(tmp_path / "registers", transformers.Dinov2WithRegistersModel, config)
    transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    encoder = load(folder, Pooling.mean)
    batch = pixels(encoder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        hidden = model(pixel_values=encoder.values(batch)).last_hidden_state.numpy()
    assert hidden.shape[1] == 1 + 4 + 16
    np.testing.assert_allclose(encoder.encode(batch), hidden[:, 5:].mean(axis=1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ABLE)
def test_vectors_do_not_depend_on_the_batch(folders, name):
    encoder = load(folders[name])
    batch = pixels(encoder, 7)
    together = encoder.encode(batch)
    alone = np.concatenate([encoder.encode(batch[row : row + 1]) for row in range(7)])
    assert np.abs(together - alone).max() < BATCH_TOLERANCE * together.std()
    assert np.abs(encoder.encode(batch[::-1].copy())[::-1] - together).max() < BATCH_TOLERANCE * together.std()


def test_bfloat16_gives_float32_latents_nearby(folders):
    exact, rough = load(folders["vit"]), load(folders["vit"], precision=Precision.bf16)
    batch = pixels(exact)
    one, other = exact.encode(batch), rough.encode(batch)
    assert other.dtype == np.float32
    assert np.abs(one - other).max() > 0
    cosine = (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    assert cosine.min() > 0.999
    assert rough.record == exact.record  # precision is recorded beside it
    assert (exact.about["precision"], rough.about["precision"]) == ("fp32", "bf16")


def test_of_two_towers_only_the_one_asked_for_is_kept(folders):
    encoder = load(folders["clip"])
    assert type(encoder.model).__name__ == "CLIPVisionModel"
    assert not [name for name, _ in encoder.model.named_parameters() if "text" in name]
    assert encoder.width == tiny_models.WIDTH
    assert load(folders["clip"], Pooling.projection).width == tiny_models.PROJECTED


def test_reload_refuses_other_weights_naming_both_sides(tmp_path):
    folder = tiny_models.save_dinov2(tmp_path / "m")
    encoder = load(folder, Pooling.cls_mean)
    again = reload_vision(encoder.record, encoder.about, "cpu", Precision.fp32)
    assert again.record == encoder.record
    tiny_models.save_dinov2(folder, seed=1)
    with pytest.raises(MismatchError, match=r"weights: stored [0-9a-f]{12}.*loaded [0-9a-f]{12}") as refusal:
        reload_vision(encoder.record, encoder.about, "cpu", Precision.fp32)
    assert str(folder) in str(refusal.value)


def test_missing_weights_are_not_replaced_by_random_ones(tmp_path):
    folder = tiny_models.save_dinov2(tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"lack 1 tensors of Dinov2Model \(layernorm.weight"):
        load(folder)


def test_a_model_that_draws_random_numbers_is_refused(tmp_path):
    config = transformers.ViTMAEConfig(**tiny_models.VISION, decoder_hidden_size=8, decoder_num_attention_heads=1)
    folder = tiny_models.save_model(tmp_path / "mae", transformers.ViTMAEModel, config)
    transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    with pytest.raises(UsageError, match="draws random numbers"):
        load(folder, Pooling.cls)


def test_a_picture_size_the_model_does_not_take_is_a_data_error(tmp_path):
    folder = tiny_models.save_vit(tmp_path / "m")
    transformers.ViTImageProcessorPil(size={"height": 48, "width": 48}).save_pretrained(folder)
    with pytest.raises(DataError, match="ViTModel does not take what its own folder prepares"):
        load(folder)


def test_a_text_model_is_no_vision_model(tmp_path):
    folder = tiny_models.save_bert(tmp_path / "m")
    transformers.ViTImageProcessorPil().save_pretrained(folder)
    with pytest.raises(UsageError, match=r"BertModel.* is not a vision model"):
        load(folder)


def test_loading_leaves_the_users_process_as_it_was(folders, capfd):
    transformers.logging.set_verbosity_info()
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    try:
        encoder = load(folders["vit without pooler"])  # transformers fills its pooler at random, and says so at length
        encoder.encode(pixels(encoder))
        assert transformers.logging.get_verbosity() == transformers.logging.INFO
        assert transformers.logging.is_progress_bar_enabled()
    finally:
        transformers.logging.set_verbosity_warning()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert capfd.readouterr() == ("", "")


def test_code_of_a_models_own_is_not_run(tmp_path):
    folder = tiny_models.save_vit(tmp_path / "m")
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    tiny_models.write_json(folder / "config.json", config)
    (folder / "mine.py").write_text("raise SystemExit('ran')")
    with pytest.raises(DataError, match="Python code of its own, which is not run"):
        load(folder)


def test_pixels_may_be_read_only_or_a_view(folders):
    encoder = load(folders["dinov2"])
    batch = pixels(encoder)
    expected = encoder.encode(batch)
    batch.flags.writeable = False
    assert np.array_equal(encoder.encode(batch), expected)
    assert np.array_equal(encoder.encode(batch[::-1])[::-1], expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"image_mean": None},
        {"image_mean": [0.5], "image_std": [0.5]},
        {"resample": 9},
        {"resample": None},
        {"size": {"longest_edge": 40}},
        {"size": None},
        {"crop_size": None},
        {"rescale_factor": None},
    ],
    ids=str,
)
def test_settings_of_an_image_processor_that_cannot_be_carried_out_are_data_errors(tmp_path, settings):
    folder = tiny_models.save_dinov2(tmp_path / "m")
    stored = json.loads((folder / "preprocessor_config.json").read_text())
    tiny_models.write_json(folder / "preprocessor_config.json", stored | settings)
    with pytest.raises(
        DataError, match=r"m: its image processor \(Bit.*\) cannot prepare a picture: .*preprocessor_config"
    ):
        load(folder)


def test_a_model_that_gives_no_numbers_is_a_data_error(tmp_path):
    folder = tiny_models.save_dinov2(tmp_path / "m")
    stored = json.loads((folder / "preprocessor_config.json").read_text())
    tiny_models.write_json(folder / "preprocessor_config.json", stored | {"image_std": [0, 0, 0]})
    with pytest.raises(DataError, match="NaN or infinity"):
        load(folder)
