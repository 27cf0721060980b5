"""Latents of several views: each family's against a mean made by hand, of pictures that are cut and pasted by hand."""

import numpy as np
import pytest
import transformers
from PIL import Image
from support import tiny_models

from alignvl_cli.encoders.pixels import VIEWS
from alignvl_cli.encoders.vision import load_vision, reload_vision
from alignvl_cli.errors import MismatchError
from alignvl_cli.settings import Pooling, Precision


def save_padding(folder):
    """Pictures are float32 values already: the image processor pads, which is a step of its own."""
    tiny_models.save_vit(folder)
    size = {"height": 24, "width": 24}
    processor = transformers.ViTImageProcessorPil(size=size, do_pad=True, pad_size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    return folder


FAMILIES = {
    "dinov2": (tiny_models.save_dinov2, Pooling.mean, "last"),
    "dinov2 in parts": (tiny_models.save_dinov2, Pooling.cls, "1,last"),
    "vit, tokens and places": (tiny_models.save_vit, Pooling.cls_mean, "last"),
    "resnet, all layers": (tiny_models.save_resnet, None, "all"),
    "clip, one layer": (tiny_models.save_clip, None, "1"),
    "siglip": (tiny_models.save_siglip, None, "auto"),
    "own steps": (save_padding, Pooling.cls, "last"),
}
SIZES = ((64, 41), (40, 40), (33, 90), (7, 5), (1, 1))


def encoder_of(folder, pooling=None, layers="last", views=1):
    return load_vision(str(folder), pooling=pooling, layers=layers, views=views, device="cpu", precision=Precision.fp32)


def drawn():
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (high, wide, 3), dtype=np.uint8)) for wide, high in SIZES]


def by_hand(image):
    """The four views, from arrays."""
    pixels = np.asarray(image)
    high, wide = pixels.shape[:2]
    top, left = int(0.12 * high), int(0.12 * wide)
    ground = np.full((int(np.ceil(high * 13 / 10)), int(np.ceil(wide * 13 / 10)), 3), 255, np.uint8)
    down, right = (ground.shape[0] - high) // 2, (ground.shape[1] - wide) // 2
    ground[down : down + high, right : right + wide] = pixels
    return [pixels, pixels[:, ::-1], pixels[top : high - top, left : wide - left], ground]


def unit(latent_BD):
    return latent_BD / np.linalg.norm(latent_BD, axis=-1, keepdims=True)


def encoded(encoder, images):
    return encoder.encode(np.stack([encoder.prepare(image) for image in images]))


def mean_by_hand(encoder, widths, images, count):
    views_VBD = np.stack(
        [encoded(encoder, [Image.fromarray(by_hand(image)[number]) for image in images]) for number in range(count)]
    ).astype(np.float64)
    parts = np.split(views_VBD, np.cumsum(widths)[:-1], axis=2)
    return np.concatenate([unit(unit(part).mean(axis=0)) for part in parts], axis=1)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_latent_is_the_mean_direction_of_the_views(family, count, tmp_path):
    save, pooling, layers = FAMILIES[family]
    folder = save(tmp_path)
    several, plain = encoder_of(folder, pooling, layers, count), encoder_of(folder, pooling, layers)
    images = drawn()
    found = encoded(several, images)
    widths = [part["width"] for part in plain.record.get("parts", [{"width": plain.width}])]
    assert found.shape == (len(images), several.width)
    assert several.width == plain.width
    np.testing.assert_allclose(found, mean_by_hand(plain, widths, images, count), atol=1e-5)
    assert several.record == plain.record | {"views": list(VIEWS)[:count]}
    assert np.abs(found - unit(encoded(plain, images))).max() > 1e-3, "the views say nothing of their own"
    again = reload_vision(several.record, several.about, "cpu", Precision.fp32)
    np.testing.assert_array_equal(encoded(again, images), found)


def test_views_of_the_bundled_encoder(tmp_path):
    plain = encoder_of("bundled:efficientnet-lite0", layers="auto")
    several = encoder_of("bundled:efficientnet-lite0", layers="auto", views=4)
    images = drawn()[:3]
    widths = [part["width"] for part in plain.record["parts"]]
    np.testing.assert_allclose(encoded(several, images), mean_by_hand(plain, widths, images, 4), atol=1e-5)


def test_one_view_is_the_encoder_as_it_always_was(tmp_path):
    folder = tiny_models.save_resnet(tmp_path)
    plain = load_vision(str(folder), pooling=None, device="cpu", precision=Precision.fp32)
    one = encoder_of(folder, views=1)
    assert one.record == plain.record
    assert "views" not in one.record
    assert type(one.preprocess) is type(plain.preprocess)
    np.testing.assert_array_equal(encoded(one, drawn()), encoded(plain, drawn()))
    lengths = np.linalg.norm(encoded(one, drawn()), axis=1)
    assert np.abs(lengths - 1).min() > 0.01, "one view of one layer stays raw"


def test_a_picture_and_its_mirror_image_have_one_latent_of_two_views(tmp_path):
    encoder = encoder_of(tiny_models.save_vit(tmp_path), views=2)
    image = drawn()[0]
    one, other = encoded(encoder, [image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("views", [[], ["as it is", "upside down"], ["as it is", "mirrored", "x", "y", "z"]])
def test_views_that_are_others_now_are_refused(views, tmp_path):
    plain = encoder_of(tiny_models.save_resnet(tmp_path))
    with pytest.raises(MismatchError, match="views"):
        reload_vision(plain.record | {"views": views}, plain.about, "cpu", Precision.fp32)
