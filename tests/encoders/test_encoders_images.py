"""Every kind of picture file becomes upright RGB on white, or a short reason."""

import contextlib
import io
import os
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from alignvl_cli.encoders.decoding import GUESSED_BITS, UnreadableImage, as_rgb, decode_image
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


@pytest.mark.slow
def test_many_pixels_warn_nobody():
    data = saved(Image.new("1", (9_500, 9_500)), "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_image(data, 10**8).size == (9_500, 9_500)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def sixteen_bit_png(values_HWC, colour_type, extra=b""):
    """A PNG of 16 bits a channel, which Pillow does not write in colour."""
    height, width = values_HWC.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values_HWC)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG2000"])
def test_grey_of_fewer_bits_in_sixteen_is_as_bright_as_the_same_in_eight(bits, kind):
    ramp = np.linspace(0, 255, 24 * 32).reshape(24, 32)
    deep = Image.fromarray((ramp * ((1 << bits) - 1) / 255).astype(np.uint16))
    np.testing.assert_allclose(decoded(deep, kind)[..., 0], ramp, atol=2)
    told = decode_image(saved(deep, kind), MAX_PIXELS).info.get(GUESSED_BITS)
    assert told == (bits if bits < 16 else None)


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_a_colour_are_read_and_twelve_in_sixteen_are_no_black_picture(colour_type, channels):
    values = np.random.default_rng(0).integers(0, 1 << 16, (6, 5, channels))
    if channels % 2 == 0:
        values[..., -1] = 0xFFFF
    got = np.asarray(decode_image(sixteen_bit_png(values, colour_type), MAX_PIXELS))
    assert (got == (values[..., :1] if channels == 2 else values[..., :3]) >> 8).all()
    for empty, seems in ((2, "dark"), (4, "black")):
        fewer = values.copy()
        fewer[..., : 1 if channels == 2 else 3] >>= empty
        with pytest.raises(UnreadableImage, match=f"upper {empty} are empty: it would come out {seems}"):
            decode_image(sixteen_bit_png(fewer, colour_type), MAX_PIXELS)


def test_one_transparent_value_of_sixteen_bits_shows_white():
    grey = np.array([[[40_000], [200], [300]]])
    got = decode_image(sixteen_bit_png(grey, 0, chunk(b"tRNS", struct.pack(">H", 200))), MAX_PIXELS)
    assert np.asarray(got)[0, :, 0].tolist() == [40_000 >> 8, 255, 1]
    colours = np.array([[[10_000, 20_000, 30_000], [0xFF00, 0, 0]]])
    got = decode_image(sixteen_bit_png(colours, 2, chunk(b"tRNS", struct.pack(">HHH", 0xFF00, 0, 0))), MAX_PIXELS)
    assert np.asarray(got)[0].tolist() == [[39, 78, 117], [255, 255, 255]]


def test_white_is_zero_is_turned_at_every_depth():
    for depth, dtype in ((8, np.uint8), (16, np.uint16)):
        grey = Image.fromarray((np.array([[0, 64, 255]]) << (depth - 8)).astype(dtype))
        data = bytearray(saved(grey, "TIFF"))
        entry = data.index(struct.pack("<HHI", 262, 3, 1))
        data[entry + 8 : entry + 10] = struct.pack("<H", 0)
        assert np.asarray(decode_image(bytes(data), MAX_PIXELS))[0, :, 0].tolist() == [255, 191, 0]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_ink_on_white(kind):
    """Against the formula, 255 (1 - ink) (1 - black)."""
    inks_N4 = np.random.default_rng(0).integers(0, 256, (20, 4))
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    for inks in inks_N4:
        expected = (255 - inks[:3]) * (255 - inks[3]) / 255
        got = decoded(Image.new("CMYK", (8, 8), tuple(map(int, inks))), kind, **options)
        np.testing.assert_allclose(got[0, 0], expected, atol=3)


@pytest.mark.parametrize("mode", ["P", "PA", "LA", "1", "L", "RGBA", "YCbCr", "CMYK"])
def test_each_mode_of_a_tiff_is_what_pillow_shows_on_white(mode):
    image = noise().convert("L").convert(mode) if mode in ("PA", "LA", "1", "L") else noise().convert(mode)
    white = Image.new("RGBA", image.size, "white")
    expected = np.asarray(Image.alpha_composite(white, image.convert("RGB").convert("RGBA")).convert("RGB"))
    np.testing.assert_allclose(decoded(image, "TIFF").astype(int), expected.astype(int), atol=2)


def test_lab_is_refused_by_name():
    with pytest.raises(UnreadableImage, match="Lab colours, which are not read"):
        decoded(Image.new("LAB", (4, 4)), "TIFF")


BIG = b"x" * (2 << 20)
EXTRAS = {
    "zTXt": b"workflow\0\0" + zlib.compress(BIG),
    "iTXt": b"workflow\0\1\0\0\0" + zlib.compress(BIG),
    "iCCP": b"icc\0\0" + zlib.compress(BIG),
    "tEXt": b"workflow\0" + BIG,
}


@pytest.mark.parametrize("kind", EXTRAS)
def test_a_sound_png_is_read_however_long_its_texts_and_profiles_are(kind):
    data = saved(noise(), "PNG")
    data = data[:33] + chunk(kind.encode(), EXTRAS[kind]) * 3 + data[33:]
    assert np.array_equal(np.asarray(decode_image(data, MAX_PIXELS)), np.asarray(noise()))
    with pytest.raises(UnreadableImage):
        decode_image(data[:-400], MAX_PIXELS)
    with pytest.raises(UnreadableImage, match="above --max-pixels"):
        decode_image(data, 10)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64, "git lfs pull"),
        (b"/annex/objects/SHA256E-s1--a.jpg\n", "git annex get"),
        (b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + b"\0" * 200, "^HEIC, which is not read; convert it to JPEG"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heix" + b"\0" * 200, "^HEIC"),
        (b"\0\0\0\x1cftypavif\0\0\0\0mif1avif" + b"\0" * 200, "AVIF"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + b"\0" * 200, "a video"),
        (b"\xff\x0a" + b"\0" * 99, "JPEG XL"),
        (b"%PDF-1.7\n", "PDF"),
        (b"8BPS\0\1", "Photoshop"),
        (b"\0" * 128 + b"DICM", "DICOM"),
        (b"PK\3\4", "zip"),
        (b"/9j/4AAQSkZJRg" + b"A" * 145_000, "base64"),
    ],
)
def test_what_people_have_in_place_of_pictures_is_named_in_short(data, reason):
    with pytest.raises(UnreadableImage, match=reason) as caught:
        decode_image(data, MAX_PIXELS)
    assert len(str(caught.value)) < 120


def test_libtiff_says_nothing_on_stderr_and_stderr_comes_back(capfd):
    data = saved(noise(64, 64), "TIFF", compression="tiff_lzw")
    entry = data.index(struct.pack("<HHI", 278, 3, 1))  # rows a strip
    for at in (9, len(data) // 3, entry + 8):
        broken = bytearray(data)
        broken[at : at + 2] = b"\xff\xff"
        with contextlib.suppress(UnreadableImage):
            decode_image(bytes(broken), MAX_PIXELS)
    os.write(2, b"here\n")
    assert capfd.readouterr().err == "here\n"


def test_a_fourth_channel_that_is_no_transparency_hides_nothing():
    draw = np.random.default_rng(0)
    colours = draw.integers(1, 256, (8, 9, 3), dtype=np.uint8)
    for alpha in (0, 90):  # of a TGA that says that it has none
        image = Image.fromarray(np.dstack([colours, np.full((8, 9), alpha, np.uint8)]), "RGBA")
        tga = bytearray(saved(image, "TGA"))
        tga[17] &= 0xF0
        np.testing.assert_array_equal(np.asarray(decode_image(bytes(tga), MAX_PIXELS)), colours)
    clear = Image.fromarray(np.dstack([colours, np.zeros((8, 9), np.uint8)]), "RGBA")
    np.testing.assert_array_equal(decoded(clear, "TGA"), colours)
    assert (decoded(clear, "PNG") == 255).all(), "a PNG means it"


def test_deep_tiffs_of_separate_planes_are_refused():
    """Pillow takes each plane for one of 8 bits."""
    entries = [(256, 4, 3), (257, 4, 2), (258, 3, 16), (259, 3, 1), (262, 3, 2), (277, 3, 3), (284, 3, 2), (278, 4, 2)]
    plane = np.arange(6, dtype="<u2").tobytes()
    start = 8
    offsets = [start + number * len(plane) for number in range(3)]
    tables = start + 3 * len(plane)
    extra = struct.pack("<3I", *offsets) + struct.pack("<3I", *[len(plane)] * 3) + struct.pack("<3H", 16, 16, 16)
    fields = sorted([*entries[:2], (258, 3, None), *entries[3:], (273, 4, None), (279, 4, None)])
    at = {273: (3, tables), 279: (3, tables + 12), 258: (3, tables + 24)}
    ifd = struct.pack("<H", len(fields))
    for tag, kind, value in fields:
        count, given = at.get(tag, (1, value))
        ifd += struct.pack("<HHII", tag, kind, count, given)
    data = b"II*\0" + struct.pack("<I", tables + len(extra)) + plane * 3 + extra + ifd + struct.pack("<I", 0)
    with pytest.raises(UnreadableImage, match="separate colour planes"):
        decode_image(data, MAX_PIXELS)


def test_a_picture_without_a_pixel_is_none():
    with pytest.raises(UnreadableImage, match="0 x 0 pixels"):
        as_rgb(Image.new("RGB", (0, 0)))
