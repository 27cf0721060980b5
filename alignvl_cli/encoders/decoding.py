"""Bytes of a picture file in, one upright RGB picture out, or the reason why not.

Needs Pillow and numpy alone, so that worker processes start fast.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

Image.init()  # registers every format: without it `Image.open` knows five
WANTED = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF", "QOI")
RASTER_FORMATS = [name for name in WANTED if name in Image.OPEN]
"""Formats whose size stands in the header; none that runs another program (EPS) or nests other files (ICO). Some are
missing from some builds of Pillow."""

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
        except Image.UnidentifiedImageError as problem:
            raise UnreadableImage(_what_it_is(data)) from problem
        except BROKEN_FILE as problem:
            raise UnreadableImage(f"damaged image: {_first_line(problem)}") from problem


def _decode(data: bytes, max_pixels: int) -> Image.Image:
    image = _open(data)
    width, height = image.size
    if width * height > max_pixels:
        raise UnreadableImage(f"{width} x {height} pixels, above --max-pixels {max_pixels}")
    image.load()
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except BROKEN_FILE:  # EXIF that cannot be read says nothing against the picture, which is kept as it is
        pass
    return as_rgb(image)


def as_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode as 8-bit RGB, transparency composited on white; UnreadableImage when there is no way."""
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


def _from_16_bit(image: Image.Image) -> Image.Image:
    """16-bit grey to 8 bits. Pillow's own conversion clips at 255 and shows a white page."""
    grey_HW = np.asarray(image)
    return Image.fromarray((grey_HW >> 8).astype(np.uint8))


def _from_32_bit(image: Image.Image) -> Image.Image:
    """Integer grey in a 32-bit container, which files of 8 or 16 bits are read into."""
    grey_HW = np.asarray(image)
    if grey_HW.min() < 0 or grey_HW.max() > 0xFFFF:
        raise UnreadableImage("32-bit grey pixels have no agreed white; save the picture with 8 or 16 bits")
    return Image.fromarray((grey_HW if grey_HW.max() <= 0xFF else grey_HW >> 8).astype(np.uint8))


def _refuse_float(image: Image.Image) -> Image.Image:
    raise UnreadableImage("floating-point pixels have no agreed white; save the picture with 8 or 16 bits")


DEEP_MODES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "I;16": _from_16_bit,
    "I;16L": _from_16_bit,
    "I;16B": _from_16_bit,
    "I;16N": _from_16_bit,
    "I": _from_32_bit,
    "F": _refuse_float,
}
"""Pillow modes of more than 8 bits a channel, each with its way to 8."""


def _what_it_is(data: bytes) -> str:
    """A short guess at what was sent in place of a picture, such as a web server's error page."""
    head = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<!doctype html", b"<html")):
        return "a web page (HTML), not an image"
    if head.startswith((b"<?xml", b"<svg")):
        return "XML or SVG, not a raster image"
    return f"not an image that can be read ({len(data)} bytes)"


def _first_line(problem: BaseException) -> str:
    text = str(problem).strip()
    return text.splitlines()[0] if text else type(problem).__name__
