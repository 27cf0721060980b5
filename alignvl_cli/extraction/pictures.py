"""What worker processes do: read files, hash them, decode and scale pictures.

Imports little, since every worker pays for it when it starts.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from alignvl_cli.encoders.images import UnreadableImage, decode_image
from alignvl_cli.encoders.pixels import Preprocess
from alignvl_cli.pairs.items import ImageSource

MOST_BYTES = 1 << 30
"""Of one file: no picture within any pixel limit is as long, and reading it all would cost a worker's memory."""
CHANGED = "the file changed while it was being read"


class Vanished(str):
    """Why a file that was there when it was hashed cannot be had any more; nothing is said of the picture."""


def hash_sources(sources: Sequence[ImageSource]) -> list[bytes | str]:
    """SHA-256 of each file's bytes, or the reason why they cannot be read."""
    return [_hash(source) for source in sources]


def prepare_sources(
    preprocess: Preprocess, max_pixels: int, sources: Sequence[ImageSource], sha256: Sequence[bytes]
) -> list[np.ndarray | str]:
    """Pixels of each picture as `preprocess` gives them, or the reason why there are none: `Vanished` where another
    file of the same content may do."""
    return [
        _prepare(preprocess, max_pixels, source, expected) for source, expected in zip(sources, sha256, strict=True)
    ]


def _hash(source: ImageSource) -> bytes | str:
    try:
        return hashlib.sha256(source.read(MOST_BYTES)).digest()
    except OSError as problem:
        return _reason(problem)


def _prepare(preprocess: Preprocess, max_pixels: int, source: ImageSource, sha256: bytes) -> np.ndarray | str:
    try:
        data = source.read(MOST_BYTES)
        if hashlib.sha256(data).digest() != sha256:
            return Vanished(CHANGED)
        return preprocess(decode_image(data, max_pixels))
    except OSError as problem:
        return Vanished(_reason(problem))
    except UnreadableImage as problem:
        return str(problem)


def _reason(problem: OSError) -> str:
    return problem.strerror or str(problem)
