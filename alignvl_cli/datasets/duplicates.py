"""Duplicates: the hash of a picture's bytes, and a perceptual signature by which near duplicates are found.

The signature is a 64-bit perceptual hash (the sign of each of the 64 lowest frequencies of the grey picture, at
32 x 32 against their median; after Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010)
and the mean colours of a 4 x 4 grid, which tell a red heart from a blue one. Signatures are not compared all with all:
two 64-bit hashes that differ in at most 6 bits agree in at least one of 7 bands of 9 or 10 bits, so only those with an
equal band are compared (multi-index hashing: Norouzi, Punjani and Fleet, 2012). Imports little: workers run it.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from alignvl_cli.datasets.dataset import MOST_BYTES, ImageSource

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


Decode = Callable[[bytes, int], Image.Image]
"""A file's bytes and the most pixels it may have, to an RGB picture; ValueError with the reason when it is none."""


def look_at(sources: Sequence[ImageSource], decode: Decode, max_pixels: int) -> list[Look | Unseen]:
    """A look at each picture."""
    return [_look(source, decode, max_pixels) for source in sources]


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


def _look(source: ImageSource, decode: Decode, max_pixels: int) -> Look | Unseen:
    try:
        data = source.read(MOST_BYTES)
        return Look(hashlib.sha256(data).digest(), signature_of(decode(data, max_pixels)))
    except FileNotFoundError as problem:
        return Unseen(problem.strerror or str(problem), is_missing=True)
    except OSError as problem:
        return Unseen(problem.strerror or str(problem), is_missing=False)
    except ValueError as problem:
        return Unseen(str(problem), is_missing=False)


def _cosines() -> np.ndarray:
    """(8, 32) the lowest rows of the discrete cosine transform."""
    k_81, n_32 = np.arange(FREQUENCIES)[:, None], np.arange(GREY_SIDE)
    return np.cos(np.pi / GREY_SIDE * (n_32 + 0.5) * k_81).astype(np.float32)


COSINES = _cosines()


HASH_BYTES = 8
HASH_BITS = 64
MOST_BITS = 6
"""Of 64 that may differ."""
MOST_COLOUR = 12
"""Of 255: by how much any mean colour of the 4 x 4 grid may differ."""
MOST_CELLS = 500_000
"""Pairs compared at once, which bounds the memory."""


def near_groups(signatures: Sequence[bytes]) -> list[list[int]]:
    """Groups of at least two positions in `signatures` whose members resemble each other, or each a third; ascending.

    See `signature_of` for what a signature is. For N signatures with evenly spread hashes about
    N^2 / 150 pairs of 64-bit words are compared at most; the memory is that of the signatures and of what is found.
    """
    if not signatures:
        return []
    table = np.frombuffer(b"".join(signatures), np.uint8).reshape(len(signatures), -1)
    distinct_SB, which_N = np.unique(table, axis=0, return_inverse=True)  # many equal ones cost nothing
    hash_S = np.ascontiguousarray(distinct_SB[:, :HASH_BYTES]).view(">u8").ravel().astype(np.uint64)
    colour_SC = distinct_SB[:, HASH_BYTES:].astype(np.int16)
    pairs = [np.empty((0, 2), np.int64), *_alike(hash_S, colour_SC)]
    ends_P2 = np.concatenate(pairs)
    links = coo_array((np.ones(len(ends_P2), bool), (ends_P2[:, 0], ends_P2[:, 1])), shape=(len(hash_S),) * 2)
    _, component_S = connected_components(links, directed=False)
    component_N = component_S[which_N.ravel()]
    order = np.argsort(component_N, kind="stable")
    borders = np.flatnonzero(np.diff(component_N[order])) + 1
    groups = [group.tolist() for group in np.split(order, borders) if len(group) > 1]
    return sorted(groups)


def _alike(hash_S: np.ndarray, colour_SC: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs (P, 2) within both limits, each once."""
    borders = np.linspace(0, HASH_BITS, MOST_BITS + 2).astype(int)
    earlier: list[np.uint64] = []
    for low, high in pairwise(borders.tolist()):
        band = np.uint64(((1 << (high - low)) - 1) << low)
        band_S = hash_S & band
        order = np.argsort(band_S, kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(band_S[order])) + 1):
            yield from _alike_in(bucket, earlier, hash_S, colour_SC)
        earlier.append(band)


def _alike_in(
    bucket: np.ndarray, earlier: Sequence[np.uint64], hash_S: np.ndarray, colour_SC: np.ndarray
) -> Iterator[np.ndarray]:
    """Those in a bucket; pairs with another equal band, of the `earlier` ones, were found there."""
    if len(bucket) < 2:
        return
    # In the order of the colour that tells most apart, those alike are near: a layout in many colours stays cheap.
    spread_C = np.ptp(colour_SC[bucket], axis=0)
    tint = colour_SC[bucket, spread_C.argmax()]
    by_tint = np.argsort(tint, kind="stable")
    bucket, tint = bucket[by_tint], tint[by_tint]
    ends = np.searchsorted(tint, tint + MOST_COLOUR, side="right")
    first = 0
    while first < len(bucket):
        stop = first + max(1, MOST_CELLS // int(ends[first] - first))
        some, others = bucket[first:stop], bucket[first : ends[min(stop, len(bucket)) - 1]]
        differing = hash_S[some][:, None] ^ hash_S[others][None, :]
        left, right = np.nonzero(np.bitwise_count(differing) <= MOST_BITS)
        is_new = left < right
        for band in earlier:
            is_new &= (differing[left, right] & band) != 0
        pairs = np.stack([some[left[is_new]], others[right[is_new]]], axis=1)
        apart = np.abs(colour_SC[pairs[:, 0]] - colour_SC[pairs[:, 1]]).max(axis=1, initial=0)
        yield pairs[apart <= MOST_COLOUR]
        first = stop
