"""The image stage: each distinct picture content decoded and encoded once, into shards.

A shard is a stretch of the dataset's rows. Its *contents* are the readable files in it whose bytes stood in no earlier
row; the later ones share the first one's latent. Contents are numbered through the whole dataset in order of first
appearance, and every content has a row in its shard's latents, one that turns out not to be a picture too (zeros,
never used): so numbers follow from hashes alone, and do not depend on who does the work or when.

A worker opens a picture once: the bytes that it hashes are those that it decodes. A finished shard's record says which
hash, size and modification time each of its files had; only files whose size or time differ are read again when the
shard is resumed, and it is made anew if a hash has changed.

Processes that share an extraction must number contents alike before any of them encodes, so there each file is hashed
once, by one of them, and the distinct ones are read a second time to be decoded, under the eye of that hash.

A content that an older store has is hashed, not decoded, and takes the latent from there; a file that has the size and
time that it had then is not even opened.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from alignvl_cli.artifacts import canonical_json
from alignvl_cli.datasets.dataset import NO_STAMP, ImageSource, Item, are_unchanged
from alignvl_cli.distributed import Workers
from alignvl_cli.encoders.pixels import Preprocess
from alignvl_cli.errors import DataError
from alignvl_cli.extraction.encoding import EncodingPool, Timer, encoding_pool, require_storable, within_memory
from alignvl_cli.extraction.events import Progress, Stage
from alignvl_cli.extraction.plan import Plan
from alignvl_cli.extraction.reuse import NOTHING, Older
from alignvl_cli.extraction.shards import WorkFolder
from alignvl_cli.extraction.sources import READ_CHUNK, Picture, read_pictures

if TYPE_CHECKING:
    from alignvl_cli.encoders.vision import VisionEncoder

NO_CONTENT = -1
KEY_BYTES = 16
"""Of each SHA-256, kept in memory to know a content again."""


@dataclass
class Shard:
    number: int
    rows: range
    found: list[Picture] | None = None
    """What stands in each row's file, where that is known before its pixels are wanted."""
    record: dict[str, Any] | None = None
    """Of a finished shard."""
    is_elsewhere: bool = False
    """Whether another process is at work on it."""
    new_rows: list[int] = field(default_factory=list)
    """Rows that bring a content not seen before, in order."""


@dataclass
class EncodedImages:
    """What is known of each row once its picture is encoded."""

    sha256: np.ndarray
    """(rows, 32) uint8; zeros for a file that could not be read."""
    content: np.ndarray
    """(rows,) int64 number of each row's content, NO_CONTENT for a file that could not be read."""
    stamps: np.ndarray
    """(rows, 2) int64: size and modification time of each file when it was read, NO_STAMP where it could not be."""
    starts: list[int] = field(default_factory=list)
    """The first content of each shard."""
    contents: int = 0
    reasons: dict[int, str] = field(default_factory=dict)
    """Row -> why it is rejected."""
    resumed: int = 0
    """Rows of shards that were finished before."""
    reused: int = 0
    """Contents whose latents are those of an older store."""
    guessed_bits: dict[int, int] = field(default_factory=dict)
    """Row -> bits that its 16-bit grey picture was taken to use, of those that were decoded here."""
    known: dict[bytes, int] = field(default_factory=dict)
    """The first KEY_BYTES of a hash -> its content's number."""

    @classmethod
    def of(cls, rows: int) -> "EncodedImages":
        """Nothing known yet."""
        return cls(
            np.zeros((rows, 32), np.uint8), np.full(rows, NO_CONTENT, np.int64), np.full((rows, 2), -1, np.int64)
        )

    @property
    def accepted(self) -> np.ndarray:
        """Rows whose picture has a latent, ascending."""
        is_rejected = np.zeros(len(self.content), dtype=bool)
        is_rejected[list(self.reasons)] = True
        return np.flatnonzero(~is_rejected)

    def add(self, shard: Shard, row: int, picture: Picture) -> bool:
        """Number a row's content; whether it is a new one."""
        if picture.sha256 is None:
            self.reasons[row] = str(picture.pixels)
            return False
        self.sha256[row] = np.frombuffer(picture.sha256, np.uint8)
        self.stamps[row] = picture.stamp
        number = self.known.setdefault(picture.sha256[:KEY_BYTES], self.contents)
        self.content[row] = number
        if number < self.contents:
            return False
        self.contents += 1
        shard.new_rows.append(row)
        return True


@dataclass(frozen=True)
class _Chunk:
    """Some rows of a shard, read in one task; a shard of which nothing is to be read has one empty chunk."""

    shard: Shard
    rows: Sequence[int]
    is_first: bool
    is_last: bool


def encode_images(
    items: Sequence[Item],
    vision: "VisionEncoder",
    plan: Plan,
    folder: WorkFolder,
    workers: Workers,
    timer: Timer,
    older: Older = NOTHING,
) -> Generator[Progress, None, EncodedImages]:
    """Finish all image shards, with what latents the `older` store has.

    Raises DataError when the encoder returns a number that cannot be kept, when a batch does not fit in memory, or when
    a file changes under processes that share the work."""
    hashed = None
    if folder.is_shared:
        with timer.measure("decode"):
            hashed = _share_hashes(items, plan, folder, workers, older)
    resumed = None
    furthest = 0
    guessed_bits: dict[int, int] = {}
    while True:
        done = EncodedImages.of(len(items))
        done.guessed_bits = guessed_bits
        elsewhere: list[int] = []
        with encoding_pool(within_memory(vision.encode, "pictures"), str(vision.about["device"])) as pool:
            tasks = _tasks(items, vision.preprocess, plan, folder, hashed, older)
            pieces = workers.map(read_pictures, tasks, ahead=2 * workers.count)
            batch = _Batch(items, vision.width, pool, plan, timer, older)
            for progress in _encode_pass(items, vision.preprocess, plan, pieces, batch, folder, timer, done, elsewhere):
                if progress.done >= furthest:  # a later pass begins at the first row again
                    furthest = progress.done
                    yield progress
        resumed = done.resumed if resumed is None else resumed
        if not elsewhere:
            done.resumed = resumed
            return done
        folder.wait(Stage.images, elsewhere)


def _encode_pass(
    items: Sequence[Item],
    preprocess: Preprocess,
    plan: Plan,
    pieces: Iterator[tuple[_Chunk, Iterable[Picture]]],
    batch: "_Batch",
    folder: WorkFolder,
    timer: Timer,
    done: EncodedImages,
    elsewhere: list[int],
) -> Iterator[Progress]:
    """Walk over all shards and finish those that nobody else is at; the others' numbers go to `elsewhere`."""
    rejected_contents: dict[int, str] = {}
    session_rows = 0
    while True:
        with timer.measure("decode"):
            chunk, pictures = next(pieces, (None, []))
        if chunk is None:
            break
        shard, rows = chunk.shard, chunk.rows
        if chunk.is_first:
            done.starts.append(done.contents)
            if shard.record is not None and shard.found is not None and _new(shard, done) != shard.record["new"]:
                # An earlier shard has other contents than when this one was made: so has this one.
                shard.record, shard.found, rows = None, None, shard.rows
                pictures = _read(items, rows, preprocess, plan.max_pixels, batch.older)
            for row, picture in zip(shard.rows, shard.found or (), strict=False):
                done.add(shard, row, picture)
        for row, picture in zip(rows, pictures, strict=True):
            if shard.found is None:
                if not done.add(shard, row, picture):
                    continue
                position = len(shard.new_rows) - 1
            else:
                position = bisect_left(shard.new_rows, row)
                _require_same(items[row], picture, shard.found[row - shard.rows.start])
            if picture.guessed_bits:
                done.guessed_bits[row] = picture.guessed_bits
            if picture.pixels is None:  # the older store's
                continue
            if isinstance(picture.pixels, np.ndarray):
                if batch.is_full:
                    batch.send()
                    yield _progress(row, len(items), session_rows + row - shard.rows.start, timer)
                batch.add(position, picture.pixels)
            else:
                batch.reject(position, picture.pixels)
        if not chunk.is_last:
            continue
        if shard.is_elsewhere:
            elsewhere.append(shard.number)
            session_rows += len(shard.rows)  # the others' work counts for the time that is left
            continue
        if shard.record is None:
            batch.send()
            latents, reused = batch.latents(shard, done)
            with timer.measure("write"):
                shard.record = {**_record(shard, done, batch.rejected), "reused": reused}
                folder.write_shard(Stage.images, shard.number, latents, shard.record)
            session_rows += len(shard.rows)
        else:
            done.resumed += len(shard.rows)
        batch.clear()
        done.reused += shard.record.get("reused", 0)
        start = done.starts[shard.number]
        rejected_contents |= {start + int(position): why for position, why in shard.record["rejected"].items()}
        yield _progress(shard.rows.stop, len(items), session_rows, timer)
    for row in np.flatnonzero(np.isin(done.content, list(rejected_contents))).tolist():
        done.reasons[row] = rejected_contents[int(done.content[row])]


class _Batch:
    """Pictures on their way through the encoder, and the latents of one shard."""

    def __init__(
        self, items: Sequence[Item], width: int, pool: EncodingPool, plan: Plan, timer: Timer, older: Older
    ) -> None:
        self.older = older
        self._items = items
        self._width = width
        self._pool = pool
        self._size = plan.image_batch
        self._dtype = plan.dtype
        self._timer = timer
        self.clear()

    def clear(self) -> None:
        self._positions: list[int] = []
        self._pixels: list[np.ndarray] = []
        self._sent: list[tuple[list[int], Future[np.ndarray]]] = []
        self.rejected: dict[int, str] = {}

    def reject(self, position: int, reason: str) -> None:
        self.rejected[position] = reason

    def add(self, position: int, pixels: np.ndarray) -> None:
        self._positions.append(position)
        self._pixels.append(pixels)

    @property
    def is_full(self) -> bool:
        return len(self._pixels) == self._size

    def send(self) -> None:
        """Have what was added encoded."""
        if not self._pixels:
            return
        with self._timer.measure("encode_images"):
            self._sent.append((self._positions, self._pool.submit(np.stack(self._pixels))))
        self._positions, self._pixels = [], []

    def latents(self, shard: Shard, done: EncodedImages) -> tuple[np.ndarray, int]:
        """(contents, D) float32, zeros where a content was rejected, and how many of them are the older store's; waits
        for all that was sent."""
        latent = np.zeros((len(shard.new_rows), self._width), np.float32)
        there, known = self.older.picture_latents([done.sha256[row].tobytes() for row in shard.new_rows])
        if len(there):
            self._keep(latent, there.tolist(), known, shard)
        for positions, future in self._sent:
            with self._timer.measure("encode_images"):
                part = future.result()
            self._keep(latent, positions, part, shard)
        return latent, len(there)

    def _keep(self, latent: np.ndarray, positions: list[int], part: np.ndarray, shard: Shard) -> None:
        names = [self._items[shard.new_rows[position]].id for position in positions]
        require_storable(part, self._dtype, "image", names)
        latent[positions] = part


def _tasks(
    items: Sequence[Item],
    preprocess: Preprocess,
    plan: Plan,
    folder: WorkFolder,
    hashed: list[list[Picture]] | None,
    older: Older,
) -> Iterator[tuple[_Chunk, tuple[Any, ...]]]:
    """What is to be read, shard after shard; `hashed` is what processes that share the work have told each other."""
    numbering = EncodedImages.of(len(items) if hashed else 0)
    for number, rows in enumerate(_shard_rows(len(items), plan)):
        shard = Shard(number, rows)
        wanted: Sequence[int] = rows
        if hashed is None:
            _resume(shard, items, folder)
        else:
            shard.found = hashed[number]
            wanted = [row for row, one in zip(rows, shard.found, strict=True) if numbering.add(shard, row, one)]
            shard.new_rows = []
            _claim(shard, [row - rows.start for row in wanted], folder)
            wanted = [row for row in wanted if not older.has_picture(shard.found[row - rows.start].sha256)]
        if shard.record is not None or shard.is_elsewhere:
            wanted = ()
        for first in range(0, max(1, len(wanted)), READ_CHUNK):
            here = wanted[first : first + READ_CHUNK]
            chunk = _Chunk(shard, here, first == 0, first + READ_CHUNK >= len(wanted))
            yield chunk, (_sources(items, here, older), preprocess, plan.max_pixels, older.contents)


def _sources(items: Sequence[Item], rows: Sequence[int], older: Older) -> list[ImageSource | Picture]:
    """What is to be opened, and the pictures of files that need not be."""
    here = [items[row] for row in rows]
    return [picture or item.source for picture, item in zip(older.unread(here), here, strict=True)]


def _read(
    items: Sequence[Item], rows: Sequence[int], preprocess: Preprocess, max_pixels: int, older: Older
) -> Iterator[Picture]:
    """All pictures of a shard, some in memory at a time."""
    for first in range(0, len(rows), READ_CHUNK):
        sources = _sources(items, rows[first : first + READ_CHUNK], older)
        yield from read_pictures(sources, preprocess, max_pixels, older.contents)


def _resume(shard: Shard, items: Sequence[Item], folder: WorkFolder) -> None:
    """The record of a finished shard and what stands in its files, if they are those that it was made of."""
    record = folder.read_record(Stage.images, shard.number)
    if record is None or record.get("rows") != [shard.rows.start, shard.rows.stop] or record.get("vanished"):
        return
    sources = [items[row].source for row in shard.rows]
    nothing: list[Any] = [None] * len(sources)  # a record of an older version tells no stamps
    hashes, stamps = record.get("sha256", nothing), record.get("stamps", nothing)
    found = []
    is_same = are_unchanged(sources, [stamp or NO_STAMP for stamp in stamps])
    for source, sha256, stamp, same in zip(sources, hashes, stamps, is_same, strict=True):
        if sha256 is not None and same:
            found.append(Picture(bytes.fromhex(sha256), (stamp[0], stamp[1])))
        else:
            found += read_pictures([source])
    wanted = {"files_xxh3": _files_digest([one.sha256 for one in found])}
    shard.record = folder.read_shard(Stage.images, shard.number, wanted)
    shard.found = found if shard.record is not None else None


def _claim(shard: Shard, new: list[int], folder: WorkFolder) -> None:
    """The record of a finished shard; else claim the shard, or see that another process is at it."""
    assert shard.found is not None
    wanted = {
        "rows": [shard.rows.start, shard.rows.stop],
        "files_xxh3": _files_digest([one.sha256 for one in shard.found]),
        "new": new,
    }
    shard.record = folder.read_shard(Stage.images, shard.number, wanted)
    if shard.record is not None:
        return
    if not folder.claim(Stage.images, shard.number):
        shard.is_elsewhere = True
        return
    shard.record = folder.read_shard(Stage.images, shard.number, wanted)  # finished a moment ago
    if shard.record is not None:
        folder.release(Stage.images, shard.number)
    else:
        folder.forget_shard(Stage.images, shard.number)


def _share_hashes(
    items: Sequence[Item], plan: Plan, folder: WorkFolder, workers: Workers, older: Older
) -> list[list[Picture]]:
    """What stands in the files of every shard, each read by one of the processes; returns when all are read."""
    rows = _shard_rows(len(items), plan)

    def claimed(missing: Sequence[int]) -> Iterator[tuple[int, tuple[Any, ...]]]:
        for number in missing:
            if not folder.claim(Stage.hashes, number):
                continue
            if folder.read_record(Stage.hashes, number) is not None:  # finished by another process a moment ago
                folder.release(Stage.hashes, number)
                continue
            here = rows[number]
            for first in range(0, len(here), READ_CHUNK):
                yield number, (_sources(items, here[first : first + READ_CHUNK], older),)

    missing = list(range(len(rows)))
    while missing := [number for number in missing if folder.read_record(Stage.hashes, number) is None]:
        found: dict[int, list[Picture]] = defaultdict(list)
        for number, some in workers.map(read_pictures, claimed(missing), 2 * workers.count):
            found[number] += some
            if len(found[number]) == len(rows[number]):
                folder.write_hashes(number, {"files": [_told(one) for one in found.pop(number)]})
        folder.wait(Stage.hashes, missing)
    return [
        [
            Picture(sha256 and bytes.fromhex(sha256), (size, time_ns), reason)
            for sha256, size, time_ns, reason in (folder.read_record(Stage.hashes, number) or {})["files"]
        ]
        for number in range(len(rows))
    ]


def _told(picture: Picture) -> list[Any]:
    return [picture.sha256 and picture.sha256.hex(), *picture.stamp, picture.pixels]


def _require_same(item: Item, now: Picture, hashed: Picture) -> None:
    if now.sha256 != hashed.sha256:
        raise DataError(
            f"{item.uri}: the file changed or went while it was being extracted, and other processes count on it; "
            "what is finished is kept: run the same command again"
        )


def _shard_rows(count: int, plan: Plan) -> list[range]:
    """The rows of the dataset in each image shard."""
    return [range(start, min(start + plan.image_shard, count)) for start in range(0, count, plan.image_shard)]


def _new(shard: Shard, done: EncodedImages) -> list[int]:
    """Positions of the rows that would bring a new content."""
    seen: set[bytes] = set()
    new = []
    for position, picture in enumerate(shard.found or ()):
        key = picture.sha256[:KEY_BYTES] if picture.sha256 else None
        if key is not None and key not in done.known and key not in seen:
            seen.add(key)
            new.append(position)
    return new


def _files_digest(sha256: Sequence[bytes | None]) -> str:
    return xxhash.xxh3_64_hexdigest(canonical_json([one and one.hex() for one in sha256]).encode())


def _record(shard: Shard, done: EncodedImages, rejected: dict[int, str]) -> dict[str, Any]:
    """What tells a shard: its rows, what stands in their files, and which of them it has latents of. That depends on
    the shards before it, too."""
    sha256 = [
        done.sha256[row].tobytes() if done.content[row] != NO_CONTENT else None
        for row in range(shard.rows.start, shard.rows.stop)
    ]
    return {
        "rows": [shard.rows.start, shard.rows.stop],
        "files_xxh3": _files_digest(sha256),
        "new": [row - shard.rows.start for row in shard.new_rows],
        "rejected": {str(position): reason for position, reason in rejected.items()},
        "sha256": [one and one.hex() for one in sha256],
        "stamps": done.stamps[shard.rows.start : shard.rows.stop].tolist(),
    }


def _progress(done: int, total: int, in_session: int, timer: Timer) -> Progress:
    return Progress(Stage.images, done, total, in_session / timer.total())
