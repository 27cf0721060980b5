"""Checks a dataset before it is extracted: its files, its duplicates, its captions.

Duplicates have equal bytes. Near ones have close signatures: a 64-bit perceptual hash (the sign of each of the 64
lowest frequencies of the grey picture, at 32 x 32 against their median; after Zauner, "Implementation and benchmarking
of perceptual image hash functions", 2010) and the mean colours of a 4 x 4 grid, which tell a red heart from a blue one.
Two 64-bit hashes that differ in at most 6 bits agree in at least one of 7 bands of 9 or 10 bits, so only those with an
equal band are compared (multi-index hashing: Norouzi, Punjani and Fleet, 2012). Imports little: workers run it.
"""

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Protocol

import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from alignvl_cli.datasets.dataset import MOST_BYTES, Dataset, ImageSource, Item, Loaded, load_each, nothing_readable
from alignvl_cli.datasets.splits import split_rows
from alignvl_cli.distributed import choose_workers, started_workers
from alignvl_cli.errors import DataError
from alignvl_cli.settings import too_many_rejected

GREY_SIDE, FREQUENCIES, GRID = 32, 8, 4
PLAIN = 2.0
"""Standard deviation of grey values (of 255) below which a picture has no structure to compare."""


@dataclass(frozen=True, slots=True)
class PictureHashes:
    """What a readable picture is compared by."""

    sha256: bytes
    signature: bytes | None
    """8 bytes of perceptual hash, then 48 of colours; None for a picture that is plain."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A picture that cannot be had."""

    reason: str
    is_missing: bool
    """There is no such file; else it is there and cannot be read."""


Decode = Callable[[bytes, int], Image.Image]
"""A file's bytes and the most pixels it may have, to an RGB picture; ValueError with the reason when it is none."""


def hash_pictures(sources: Sequence[ImageSource], decode: Decode, max_pixels: int) -> list[PictureHashes | Unreadable]:
    """What each picture is compared by, or why it cannot be read."""
    return [_hash_picture(loaded, decode, max_pixels) for loaded in load_each(sources, MOST_BYTES)]


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


def _hash_picture(loaded: Loaded, decode: Decode, max_pixels: int) -> PictureHashes | Unreadable:
    if isinstance(loaded, OSError):
        return Unreadable(loaded.strerror or str(loaded), is_missing=isinstance(loaded, FileNotFoundError))
    _, data = loaded
    try:
        return PictureHashes(hashlib.sha256(data).digest(), signature_of(decode(data, max_pixels)))
    except ValueError as problem:
        return Unreadable(str(problem), is_missing=False)


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


CHUNK = 16
"""Pictures in one task."""
TEXT_CHUNK = 1024


class Tokens(Protocol):
    """What is asked of a text encoder."""

    @property
    def max_length(self) -> int: ...
    def lengths(self, texts: Sequence[str]) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Bad:
    """An image that cannot be used."""

    id: str
    uri: str
    reason: str


@dataclass(frozen=True, slots=True)
class Member:
    """An image of a group of duplicates."""

    id: str
    split: str


@dataclass(frozen=True, slots=True)
class Duplicates:
    groups: list[list[Member]]
    """Each of at least two images, in the order of the data."""

    @property
    def images(self) -> int:
        return sum(map(len, self.groups))

    @property
    def across(self) -> list[list[Member]]:
        """Groups that stand in more than one split."""
        return [group for group in self.groups if len({member.split for member in group}) > 1]


@dataclass(frozen=True, slots=True)
class Spread:
    """Smallest, middle and largest of some counts."""

    least: int
    middle: float
    most: int


@dataclass(frozen=True, slots=True)
class Truncation:
    """Captions against the longest input of a text encoder, in tokens."""

    max_length: int
    longest: int
    captions: int
    """Longer than `max_length`: their ends are not read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionCheck:
    """Captions of the images that can be read."""

    count: int
    distinct: int
    per_image: Spread
    """The middle is the mean."""
    words: Spread
    """Words between spaces in a caption; the middle is the median."""
    repeated_within: int
    """Captions that repeat an earlier one of their split."""
    repeated_across: int
    """Distinct captions that stand in more than one split."""
    images_without: int
    blank: int
    """Of the whole dataset; dropped."""
    cleaned: int
    """Of the whole dataset: NUL or halves of characters replaced."""
    truncation: Truncation | None


@dataclass(frozen=True, kw_only=True, slots=True)
class DataReport:
    """All that a check found."""

    images: int
    missing: list[Bad]
    unreadable: list[Bad]
    too_many_rejected: bool
    splits: dict[str, int]
    """Images that can be read, by the split that an extraction would give them."""
    exact: Duplicates
    """Equal in every byte."""
    near: Duplicates
    """Alike to the eye, by `near_groups`; images equal in every byte count once."""
    plain: int
    """Distinct images of one colour, or nearly: not compared for likeness."""
    captions: CaptionCheck
    notes: list[str]
    """What the reader and the splitting decided."""

    @property
    def rejected(self) -> int:
        return len(self.missing) + len(self.unreadable)


@dataclass(frozen=True, slots=True)
class CheckProgress:
    """How many images have been looked at, of how many, and how many a second."""

    done: int
    total: int
    rate: float


def check_dataset(
    dataset: Dataset,
    decode: Decode,
    *,
    max_pixels: int,
    max_rejected: float,
    workers: int | None,
    text: Tokens | None = None,
) -> Iterator[CheckProgress | DataReport]:
    """Read and decode every image once; the last record is the report.

    DataError when not one image can be read.
    """
    items = dataset.items
    pictures: list[PictureHashes | Unreadable] = []
    started = time.perf_counter()
    count = choose_workers(workers, len(items))
    tasks = (
        (None, ([item.source for item in items[first : first + CHUNK]], decode, max_pixels))
        for first in range(0, len(items), CHUNK)
    )
    with started_workers(count) as pool:
        for _, some in pool.map(hash_pictures, tasks, ahead=4 * count):
            pictures += some
            yield CheckProgress(len(pictures), len(items), len(pictures) / (time.perf_counter() - started))
    yield _report(dataset, pictures, max_rejected, text)


def _report(
    dataset: Dataset, pictures: Sequence[PictureHashes | Unreadable], max_rejected: float, text: Tokens | None
) -> DataReport:
    pairs = list(zip(dataset.items, pictures, strict=True))
    seen = [(item, hashes) for item, hashes in pairs if isinstance(hashes, PictureHashes)]
    bad = [(item, problem) for item, problem in pairs if isinstance(problem, Unreadable)]
    if not seen:
        raise DataError(nothing_readable(dataset, [(item, problem.reason) for item, problem in bad]))
    plan = split_rows([item.split for item, _ in seen], [hashes.sha256 for _, hashes in seen])
    splits = [plan.names[code] for code in plan.codes]
    members = [Member(item.id, split) for (item, _), split in zip(seen, splits, strict=True)]
    by_content: dict[bytes, list[int]] = defaultdict(list)
    for position, (_, hashes) in enumerate(seen):
        by_content[hashes.sha256].append(position)
    signed = [rows for rows in by_content.values() if seen[rows[0]][1].signature is not None]
    near = near_groups([seen[rows[0]][1].signature or b"" for rows in signed])
    sizes = Counter(splits)
    return DataReport(
        images=len(dataset.items),
        missing=[Bad(item.id, item.uri, problem.reason) for item, problem in bad if problem.is_missing],
        unreadable=[Bad(item.id, item.uri, problem.reason) for item, problem in bad if not problem.is_missing],
        too_many_rejected=too_many_rejected(len(bad), len(dataset.items), max_rejected),
        splits={name: sizes[name] for name in plan.names if name in sizes},
        exact=Duplicates([[members[row] for row in rows] for rows in by_content.values() if len(rows) > 1]),
        near=Duplicates([[members[signed[number][0]] for number in group] for group in near]),
        plain=len(by_content) - len(signed),
        captions=_captions([item for item, _ in seen], splits, dataset, text),
        notes=[*dataset.notes, *plan.notes],
    )


def _captions(items: Sequence[Item], splits: Sequence[str], dataset: Dataset, text: Tokens | None) -> CaptionCheck:
    counts = [len(item.captions) for item in items]
    in_split: dict[str, Counter[str]] = defaultdict(Counter)
    for item, split in zip(items, splits, strict=True):
        in_split[split].update(item.captions)
    stands_in = Counter(caption for captions in in_split.values() for caption in captions)
    words = [len(caption.split()) for item in items for caption in item.captions]
    return CaptionCheck(
        count=sum(counts),
        distinct=len(stands_in),
        per_image=Spread(min(counts), sum(counts) / len(counts), max(counts)),
        words=Spread(min(words, default=0), median(words) if words else 0, max(words, default=0)),
        repeated_within=sum(captions.total() - len(captions) for captions in in_split.values()),
        repeated_across=sum(count > 1 for count in stands_in.values()),
        images_without=counts.count(0),
        blank=dataset.blank_captions,
        cleaned=dataset.cleaned_captions,
        truncation=_truncation(in_split.values(), list(stands_in), text) if text else None,
    )


def _truncation(uses: Iterable[Mapping[str, int]], distinct: Sequence[str], text: Tokens) -> Truncation:
    longest, too_long = 0, set()
    for first in range(0, len(distinct), TEXT_CHUNK):
        some = distinct[first : first + TEXT_CHUNK]
        for caption, length in zip(some, text.lengths(some), strict=True):
            longest = max(longest, length)
            if length > text.max_length:
                too_long.add(caption)
    return Truncation(
        text.max_length,
        longest,
        sum(count for captions in uses for caption, count in captions.items() if caption in too_long),
    )
