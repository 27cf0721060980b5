"""What an extraction tells its caller as it goes: records, which the caller shows."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


class Stage(StrEnum):
    hashes = "hashes"
    """Of the picture files, which processes that share an extraction tell each other."""
    images = "images"
    texts = "texts"
    copied = "MiB copied"
    """Of tars and lists behind URLs."""
    pictures = "pictures"
    """The files of a store that is complete, read again to see that it is still of them."""


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
    resumed: int
    """Images whose latents an earlier, interrupted run had finished."""
    reused_from: Path | None = None
    """The older store whose latents were reused."""
    reused_images: int = 0
    """Of `distinct_images`: those whose latent is the older store's."""
    reused_captions: int = 0
    """Of `distinct_captions`."""
    workers: int
    seconds: Seconds


@dataclass(frozen=True, slots=True)
class Finished:
    """The last record."""

    summary: ExtractSummary
    stamps: "np.ndarray | None" = field(default=None, repr=False, compare=False)
    """(rows of the dataset, 2) int64: size and modification time in ns of each picture file when it was read, -1 where
    it could not be."""
    rejected: "list[int]" = field(default_factory=list, repr=False, compare=False)
    """Rows of the dataset that are not in the store."""


Event = Progress | Note | Finished
