"""What stands in the picture files, shard by shard, before anything is decoded: hashes, or why they cannot be read.

Every run reads all files, those of finished shards too: only so is a picture noticed that was replaced, came back or
went since the shard was made.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import xxhash

from alignvl_cli.extraction.events import Stage
from alignvl_cli.extraction.pictures import hash_sources
from alignvl_cli.extraction.plan import Plan
from alignvl_cli.extraction.work_folder import WorkFolder
from alignvl_cli.extraction.workers import Workers
from alignvl_cli.pairs.items import Item
from alignvl_cli.provenance import canonical_json

HASH_CHUNK = 64
VANISHED = "vanished"
"""Entry of a shard's record: contents whose files were there when they were hashed and not when they were decoded."""


@dataclass
class Shard:
    number: int
    rows: range
    found: list[bytes | str]
    """SHA-256 of each row's file, or why it cannot be read."""
    record: dict[str, Any] | None = None
    """Of a finished shard."""
    is_elsewhere: bool = False
    """Whether another process is at work on it."""
    new_rows: list[int] = field(default_factory=list)
    """Rows that bring a content not seen before, in order."""

    @property
    def identity(self) -> dict[str, Any]:
        """What tells a shard, in its record: its rows, what stands in their files, and which of them it has latents
        of. That depends on the shards before it, too."""
        files = canonical_json(_hexadecimal(self.found))
        return {
            "rows": [self.rows.start, self.rows.stop],
            "files_xxh3": xxhash.xxh3_64_hexdigest(files.encode()),
            "new": [row - self.rows.start for row in self.new_rows],
        }


def shard_rows(count: int, plan: Plan) -> list[range]:
    """The rows of the dataset in each image shard."""
    return [range(start, min(start + plan.image_shard, count)) for start in range(0, count, plan.image_shard)]


def surveyed(items: Sequence[Item], plan: Plan, folder: WorkFolder, workers: Workers) -> Iterator[Shard]:
    """All shards in order, with what stands in their files; in a shared folder `share_survey` has read them already."""
    rows = shard_rows(len(items), plan)
    if folder.is_shared:
        for number, here in enumerate(rows):
            survey = folder.read_record(Stage.surveys, number)
            yield Shard(number, here, _found(survey) if survey else hash_sources([items[row].source for row in here]))
        return
    pending = (task for number, here in enumerate(rows) for task in _hashing(items, number, here))
    # A whole shard ahead, so that decoding goes on across its border.
    hashed = workers.map(hash_sources, pending, ahead=max(2 * workers.count, plan.image_shard // HASH_CHUNK))
    for number, here in enumerate(rows):
        yield Shard(number, here, [one for _ in range(0, len(here), HASH_CHUNK) for one in next(hashed)[1]])


def share_survey(items: Sequence[Item], plan: Plan, folder: WorkFolder, workers: Workers) -> None:
    """Read the files of every shard, each by one of the processes; returns when all are read."""
    rows = shard_rows(len(items), plan)
    missing = list(range(len(rows)))
    while missing := [number for number in missing if folder.read_record(Stage.surveys, number) is None]:
        found: dict[int, list[bytes | str]] = defaultdict(list)
        for number, some in workers.map(hash_sources, _claimed(items, rows, missing, folder), 2 * workers.count):
            found[number] += some
            if len(found[number]) == len(rows[number]):
                folder.write_survey(number, _survey(found.pop(number)))
        folder.wait(Stage.surveys, missing)


def take_up(shard: Shard, folder: WorkFolder) -> None:
    """Read the record of a finished shard whose contents are numbered; else claim the shard, or see that another
    process is at it."""
    # Files that had vanished are tried again. Processes that share the work leave it to the next run: all of them must
    # come to the same rows.
    wanted = shard.identity if folder.is_shared else {**shard.identity, VANISHED: {}}
    shard.record = folder.read_shard(Stage.images, shard.number, wanted)
    if shard.record is not None:
        return
    if not folder.claim(Stage.images, shard.number):
        shard.is_elsewhere = True
    elif folder.is_shared:
        shard.record = folder.read_shard(Stage.images, shard.number, wanted)  # finished a moment ago
        if shard.record is not None:
            folder.release(Stage.images, shard.number)
        else:
            folder.forget_shard(Stage.images, shard.number)


def forget_readings(folder: WorkFolder) -> None:
    """Remove what former processes of a shared folder said of files: they may stand otherwise now.

    To be called by one process, alone in the folder.
    """
    for number in folder.numbers(Stage.surveys):
        folder.forget_shard(Stage.surveys, number)
    for number in folder.numbers(Stage.images):
        record = folder.read_record(Stage.images, number)
        if record is None or record.get(VANISHED):
            folder.forget_shard(Stage.images, number)


def _survey(found: Sequence[bytes | str]) -> dict[str, Any]:
    return {
        "sha256": _hexadecimal(found),
        "unreadable": {str(n): one for n, one in enumerate(found) if isinstance(one, str)},
    }


def _found(survey: dict[str, Any]) -> list[bytes | str]:
    return [bytes.fromhex(one) if one else survey["unreadable"][str(n)] for n, one in enumerate(survey["sha256"])]


def _hexadecimal(found: Sequence[bytes | str]) -> list[str | None]:
    """None for a file that cannot be read, whatever the reason."""
    return [one.hex() if isinstance(one, bytes) else None for one in found]


def _claimed(
    items: Sequence[Item], rows: Sequence[range], missing: Sequence[int], folder: WorkFolder
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    for number in missing:
        if not folder.claim(Stage.surveys, number):
            continue
        if folder.read_record(Stage.surveys, number) is None:
            yield from _hashing(items, number, rows[number])
        else:  # finished by another process a moment ago
            folder.release(Stage.surveys, number)


def _hashing(items: Sequence[Item], number: int, rows: range) -> Iterator[tuple[int, tuple[Any, ...]]]:
    for first in range(0, len(rows), HASH_CHUNK):
        yield number, ([items[row].source for row in rows[first : first + HASH_CHUNK]],)
