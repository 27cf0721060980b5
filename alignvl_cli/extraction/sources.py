"""One opening of a picture file: its hash, and its pixels decoded from the same bytes.

What worker processes do: it loads no torch, which each of them would wait for.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alignvl_cli.datasets.dataset import MOST_BYTES, NO_STAMP, ImageSource
from alignvl_cli.encoders.decoding import GUESSED_BITS, UnreadableImage, decode_image
from alignvl_cli.encoders.pixels import Preprocess

READ_CHUNK = 16
"""Pictures in one task: enough that passing it costs nothing, few enough that many in flight fit in memory."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What one reading of a file gave."""

    sha256: bytes | None
    """None for a file that cannot be read."""
    stamp: tuple[int, int]
    """Size in bytes and modification time in ns, taken before the bytes were read: a later change differs from it."""
    pixels: np.ndarray | str | None = None
    """As the encoder takes them, or why there are none; None when they were not wanted."""
    guessed_bits: int | None = None
    """Of a 16-bit grey picture that seems to use fewer."""


def read_pictures(
    sources: Sequence[ImageSource], preprocess: Preprocess | None = None, max_pixels: int = 0
) -> list[Picture]:
    """Open each file once; with `preprocess` decode it from the bytes that were hashed, each content once."""
    seen: set[bytes] = set()
    found = []
    for source in sources:
        try:
            stamp = source.stamp()
            data = source.read(MOST_BYTES)
        except OSError as problem:
            found.append(Picture(None, NO_STAMP, problem.strerror or str(problem)))
            continue
        sha256 = hashlib.sha256(data).digest()
        pixels: np.ndarray | str | None = None
        bits = None
        if preprocess is not None and sha256 not in seen:
            try:
                image = decode_image(data, max_pixels)
                pixels, bits = preprocess(image), image.info.get(GUESSED_BITS)
            except UnreadableImage as problem:
                pixels = str(problem)
        seen.add(sha256)
        found.append(Picture(sha256, stamp, pixels, bits))
    return found
