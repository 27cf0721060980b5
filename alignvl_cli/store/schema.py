"""What a store holds: format `alignvl.store/1`, plain HDF5 that any reader opens.

I images, T texts, R rejected items, D and C the widths of the two encoders::

    /image/latent (I, D) float32 | float16, little-endian    /text/latent (T, C), alike
    /image/id, /image/uri, /image/label (I,) utf-8           /text/image (T,) int64: row of its image
    /image/sha256 (I, 32) uint8                              /text/caption (T,) utf-8
    /image/split (I,) uint8, attribute `names`               /rejected/id, /rejected/uri, /rejected/reason (R,) utf-8
    /digest/NAME: uint64, one for each MiB of dataset NAME

Latents are contiguous, uncompressed and start on a page, so `Dataset.id.get_offset()` and
`numpy.memmap` read them without HDF5. Strings have variable length: 0.6 s a million to read, and
one long caption costs its own bytes only.

Digests (xxh3, 64 bits) run over the stream of a dataset's bytes, cut every MiB. A numeric dataset
streams its rows as stored. A string dataset streams groups of 65,536 rows: their lengths in bytes
as little-endian uint32, then their UTF-8 bytes.

Two attributes sum up. `content_hash` covers what the rows and latents *are*: ids, splits, image
contents, captions and latents; two stores with the same one train the same adapters wherever the
files lie and whoever made them. `digest` covers everything that the file *says*: all attributes,
`made_by` too, and all digests; it is how a flipped byte is noticed, and has no part in equality.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from alignvl_cli.artifacts import fingerprint

FORMAT = "alignvl.store/1"
FORMAT_FAMILY = "alignvl.store/"
BLOCK_BYTES = 1 << 20
PAGE_BYTES = 4096
STRING_GROUP = 65_536
MAX_SPLITS = 256

STRINGS = (
    "image/id",
    "image/uri",
    "image/label",
    "text/caption",
    "rejected/id",
    "rejected/uri",
    "rejected/reason",
)
NUMBERS = ("image/latent", "image/sha256", "image/split", "text/latent", "text/image")
DATASETS = NUMBERS + STRINGS
CONTENT = ("image/latent", "image/id", "image/sha256", "image/split", "text/latent", "text/image", "text/caption")
"""The datasets that `content_hash` covers."""

SPLIT_NAMES = "names"
ATTRIBUTES = ("format", "vision", "text", "dataset", "encoder_hash", "content_hash", "made_by")
"""Root attributes, all text, that `digest` covers."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """An item whose image could not be read, and why."""

    id: str
    uri: str
    reason: str


class BlockDigest:
    """xxh3_64 of each successive MiB of a byte stream; the last block may be short."""

    def __init__(self) -> None:
        self._values: list[int] = []
        self._open = xxhash.xxh3_64()
        self._filled = 0

    def update(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            taken = view[: BLOCK_BYTES - self._filled]
            self._open.update(taken)
            self._filled += len(taken)
            view = view[len(taken) :]
            if self._filled == BLOCK_BYTES:
                self._close()

    def finish(self) -> np.ndarray:
        """The digests so far, shape (blocks,) uint64; an empty stream has none."""
        if self._filled:
            self._close()
        return np.array(self._values, dtype="<u8")

    def _close(self) -> None:
        self._values.append(self._open.intdigest())
        self._open.reset()
        self._filled = 0


def string_groups(column: Sequence[str] | Sequence[bytes]) -> Iterator[list[bytes]]:
    """The column's UTF-8, a group of rows at a time."""
    for start in range(0, len(column), STRING_GROUP):
        group = column[start : start + STRING_GROUP]
        yield [row if isinstance(row, bytes) else row.encode() for row in group]


def pack_strings(group: Sequence[bytes]) -> bytes:
    """The byte stream of one group of rows, which string digests run over."""
    lengths = np.fromiter(map(len, group), dtype="<u4", count=len(group))
    return lengths.tobytes() + b"".join(group)


def digest_strings(column: Sequence[str] | Sequence[bytes]) -> np.ndarray:
    digest = BlockDigest()
    for group in string_groups(column):
        digest.update(pack_strings(group))
    return digest.finish()


def digest_array(array: np.ndarray) -> np.ndarray:
    digest = BlockDigest()
    digest.update(as_bytes(array))
    return digest.finish()


def as_bytes(array: np.ndarray) -> memoryview:
    """The bytes of a C-contiguous array, not copied."""
    return array.reshape(-1).view(np.uint8).data


def describe(shape: Sequence[int], kind: str, blocks: np.ndarray) -> dict[str, Any]:
    """One dataset as the two hashes see it; `kind` is a numpy dtype name, or "utf-8"."""
    return {
        "shape": [int(size) for size in shape],
        "dtype": kind,
        "blocks": hashlib.sha256(np.ascontiguousarray(blocks, dtype="<u8").tobytes()).hexdigest(),
    }


def content_hash(described: Mapping[str, Mapping[str, Any]], split_names: Iterable[str]) -> str:
    """Identifies rows and latents; `described` maps each dataset to its `describe`."""
    return fingerprint({"datasets": {name: described[name] for name in CONTENT}, "splits": list(split_names)})


def metadata_digest(
    attributes: Mapping[str, str], described: Mapping[str, Mapping[str, Any]], split_names: Iterable[str]
) -> str:
    """Covers all that the file says: attributes, split names, shapes and block digests."""
    return fingerprint(
        {
            "attributes": {name: attributes[name] for name in ATTRIBUTES},
            "datasets": {name: described[name] for name in DATASETS},
            "splits": list(split_names),
        }
    )


def encoder_hash(vision_record: Mapping[str, Any], text_record: Mapping[str, Any]) -> str:
    """The hash that binds a store, a run and an index to one pair of encoders."""
    return fingerprint({"vision": vision_record, "text": text_record})
