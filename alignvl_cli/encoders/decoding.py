"""Bytes of a picture file in, one upright RGB picture out, or the reason why not.

Needs Pillow and numpy alone, so that worker processes start fast.
"""

import io
import os
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
from PIL import Image, ImageOps

Image.init()  # registers every format: without it `Image.open` knows five
WANTED = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF", "QOI")
RASTER_FORMATS = [name for name in WANTED if name in Image.OPEN]
"""Formats whose size stands in the header; none that runs another program (EPS) or nests other files (ICO). Some are
missing from some builds of Pillow."""

COLOURS = {"RGB": 3, "RGBX": 3, "RGBA": 3, "LA": 1}
"""Modes of Pillow that keep 8 of 16 bits, and how many of their channels are colours."""
DEPTHS = (8, 10, 12, 14, 16)
GUESSED_BITS = "guessed bits"
"""Key in a decoded picture's `info`: the bits that a 16-bit grey one was taken to have, from its largest value."""
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0
"""A tag of TIFF, and its value in a picture whose 0 is white."""
UNSUPPORTED = re.compile(r"unsupported|not supported|not available|unknown|unrecognized", re.IGNORECASE)
PLANES, SEPARATE, BITS = 284, 2, 258
"""Tags of TIFF: how colours lie, one plane after the other, and their bits."""
SIGNATURE = b"\x89PNG\r\n\x1a\n"
EXTRAS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
"""Chunks of a PNG that say nothing of a pixel as it is read here, and that Pillow bounds in length."""
NAMED = (
    (b"version https://git-lfs", "a Git LFS pointer, not the picture; fetch it: git lfs pull"),
    (b"/annex/objects/", "a git-annex pointer, not the picture; fetch it: git annex get"),
    (b"%pdf", "PDF, which is not read; convert it to JPEG or PNG"),
    (b"%!ps", "PostScript, which is not an image that is read; convert it to JPEG or PNG"),
    (b"8bps", "a Photoshop file, which is not read; convert it to JPEG or PNG"),
    (b"\xff\x0a", "JPEG XL, which is not read; convert it to JPEG or PNG"),
    (b"\0\0\0\x0cjxl ", "JPEG XL, which is not read; convert it to JPEG or PNG"),
    (b"v/1\x01", "OpenEXR, which is not read; convert it to JPEG or PNG"),
    (b"#?radiance", "Radiance HDR, which is not read; convert it to JPEG or PNG"),
    (b"\0\0\1\0", "an icon (ICO), which is not read; convert it to JPEG or PNG"),
    (b"\x93numpy", "an array of numpy, not an image"),
    (b"pk\3\4", "a zip archive, not an image"),
    (b"\x1f\x8b", "compressed with gzip, not an image; unpack it"),
    (b"data:image/", "a picture in base64, which is not read; decode it first"),
    (b"/9j/", "a picture in base64, which is not read; decode it first"),
    (b"ivborw0kggo", "a picture in base64, which is not read; decode it first"),
    (b"<!doctype html", "a web page (HTML), not an image"),
    (b"<html", "a web page (HTML), not an image"),
    (b"<?xml", "XML or SVG, not a raster image"),
    (b"<svg", "XML or SVG, not a raster image"),
)
"""How files begin that are found in place of pictures (in lower case, without white space), and what they are."""
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
BROKEN_FILE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow's decoders raise on damaged data; there is no common base class."""


class UnreadableImage(ValueError):
    """A picture that cannot become a latent; the text is the short reason for the table of rejected images."""


def decode_image(data: bytes, max_pixels: int) -> Image.Image:
    """The first frame in `data` as RGB: EXIF orientation applied, transparency composited on white.

    The pixel count in the header is checked against `max_pixels` before any pixel is decoded.
    Raises UnreadableImage with a short reason.
    """
    if not data:
        raise UnreadableImage("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bomb and EXIF warnings: the cap is ours, damage shows in decoding
        try:
            return _decode(data, max_pixels)
        except UnreadableImage:
            raise
        except BROKEN_FILE as problem:
            plain = _without_extras(data)
            if plain != data:
                return decode_image(plain, max_pixels)
            if isinstance(problem, Image.UnidentifiedImageError):
                raise UnreadableImage(_what_it_is(data)) from problem
            reason = _first_line(problem)
            what = "a picture of a kind that is not read" if UNSUPPORTED.search(reason) else "damaged image"
            raise UnreadableImage(f"{what}: {reason}") from problem


def _decode(data: bytes, max_pixels: int) -> Image.Image:
    image = _open(data)
    width, height = image.size
    if width * height > max_pixels:
        raise UnreadableImage(f"{width} x {height} pixels, above --max-pixels {max_pixels}")
    _refuse_planes(image)
    is_deep = image.mode in COLOURS and any(";16" in str(tile) for tile in getattr(image, "tile", ()))
    with _quiet() if image.format == "TIFF" else nullcontext():
        image.load()
    if image.mode == "RGBA" and _has_no_alpha(image, data):
        image.putalpha(255)
    if is_deep:
        _require_sixteen_bits(image)
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except BROKEN_FILE:  # EXIF that cannot be read says nothing against the picture, which is kept as it is
        pass
    return as_rgb(image)


def _refuse_planes(image: Image.Image) -> None:
    """UnreadableImage for a TIFF of more than 8 bits whose colours lie one after the other, uncompressed, which Pillow
    takes for one of 8 bits."""
    if image.format != "TIFF":
        return
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    is_raw = all(tile[0] == "raw" for tile in getattr(image, "tile", ()))
    if is_raw and tags.get(PLANES) == SEPARATE and max(tags.get(BITS) or (8,)) > 8:
        raise UnreadableImage("TIFF of more than 8 bits with separate colour planes; save it with chunky planes")


def _has_no_alpha(image: Image.Image, data: bytes) -> bool:
    """Whether a TGA says that its fourth channel is no transparency, or that channel of a TGA or BMP is 0 everywhere:
    viewers show both as opaque."""
    if image.format == "TGA" and not data[17] & 0x0F:
        return True
    return image.format in ("TGA", "BMP", "DIB") and image.getchannel("A").getextrema() == (0, 0)


def as_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode as 8-bit RGB, transparency composited on white; UnreadableImage when there is no way."""
    if 0 in image.size:
        raise UnreadableImage(f"{image.width} x {image.height} pixels: there is none")
    if image.mode == "LAB":
        raise UnreadableImage("Lab colours, which are not read; save the picture as RGB")
    if image.mode in DEEP_MODES:
        image = DEEP_MODES[image.mode](image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _open(data: bytes) -> Image.Image:
    """Open without Pillow's own pixel limit: it is a warning at one size and an error at another, ours is one rule."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        return Image.open(io.BytesIO(data), formats=RASTER_FORMATS)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _require_sixteen_bits(image: Image.Image) -> None:
    """Colours of 16 bits, of which Pillow keeps the upper 8: a picture that has 12 would come out black, and one of 14
    dark."""
    most = int(np.asarray(image)[..., : COLOURS[image.mode]].max())
    if most <= 0x3F:
        raise UnreadableImage(
            f"16 bits a colour, of which the upper {2 if most > 0xF else 4} are empty: it would come out "
            f"{'dark' if most > 0xF else 'black'}; save it with 8 bits"
        )
    clear = image.info.get("transparency")
    if isinstance(clear, tuple):
        image.info["transparency"] = tuple(part >> 8 for part in clear)


def _from_grey(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits to 8. Pillow's own conversion clips at 255 and shows a white page.

    Cameras and scanners leave upper bits empty: white is the largest value of the fewest bits, of 8, 10, 12, 14 and
    16, that hold every pixel. Where that is fewer than 16 it is a guess, which `info` of the result tells.
    """
    grey_HW = np.asarray(image).astype(np.int64)
    least, most = int(grey_HW.min()), int(grey_HW.max())
    if least < 0 or most > 0xFFFF:
        raise UnreadableImage("32-bit grey pixels have no agreed white; save the picture with 8 or 16 bits")
    bits = next(bits for bits in DEPTHS if most < 1 << bits)
    eight_HW = (grey_HW >> (bits - 8)).astype(np.uint8)
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO and image.mode.startswith("I;16"):
        eight_HW = 255 - eight_HW  # Pillow turns those of 8 bits alone
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        eight_HW[grey_HW == clear] = 255
    grey = Image.fromarray(eight_HW)
    if bits < DEPTHS[-1]:
        grey.info[GUESSED_BITS] = bits
    return grey


def _refuse_float(image: Image.Image) -> Image.Image:
    raise UnreadableImage("floating-point pixels have no agreed white; save the picture with 8 or 16 bits")


DEEP_MODES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "I;16": _from_grey,
    "I;16L": _from_grey,
    "I;16B": _from_grey,
    "I;16N": _from_grey,
    "I": _from_grey,
    "F": _refuse_float,
}
"""Pillow modes of more than 8 bits a channel, each with its way to 8."""


def _what_it_is(data: bytes) -> str:
    """A short guess at what was sent in place of a picture, such as a web server's error page."""
    if data[4:8] == b"ftyp":
        brand, brands = data[8:12], data[8 : 8 + min(56, data[3])]
        if b"avif" in brands or b"avis" in brands:
            return "AVIF, damaged or of a kind that is not read; convert it to JPEG or PNG"
        is_heic = brand in HEIC_BRANDS
        return "HEIC, which is not read; convert it to JPEG or PNG" if is_heic else "a video, not an image"
    if data[128:132] == b"DICM":
        return "DICOM, which is not read; convert it to JPEG or PNG"
    head = data[:256].removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n").lower()
    for start, what in NAMED:
        if head.startswith(start):
            return what
    return f"not an image that can be read ({len(data)} bytes)"


def _first_line(problem: BaseException) -> str:
    text = str(problem).strip()
    return text.splitlines()[0] if text else type(problem).__name__


def _without_extras(data: bytes) -> bytes:
    """A PNG without its texts and colour profile; other data as they are."""
    if not data.startswith(SIGNATURE):
        return data
    kept, at = [SIGNATURE], len(SIGNATURE)
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 12 + length
        if data[at + 4 : at + 8] not in EXTRAS:
            kept.append(data[at:end])
        at = end
        if kept[-1][4:8] == b"IEND":
            return b"".join(kept)
    return data


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what libtiff writes to stderr by itself: a damaged picture is told by name, and others are whole."""
    with STDERR:
        try:
            kept = os.dup(2)
        except OSError:  # there is none
            yield
            return
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


STDERR = threading.Lock()
"""Held while stderr leads nowhere, which holds for all threads."""
