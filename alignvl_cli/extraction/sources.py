"""One opening of a picture file: its hash, and its pixels decoded from the same bytes.

What worker processes do: it loads no torch, which each of them would wait for.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from alignvl_cli.datasets.dataset import MOST_BYTES, NO_STAMP, ImageSource, load_each
from alignvl_cli.encoders.decoding import GUESSED_BITS, UnreadableImage, decode_image
from alignvl_cli.encoders.pixels import Preprocess
from alignvl_cli.errors import DataError

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


class Contents:
    """The pictures of a store by their hashes. A worker process is given the store's path, and reads them once."""

    def __init__(self, path: Path, digest: str, sha256: np.ndarray) -> None:
        """Of the store at `path` with this `digest`; `sha256` is (I, 32) uint8."""
        self._place = path, digest
        self._sha256 = sha256
        keys = np.ascontiguousarray(sha256[:, :8]).view("<u8")[:, 0]
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def __reduce__(self) -> tuple[Any, ...]:
        return _read_contents, self._place

    def row(self, sha256: bytes) -> int | None:
        """The first row of the store with this picture."""
        key = np.frombuffer(sha256, "<u8", 1)[0]
        first, last = (int(np.searchsorted(self._keys, key, side)) for side in ("left", "right"))
        return next((int(row) for row in self._order[first:last] if self._sha256[row].tobytes() == sha256), None)


@lru_cache(1)
def _read_contents(path: Path, digest: str) -> Contents:
    from alignvl_cli.store.reader import readable

    with readable(path) as file:
        if file.attrs["digest"] != digest:
            raise DataError(f"{path}: replaced while its latents were being reused; run the same command again")
        return Contents(path, digest, file["image/sha256"][:])


def read_pictures(
    sources: Sequence[ImageSource | Picture],
    preprocess: Preprocess | None = None,
    max_pixels: int = 0,
    reused: Contents | None = None,
) -> list[Picture]:
    """Open each file once; with `preprocess` decode it from the bytes that were hashed, each content once, and those
    that are `reused` not at all. What is a picture already is handed back."""
    seen: set[bytes] = set()
    found = []
    loaded = load_each([source for source in sources if not isinstance(source, Picture)], MOST_BYTES)
    for source in sources:
        if isinstance(source, Picture):
            found.append(source)
            continue
        one = next(loaded)
        if isinstance(one, OSError):
            found.append(Picture(None, NO_STAMP, one.strerror or str(one)))
            continue
        stamp, data = one
        sha256 = hashlib.sha256(data).digest()
        pixels: np.ndarray | str | None = None
        bits = None
        if preprocess is not None and sha256 not in seen and (reused is None or reused.row(sha256) is None):
            try:
                image = decode_image(data, max_pixels)
                pixels, bits = preprocess(image), image.info.get(GUESSED_BITS)
            except UnreadableImage as problem:
                pixels = str(problem)
        seen.add(sha256)
        found.append(Picture(sha256, stamp, pixels, bits))
    return found
