"""What stands in the picture files, shard by shard, before anything is decoded: hashes, or why they cannot be read."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignvl_cli.extraction.events import Stage
from alignvl_cli.extraction.pictures import hash_sources
from alignvl_cli.extraction.plan import Plan
from alignvl_cli.extraction.work_folder import WorkFolder
from alignvl_cli.extraction.workers import Workers
from alignvl_cli.pairs.items import Item

HASH_CHUNK = 64


@dataclass
class Shard:
    number: int
    rows: range
    found: list[bytes | str]
    """SHA-256 of each row's file, or why it cannot be read."""
    record: dict[str, Any] | None
    """Of a finished shard."""
    is_elsewhere: bool = False
    """Whether another process is at work on it."""
    new_rows: list[int] = field(default_factory=list)
    """Rows that bring a content not seen before, in order."""


def shard_rows(count: int, plan: Plan) -> list[range]:
    """The rows of the dataset in each image shard."""
    return [range(start, min(start + plan.image_shard, count)) for start in range(0, count, plan.image_shard)]


def surveyed(items: Sequence[Item], plan: Plan, folder: WorkFolder, workers: Workers) -> Iterator[Shard]:
    """All shards in order: what stands in their files, from the record of a finished one, else by reading them.

    In a shared folder `share_survey` has read them already.
    """
    rows = shard_rows(len(items), plan)
    records = [_record(folder, number, here) for number, here in enumerate(rows)]
    surveys = [
        folder.read_survey(number) if record is None and folder.is_shared else record
        for number, record in enumerate(records)
    ]
    pending = (
        task
        for number, (here, survey) in enumerate(zip(rows, surveys, strict=True))
        if survey is None
        for task in _hashing(items, number, here)
    )
    # A whole shard ahead, so that decoding goes on across its border.
    hashed = workers.map(hash_sources, pending, ahead=max(2 * workers.count, plan.image_shard // HASH_CHUNK))
    for number, (here, record, survey) in enumerate(zip(rows, records, surveys, strict=True)):
        if survey is None:
            found = [one for _ in range(0, len(here), HASH_CHUNK) for one in next(hashed)[1]]
        else:
            found = [
                bytes.fromhex(one) if one else survey["unreadable"][str(n)] for n, one in enumerate(survey["sha256"])
            ]
        yield Shard(number, here, found, record)


def share_survey(items: Sequence[Item], plan: Plan, folder: WorkFolder, workers: Workers) -> None:
    """Read the files of every unfinished shard, each by one of the processes; returns when all are read."""
    rows = shard_rows(len(items), plan)
    missing = [number for number, here in enumerate(rows) if _record(folder, number, here) is None]
    while missing := [number for number in missing if folder.read_survey(number) is None]:
        found: dict[int, list[bytes | str]] = defaultdict(list)
        for number, some in workers.map(hash_sources, _claimed(items, rows, missing, folder), 2 * workers.count):
            found[number] += some
            if len(found[number]) == len(rows[number]):
                folder.write_survey(number, survey_entries(found.pop(number)))
        folder.wait(Stage.surveys, missing)


def settle_who(shard: Shard, folder: WorkFolder) -> None:
    """Claim an unfinished shard, or see that another process is at it, or finished it a moment ago."""
    if shard.record is not None:
        return
    if not folder.claim(Stage.images, shard.number):
        shard.is_elsewhere = True
    elif folder.is_shared:
        shard.record = _record(folder, shard.number, shard.rows)
        if shard.record is not None:
            folder.release(Stage.images, shard.number)


def survey_entries(found: Sequence[bytes | str]) -> dict[str, Any]:
    """What was found in the files of a shard, for its record."""
    return {
        "sha256": [one.hex() if isinstance(one, bytes) else None for one in found],
        "unreadable": {str(n): one for n, one in enumerate(found) if isinstance(one, str)},
    }


def _claimed(
    items: Sequence[Item], rows: Sequence[range], missing: Sequence[int], folder: WorkFolder
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    for number in missing:
        if not folder.claim(Stage.surveys, number):
            continue
        if folder.read_survey(number) is None:
            yield from _hashing(items, number, rows[number])
        else:  # finished by another process a moment ago
            folder.release(Stage.surveys, number)


def _hashing(items: Sequence[Item], number: int, rows: range) -> Iterator[tuple[int, tuple[Any, ...]]]:
    for first in range(0, len(rows), HASH_CHUNK):
        yield number, ([items[row].source for row in rows[first : first + HASH_CHUNK]],)


def _record(folder: WorkFolder, number: int, rows: range) -> dict[str, Any] | None:
    return folder.read_shard(Stage.images, number, {"rows": [rows.start, rows.stop]})
