"""Near duplicates among pictures that are named by place and content, for a search that shows each of them once.

The rule is that of `alignvl data check` (see `check`): perceptual hashes that differ in at most 6 of 64 bits, and no
mean colour of a 4 x 4 grid further apart than 12 of 255. Cosines of embeddings are no such rule: on the demo, clocks
of different hours have 0.99, and most pictures saved again as a JPEG below 0.90 (benchmarks/group_duplicates.py).
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from alignvl_cli.datasets.check import HASH_BYTES, MOST_BITS, MOST_COLOUR, Decode, signature_of
from alignvl_cli.datasets.formats import picture_bytes
from alignvl_cli.settings import MAX_PIXELS

KEPT = 1 << 16
"""Pictures whose looks are remembered, some 300 bytes each."""


class NotThere(LookupError):
    """The picture is gone, another by now, or cannot be read."""


@dataclass(frozen=True, slots=True)
class Looks:
    """What one picture is compared by."""

    bits: int
    colours: np.ndarray

    @classmethod
    def of(cls, signature: bytes) -> "Looks":
        """Of what `check.signature_of` gives."""
        colours = np.frombuffer(signature, np.uint8, offset=HASH_BYTES).astype(np.int16)
        return cls(int.from_bytes(signature[:HASH_BYTES], "big"), colours)

    def resembles(self, other: "Looks") -> bool:
        if (self.bits ^ other.bits).bit_count() > MOST_BITS:
            return False
        return int(np.abs(self.colours - other.colours).max()) <= MOST_COLOUR


class Lookalikes:
    """Looks at pictures, each once while it is remembered."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._looks = lru_cache(KEPT)(self._look)
        self._missing: set[str] = set()

    def __call__(self, uri: str, sha256: str) -> Looks | None:
        """Of the picture at `uri`, if its bytes are still the ones that `sha256` (hex) is of. None for a plain one,
        which has no structure to compare, and for one that is not at hand."""
        try:
            looks = self._looks(uri, sha256)
        except NotThere:
            self._missing.add(uri)
            return None
        self._missing.discard(uri)
        return looks

    def unseen(self, uris: Iterable[str]) -> str:
        """A sentence on those of `uris` that were looked at last without being at hand; empty where all were."""
        missing = len(self._missing.intersection(uris))
        if not missing:
            return ""
        are = "picture found is" if missing == 1 else "pictures found are"
        return (
            f"{missing:,} {are} not at hand, or not as indexed (moved, removed, replaced): only identical files were "
            "grouped there, and near duplicates may stand beside them; put the pictures back, or index what is there"
        )

    def _look(self, uri: str, sha256: str) -> Looks | None:
        data = picture_bytes(uri)
        if data is None or hashlib.sha256(data).hexdigest() != sha256:
            raise NotThere
        try:
            signature = signature_of(self._decode(data, MAX_PIXELS))
        except ValueError as problem:
            raise NotThere from problem
        return None if signature is None else Looks.of(signature)
