"""One look at a picture: its content's hash, and a signature by which near duplicates resemble each other.

The signature is a 64-bit perceptual hash (the sign of each of the 64 lowest frequencies of the grey
picture, scaled to 32 x 32, against their median; after Zauner, "Implementation and benchmarking of
perceptual image hash functions", 2010) and the mean colours of a 4 x 4 grid, which tell a red heart
from a blue one. Imports little, since worker processes do the looking.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from alignvl_cli.encoders.images import UnreadableImage, decode_image
from alignvl_cli.extraction.pictures import MOST_BYTES
from alignvl_cli.pairs.items import ImageSource

GREY_SIDE, FREQUENCIES, GRID = 32, 8, 4
PLAIN = 2.0
"""Standard deviation of grey values (of 255) below which a picture has no structure to compare."""


@dataclass(frozen=True, slots=True)
class Look:
    sha256: bytes
    signature: bytes | None
    """8 bytes of perceptual hash, then 48 of colours; None for a picture that is plain."""


@dataclass(frozen=True, slots=True)
class Unseen:
    """A picture that cannot be had."""

    reason: str
    is_missing: bool
    """There is no such file; else it is there and cannot be read."""


def look_at(sources: Sequence[ImageSource], max_pixels: int) -> list[Look | Unseen]:
    """A look at each picture."""
    return [_look(source, max_pixels) for source in sources]


def signature_of(image: Image.Image) -> bytes | None:
    """The signature of an RGB picture."""
    grey_HW = np.asarray(image.convert("L").resize((GREY_SIDE, GREY_SIDE), Image.Resampling.BOX), dtype=np.float32)
    if grey_HW.std() < PLAIN:
        return None
    spectrum = (COSINES @ grey_HW @ COSINES.T).ravel()
    spectrum[0] = np.median(spectrum[1:])  # the mean brightness is no structure
    bits = np.packbits(spectrum > np.median(spectrum[1:]))
    colours = np.asarray(image.resize((GRID, GRID), Image.Resampling.BOX), dtype=np.uint8)
    return bits.tobytes() + colours.tobytes()


def _look(source: ImageSource, max_pixels: int) -> Look | Unseen:
    try:
        data = source.read(MOST_BYTES)
        return Look(hashlib.sha256(data).digest(), signature_of(decode_image(data, max_pixels)))
    except FileNotFoundError as problem:
        return Unseen(problem.strerror or str(problem), is_missing=True)
    except OSError as problem:
        return Unseen(problem.strerror or str(problem), is_missing=False)
    except UnreadableImage as problem:
        return Unseen(str(problem), is_missing=False)


def _cosines() -> np.ndarray:
    """(8, 32) the lowest rows of the discrete cosine transform."""
    k_81, n_32 = np.arange(FREQUENCIES)[:, None], np.arange(GREY_SIDE)
    return np.cos(np.pi / GREY_SIDE * (n_32 + 0.5) * k_81).astype(np.float32)


COSINES = _cosines()
