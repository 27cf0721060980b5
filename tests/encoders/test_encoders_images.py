"""Every kind of picture file becomes upright RGB on white, or a short reason."""

import io
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from alignvl_cli.encoders.decoding import UnreadableImage, decode_image
from alignvl_cli.settings import MAX_PIXELS


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(image, kind="PNG", **options):
    result = decode_image(saved(image, kind, **options), MAX_PIXELS)
    assert result.mode == "RGB"
    return np.asarray(result)


def noise(height=24, width=32):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_rgb_is_untouched():
    assert np.array_equal(decoded(noise()), np.asarray(noise()))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF", "JPEG2000"])
def test_common_formats_decode(kind):
    flat = Image.new("RGB", (40, 30), (200, 40, 90))
    got = decoded(flat, kind)
    assert got.shape == (30, 40, 3)
    assert np.abs(got.astype(int) - (200, 40, 90)).max() <= 6


def test_transparency_is_composited_on_white():
    image = Image.new("RGBA", (3, 1))
    image.putdata([(0, 0, 0, 0), (0, 0, 0, 255), (255, 0, 0, 128)])
    np.testing.assert_allclose(decoded(image)[0], [[255, 255, 255], [0, 0, 0], [255, 127, 127]], atol=1)


def test_palette_with_a_transparent_colour_shows_white_there():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    assert decoded(image, transparency=0)[0].tolist() == [[255, 255, 255], [40, 50, 60]]
    assert decoded(image)[0].tolist() == [[10, 20, 30], [40, 50, 60]]


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_one_transparent_colour_shows_white(mode):
    image = Image.new(mode, (2, 1), "black")
    image.putpixel((1, 0), 9 if mode == "L" else (9, 9, 9))
    assert decoded(image, transparency=0 if mode == "L" else (0, 0, 0))[0].tolist() == [[255] * 3, [9] * 3]


def test_grey_with_alpha():
    image = Image.new("LA", (2, 1))
    image.putdata([(0, 0), (7, 255)])
    assert decoded(image)[0].tolist() == [[255] * 3, [7] * 3]


@pytest.mark.parametrize(("mode", "colour", "expected"), [("L", 77, 77), ("1", 1, 255)])
def test_grey_and_bilevel(mode, colour, expected):
    assert (decoded(Image.new(mode, (4, 4), colour)) == expected).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_keeps_its_range(kind):
    ramp = Image.fromarray(np.array([[0, 0x1234, 0x8000, 0xFFFF]], np.uint16))
    np.testing.assert_allclose(decoded(ramp, kind)[0, :, 0], [0, 0x12, 0x80, 0xFF], atol=1)


def test_thirty_two_bit_grey_is_read_where_its_range_is_clear():
    assert decoded(Image.fromarray(np.array([[0, 200]], np.int32)), "TIFF")[0, :, 0].tolist() == [0, 200]
    assert decoded(Image.fromarray(np.array([[0, 0xFF00]], np.int32)), "TIFF")[0, :, 0].tolist() == [0, 255]
    with pytest.raises(UnreadableImage, match="no agreed white"):
        decoded(Image.fromarray(np.array([[0, 1 << 20]], np.int32)), "TIFF")
    with pytest.raises(UnreadableImage, match="no agreed white"):
        decoded(Image.fromarray(np.array([[0, 0.5]], np.float32)), "TIFF")


def test_cmyk():
    got = decoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)
    assert np.abs(got.astype(int) - (255, 0, 0)).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = Image.new("RGB", (64, 32), "black")
    upright.paste((255, 0, 0), (0, 0, 32, 16))  # top left
    upright.paste((0, 0, 255), (32, 16, 64, 32))  # bottom right
    stored = {
        1: lambda image: image,
        2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
        4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
        6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
        7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
        8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decoded(stored, "PNG", exif=exif), np.asarray(upright))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage garbage",
        b"Exif\0\0",
        b"Exif\0\0MM\0*",
        b"Exif\0\0II*\0\xff\xff\xff\x7f",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 30,
    ],
    ids=["garbage", "empty", "short", "pointer beyond the end", "cut in an entry", "entries of nonsense"],
)
def test_a_picture_with_broken_exif_is_read_as_it_stands(kind, exif):
    assert np.array_equal(decoded(noise(), kind, exif=exif), decoded(noise(), kind))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_read(kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    got = decoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (got == (255, 0, 0)).all()


def test_pixel_cap_is_checked_before_decoding():
    """A header that claims more pixels than there are: decoding would fail otherwise, the cap speaks first."""
    data = bytearray(saved(noise(), "PNG"))
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with pytest.raises(UnreadableImage, match=r"60000 x 60000 pixels, above --max-pixels 89478485"):
        decode_image(bytes(data), MAX_PIXELS)
    with pytest.raises(UnreadableImage, match="damaged"):
        decode_image(bytes(data), 60_000 * 60_000)


def test_the_cap_may_be_raised_above_pillows_own(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    data = saved(noise(), "PNG")
    assert decode_image(data, 24 * 32).size == (32, 24)
    assert Image.MAX_IMAGE_PIXELS == 10
    with pytest.raises(UnreadableImage, match="max-pixels 767"):
        decode_image(data, 24 * 32 - 1)


def test_a_strip_is_a_picture_like_others():
    assert decoded(Image.new("RGB", (3000, 3))).shape == (3, 3000, 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"\n <html><body>", "web page"),
        (b'<?xml version="1.0"?><svg/>', "SVG"),
        (b"just text", r"not an image that can be read \(9 bytes\)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
)
def test_what_is_not_an_image_says_what_it_is(data, reason):
    with pytest.raises(UnreadableImage, match=reason):
        decode_image(data, MAX_PIXELS)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_a_truncated_file_is_refused(kind):
    data = saved(noise(64, 64), kind)
    with pytest.raises(UnreadableImage):
        decode_image(data[: len(data) * 2 // 3], MAX_PIXELS)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "JPEG2000"])
def test_damaged_files_never_raise_anything_else(kind):
    data, draw = saved(noise(16, 16), kind), random.Random(0)
    readable = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none may leak
        for _ in range(150):
            broken = bytearray(data)
            for _ in range(draw.randint(1, 8)):
                broken[draw.randrange(len(broken))] = draw.randrange(256)
            try:
                assert decode_image(bytes(broken), 10_000).mode == "RGB"
                readable += 1
            except UnreadableImage as refusal:
                assert 0 < len(str(refusal)) < 300  # noqa: PT017
    assert readable < 150


def test_many_pixels_warn_nobody():
    data = saved(Image.new("1", (9_500, 9_500)), "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_image(data, 10**8).size == (9_500, 9_500)
