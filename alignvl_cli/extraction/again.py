"""A complete store met again by the command that made it: is it still of the pictures that are there?

The plan of a store tells names and places of the pictures; what stands in the files, only reading them does. That is
cheap next to encoding them.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from alignvl_cli.datasets.dataset import Dataset, Item
from alignvl_cli.distributed import choose_workers, started_workers
from alignvl_cli.encoders.pixels import Preprocess
from alignvl_cli.extraction.events import Progress, Stage
from alignvl_cli.extraction.images import DECODE_CHUNK, HASH_CHUNK, hash_sources, prepare_sources
from alignvl_cli.settings import ExtractConfig
from alignvl_cli.store.reader import open_store

Row = TypeVar("Row")


@dataclass
class Comparison:
    """Ids of the images, in the order of the data, whose pictures are not as a store says."""

    changed: list[str] = field(default_factory=list)
    """The file has other bytes than those that were encoded."""
    readable: list[str] = field(default_factory=list)
    """The store rejected the image, and now it can be read."""
    gone: list[str] = field(default_factory=list)
    """The file cannot be read, and nothing is known against what the store has of it."""
    rejected: int = 0
    """Images that the store rejected."""

    @property
    def is_same(self) -> bool:
        return not self.changed and not self.readable


def compare_pictures(
    path: Path, dataset: Dataset, preprocess: Preprocess, config: ExtractConfig
) -> Iterator[Progress | Comparison]:
    """Read every picture of `dataset` again, which the complete store at `path` is said to be of; the last record is
    what was found.

    DataError when the store is damaged.
    """
    store = open_store(path)
    row_of = {identity: row for row, identity in enumerate(store.image_id)}
    items, sha256 = dataset.items, store.image_sha256
    found = Comparison(rejected=len(store.rejected))
    rejected: list[tuple[Item, bytes]] = []
    done = 0
    started = time.perf_counter()
    count = choose_workers(config.workers, len(items))
    with started_workers(count) as workers:
        hashing = ((some, ([item.source for item in some],)) for some in _chunks(items, HASH_CHUNK))
        for some, hashes in workers.map(hash_sources, hashing, ahead=2 * count):
            for item, now in zip(some, hashes, strict=True):
                row = row_of.get(item.id)
                if row is None:
                    rejected += [(item, now)] if isinstance(now, bytes) else []
                elif isinstance(now, str):
                    found.gone.append(item.id)
                elif now != sha256[row].tobytes():
                    found.changed.append(item.id)
            done += len(some)
            yield Progress(Stage.pictures, done, len(items), done / (time.perf_counter() - started))
        decoding = (
            (few, (preprocess, config.max_pixels, [item.source for item, _ in few], [now for _, now in few]))
            for few in _chunks(rejected, DECODE_CHUNK)
        )
        for few, pictures in workers.map(prepare_sources, decoding, ahead=2 * count):
            readable = [not isinstance(picture, str) for picture in pictures]
            found.readable += [item.id for (item, _), is_readable in zip(few, readable, strict=True) if is_readable]
    yield found


def _chunks(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    return (rows[first : first + size] for first in range(0, len(rows), size))
