"""A dataset looked over before it is extracted: its files, its duplicates, its captions."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol

from alignvl_cli.datasets.dataset import Dataset, Item
from alignvl_cli.datasets.duplicates import Decode, Look, Unseen, look_at, near_groups
from alignvl_cli.datasets.paths import nothing_readable
from alignvl_cli.datasets.splits import split_rows
from alignvl_cli.distributed import choose_workers, started_workers
from alignvl_cli.errors import DataError
from alignvl_cli.settings import too_many_rejected

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
    """Alike to the eye, by `near_duplicates`; images equal in every byte count once."""
    plain: int
    """Distinct images of one colour, or nearly: not compared for likeness."""
    captions: CaptionCheck
    notes: list[str]
    """What the reader and the splitting decided."""

    @property
    def rejected(self) -> int:
        return len(self.missing) + len(self.unreadable)


@dataclass(frozen=True, slots=True)
class Looked:
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
) -> Iterator[Looked | DataReport]:
    """Read and decode every image once; the last record is the report.

    DataError when not one image can be read.
    """
    items = dataset.items
    looks: list[Look | Unseen] = []
    started = time.perf_counter()
    count = choose_workers(workers, len(items))
    tasks = (
        (None, ([item.source for item in items[first : first + CHUNK]], decode, max_pixels))
        for first in range(0, len(items), CHUNK)
    )
    with started_workers(count) as pool:
        for _, some in pool.map(look_at, tasks, ahead=4 * count):
            looks += some
            yield Looked(len(looks), len(items), len(looks) / (time.perf_counter() - started))
    yield _report(dataset, looks, max_rejected, text)


def _report(dataset: Dataset, looks: Sequence[Look | Unseen], max_rejected: float, text: Tokens | None) -> DataReport:
    seen = [(item, look) for item, look in zip(dataset.items, looks, strict=True) if isinstance(look, Look)]
    bad = [(item, look) for item, look in zip(dataset.items, looks, strict=True) if isinstance(look, Unseen)]
    if not seen:
        raise DataError(nothing_readable(dataset, [(item, unseen.reason) for item, unseen in bad]))
    plan = split_rows([item.split for item, _ in seen], [look.sha256 for _, look in seen])
    splits = [plan.names[code] for code in plan.codes]
    members = [Member(item.id, split) for (item, _), split in zip(seen, splits, strict=True)]
    by_content: dict[bytes, list[int]] = defaultdict(list)
    for position, (_, look) in enumerate(seen):
        by_content[look.sha256].append(position)
    signed = [rows for rows in by_content.values() if seen[rows[0]][1].signature is not None]
    near = near_groups([seen[rows[0]][1].signature or b"" for rows in signed])
    sizes = Counter(splits)
    return DataReport(
        images=len(dataset.items),
        missing=[Bad(item.id, item.uri, unseen.reason) for item, unseen in bad if unseen.is_missing],
        unreadable=[Bad(item.id, item.uri, unseen.reason) for item, unseen in bad if not unseen.is_missing],
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
