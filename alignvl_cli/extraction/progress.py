"""What an extraction tells its caller as it goes: records, which the caller shows, and the time that each part took."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np


class Stage(StrEnum):
    files = "files"
    """What stands in the picture files, which the ranks of an extraction tell each other."""
    images = "images"
    texts = "texts"
    pictures = "pictures"
    """Picture files of a complete store that have another size or time than when it was made, read again."""


@dataclass(frozen=True, slots=True)
class Progress:
    stage: Stage
    done: int
    """Images of the dataset, or distinct captions; those of an earlier, interrupted run included."""
    total: int
    rate: float
    """Per second, of the work of this run; 0 until there is some."""


@dataclass(frozen=True, slots=True)
class Note:
    """A line that a person should see once."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Seconds:
    """Wall time of this run, split by what the main process did."""

    decode: float
    """Waiting for pictures: read, hashed, decoded and scaled."""
    encode_images: float
    encode_texts: float
    write: float
    """Shards and the store."""
    total: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractSummary:
    """How an extraction ended."""

    output: Path
    content_hash: str
    images: int
    """In the store: the rejected ones are not among them."""
    distinct_images: int
    """Picture files that differ in content, each encoded once."""
    images_without_captions: int
    captions: int
    distinct_captions: int
    repeated_captions: int
    """`captions - distinct_captions`: those that share another's latent."""
    truncated_captions: int
    """Longer than the text encoder reads; their ends have no part in the latent."""
    cleaned_captions: int
    blank_captions: int
    rejected: int
    too_many_rejected: bool
    """More than `max_rejected` allows; the store is complete all the same."""
    leaks: int
    """Distinct picture contents that stand in more than one split."""
    split_sizes: dict[str, int]
    """Images in each split."""
    rounding_error: float | None
    """Largest absolute difference that float16 made; None for float32."""
    reused: int
    """Images whose latents an earlier, interrupted run had finished."""
    workers: int
    seconds: Seconds


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """The last record."""

    summary: ExtractSummary
    states: np.ndarray
    """(items of the dataset, 3) int64: how each picture file is known again; see `sources.FileState`."""


Event = Progress | Note | Finished


class Stopwatch:
    """Wall time since it was made, and of the parts that were measured."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def measure(self, what: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[what] += time.perf_counter() - started

    def __getitem__(self, what: str) -> float:
        return self._seconds[what]

    def total(self) -> float:
        return time.perf_counter() - self._started
