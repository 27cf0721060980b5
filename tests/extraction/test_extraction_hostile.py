"""A folder of hostile and odd pictures: each good one is embedded upright in its own colours, each bad one is named."""

import io
import multiprocessing
import os
import resource
import signal
import socket
import struct
import sys
import zlib
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image
from support.fakes import FakeText, FakeVision

from alignvl_cli.datasets.dataset import MOST_BYTES, Dataset, ImageSource, Item
from alignvl_cli.extraction.run import run_extraction
from alignvl_cli.settings import ExtractConfig
from alignvl_cli.store.reader import open_store

SECONDS = 120
"""Long past any honest run: beyond it something waits for ever."""
MOST_GROWTH = 512 << 20
"""Bytes; one decoded bomb takes five times as many."""

COLOURS = ((200, 30, 60), (20, 180, 90), (40, 70, 220), (250, 240, 10))
"""Upper left, upper right, lower left, lower right."""
GREYS = (10, 90, 170, 250)
WHITE = (255, 255, 255)
UPRIGHT = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""EXIF orientation -> what turns an upright picture into the pixels of such a file."""


@dataclass
class Corners(FakeVision):
    """The latent of a picture is its 2 x 2 miniature: four corners in RGB."""

    dim: int = 12

    def encode(self, pixels_BCHW):
        return pixels_BCHW.transpose(0, 2, 3, 1).reshape(len(pixels_BCHW), 12)


def quarters(mode="RGB", values=COLOURS, size=(32, 32)):
    """A picture of four plain quarters."""
    width, height = size
    image = Image.new(mode, size, values[3])
    image.paste(values[0], (0, 0, width // 2, height // 2))
    image.paste(values[1], (width // 2, 0, width, height // 2))
    image.paste(values[2], (0, height // 2, width // 2, height))
    return image


def deep(mode, dtype, values):
    grey_HW = np.repeat(np.repeat(np.array(values).reshape(2, 2), 16, axis=0), 16, axis=1)
    image = Image.fromarray(grey_HW.astype(dtype))
    assert image.mode == mode
    return image


def encoded(image, form="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def rgb(greys):
    return [(grey, grey, grey) for grey in greys]


def rotated(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = UPRIGHT[orientation]
    picture = quarters("L", GREYS, (32, 64))
    return encoded(picture.transpose(turn) if turn is not None else picture, "JPEG", quality=100, exif=exif)


def good_pictures():
    """File name -> (bytes, RGB of the four corners)."""
    colour, grey = quarters(), quarters("L", GREYS)
    palette = colour.quantize(4)
    corner_index = palette.getpixel((0, 0))
    with_alpha = quarters(
        "RGBA", [(*colours, alpha) for colours, alpha in zip(COLOURS, (0, 255, 255, 255), strict=True)]
    )
    grey_alpha = quarters("LA", [(value, alpha) for value, alpha in zip(GREYS, (255, 0, 255, 255), strict=True)])
    first_clear = [WHITE, *COLOURS[1:]]
    blue = Image.new("RGB", (32, 32), "blue")
    pictures = {
        "plain.png": (encoded(colour), COLOURS),
        "plain.bmp": (encoded(colour, "BMP"), COLOURS),
        "plain.tiff": (encoded(colour, "TIFF"), COLOURS),
        "packed.tif": (encoded(colour, "TIFF", compression="tiff_lzw"), COLOURS),
        "plain.ppm": (encoded(colour, "PPM"), COLOURS),
        "plain.tga": (encoded(colour, "TGA"), COLOURS),
        "plain.gif": (encoded(palette, "GIF"), COLOURS),
        "lossless.webp": (encoded(colour, "WEBP", lossless=True), COLOURS),
        "SHOUTING.PNG": (encoded(colour.resize((34, 34), 0)), COLOURS),
        "a png.jpg": (encoded(colour.resize((36, 36), 0)), COLOURS),
        "no suffix": (encoded(colour.resize((38, 38), 0)), COLOURS),
        "two\nlines.png": (encoded(colour.resize((40, 40), 0)), COLOURS),
        "Ünïcode 图片 🦊.png": (encoded(colour.resize((42, 42), 0)), COLOURS),
        "-" + "n" * 240 + ".png": (encoded(colour.resize((44, 44), 0)), COLOURS),
        "rubbish behind.png": (encoded(colour) + b"\0" * 999, COLOURS),
        "grey.jpg": (encoded(grey, "JPEG", quality=100), rgb(GREYS)),
        "progressive.jpg": (encoded(grey.convert("RGB"), "JPEG", quality=100, progressive=True), rgb(GREYS)),
        "cmyk.tiff": (encoded(quarters("CMYK", [(0, 0, 0, 255 - g) for g in GREYS]), "TIFF"), rgb(GREYS)),
        "cmyk.jpg": (encoded(quarters("CMYK", [(0, 0, 0, 255 - g) for g in GREYS]), "JPEG", quality=100), rgb(GREYS)),
        "16 bit.png": (encoded(deep("I;16", "uint16", [256 * g + 7 for g in GREYS])), rgb(GREYS)),
        "16 bit.tiff": (encoded(deep("I;16", "uint16", [256 * g + 9 for g in GREYS]), "TIFF"), rgb(GREYS)),
        "32 bit.tiff": (encoded(deep("I", "int32", GREYS), "TIFF"), rgb(GREYS)),
        "32 bit of 16.tiff": (encoded(deep("I", "int32", [256 * g + 5 for g in GREYS]), "TIFF"), rgb(GREYS)),
        "palette.png": (encoded(palette), COLOURS),
        "clear palette.png": (encoded(palette, transparency=corner_index), first_clear),
        "clear palette.gif": (encoded(palette, "GIF", transparency=corner_index), first_clear),
        "clear colour.png": (encoded(colour, transparency=COLOURS[0]), first_clear),
        "alpha.png": (encoded(with_alpha), first_clear),
        "alpha.webp": (encoded(with_alpha, "WEBP", lossless=True), first_clear),
        "grey alpha.png": (encoded(grey_alpha), [rgb(GREYS)[0], WHITE, *rgb(GREYS)[2:]]),
        "one bit.png": (encoded(quarters("1", (0, 1, 1, 0))), rgb((0, 255, 255, 0))),
        "moving.gif": (encoded(palette, "GIF", save_all=True, append_images=[blue.quantize(2)] * 3), COLOURS),
        "moving.webp": (encoded(colour, "WEBP", lossless=True, save_all=True, append_images=[blue] * 3), COLOURS),
        "moving.png": (encoded(colour, save_all=True, append_images=[blue] * 3), COLOURS),
        "many pages.tiff": (encoded(colour, "TIFF", save_all=True, append_images=[blue] * 3), COLOURS),
        "dot.png": (encoded(Image.new("RGB", (1, 1), COLOURS[0])), [COLOURS[0]] * 4),
        "lying strip.png": (encoded(quarters(size=(600, 3))), COLOURS),
        "lying string.png": (encoded(quarters(size=(3000, 3))), COLOURS),
        "standing string.png": (encoded(quarters(size=(3, 3000))), COLOURS),
        "standing strip.png": (encoded(quarters(size=(3, 600))), COLOURS),
    }
    return pictures | {f"orientation {n}.jpg": (rotated(n), rgb(GREYS)) for n in UPRIGHT}


def png_of(width, height):
    """A PNG that is small on disk and says that it is large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(9999))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def bad_files():
    """File name -> (bytes, part of the reason)."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    png, jpeg = encoded(Image.fromarray(noise)), encoded(Image.fromarray(noise), "JPEG")
    large_gif = b"GIF89a" + struct.pack("<HH", 60_000, 60_000) + encoded(quarters().quantize(4), "GIF")[10:]
    large_bmp = bytearray(encoded(quarters(), "BMP"))
    large_bmp[18:26] = struct.pack("<ii", 50_000, 50_000)
    large_jpeg = bytearray(jpeg)
    frame = large_jpeg.index(b"\xff\xc0")
    large_jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    return {
        "cut.png": (png[: len(png) // 2], "damaged image"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "damaged image"),
        "head alone.jpg": (jpeg[:12], "damaged image"),
        "bent.png": (png[:2000] + b"bent" + png[2004:], "damaged image"),
        "empty.jpg": (b"", "empty file"),
        "page.jpg": (b"\n<!DOCTYPE html><html><body>404</body></html>", "a web page (HTML)"),
        "drawing.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "XML or SVG"),
        "letter.jpg": (b"Dear reader, this is no picture.", "not an image"),
        "zeros.png": (bytes(1 << 20), "not an image"),
        "program.jpg": (encoded(quarters(), "EPS"), "not an image"),
        "document.png": (encoded(quarters(), "PDF"), "PDF, which is not read"),
        "bomb.png": (png_of(50_000, 50_000), "50000 x 50000 pixels, above --max-pixels"),
        "bomb.gif": (large_gif, "60000 x 60000 pixels, above --max-pixels"),
        "bomb.bmp": (bytes(large_bmp), "50000 x 50000 pixels, above --max-pixels"),
        "bomb.jpg": (bytes(large_jpeg), "65000 x 65000 pixels, above --max-pixels"),
        "float.tiff": (encoded(deep("F", "float32", GREYS), "TIFF"), "floating-point pixels"),
        "negative.tiff": (encoded(deep("I", "int32", (-9, 1, 2, 3)), "TIFF"), "32-bit grey pixels"),
    }


def place_what_is_no_file(folder):
    """Make entries that no picture can be read from; name -> part of the reason."""
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "link to a pipe.png").symlink_to(folder / "pipe.png")
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "endless.png").symlink_to("/dev/zero")
    with open(folder / "sparse.png", "wb") as stream:
        stream.truncate(MOST_BYTES + 1)
    return {
        "folder.png": "not a regular file",
        "pipe.png": "not a regular file",
        "link to a pipe.png": "not a regular file",
        "dangling.png": "No such file",
        "loop.png": "symbolic links",
        "endless.png": "not a regular file",
        "sparse.png": "bytes long, more than",
        "absent.png": "No such file",
        "plain.png/below.png": "Not a directory",
    }


@pytest.fixture
def alarm():
    """What hangs fails, and so do the processes that it hangs in."""

    def ring(number, frame):
        for child in multiprocessing.active_children():
            child.kill()
        raise TimeoutError(f"still running after {SECONDS} s")

    former = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, former)


@pytest.fixture
def hostile(tmp_path):
    """The folder as a dataset, good and bad in turn; the corners of the good, and the reasons against the bad."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    good, bad = good_pictures(), bad_files()
    for name, (data, _) in {**good, **bad}.items():
        (folder / name).write_bytes(data)
    reasons = {name: reason for name, (_, reason) in bad.items()} | place_what_is_no_file(folder)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(folder / "socket.png"))
        reasons["socket.png"] = "not a regular file"
        names = sorted([*good, *reasons], key=lambda name: zlib.crc32(name.encode()))
        items = [Item(name, name, (f"{name}!",), "train", "", ImageSource(folder / name)) for name in names]
        corners = {name: np.array(corners).reshape(-1) for name, (_, corners) in good.items()}
        yield Dataset("hostile", {"format": "fake"}, items), corners, reasons


@pytest.mark.skipif(sys.platform != "linux", reason="pipes, sockets and /dev/zero as on Linux; ru_maxrss in KiB")
@pytest.mark.parametrize("workers", [0, 1])
def test_each_good_picture_is_embedded_and_each_bad_one_named(tmp_path, hostile, alarm, workers):
    dataset, corners, reasons = hostile
    assert (len(corners), len(reasons)) == (48, 27)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    config = ExtractConfig(batch_size=4, workers=workers)
    *_, finished = run_extraction(dataset, Corners(), FakeText(), tmp_path / "s.h5", config, settings={})
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_GROWTH
    store = open_store(tmp_path / "s.h5")
    store.verify()

    order = [item.id for item in dataset.items]
    assert [entry.id for entry in store.rejected] == [name for name in order if name in reasons]
    silent = {
        entry.id: entry.reason for entry in store.rejected if reasons[entry.id].lower() not in entry.reason.lower()
    }
    assert silent == {}
    assert finished.summary.rejected == len(reasons)

    assert store.image_id == [name for name in order if name in corners]
    assert store.text_caption == [f"{name}!" for name in store.image_id]
    latents = dict(zip(store.image_id, store.image_block(slice(None)), strict=True))
    wrong = {name: latent for name, latent in latents.items() if np.abs(latent - corners[name]).max() > 2}
    assert wrong == {}
