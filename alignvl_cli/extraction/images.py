"""The image stage: each distinct picture content decoded and encoded once, into shards.

A shard is a stretch of the dataset's rows. Its *contents* are the readable files in it whose bytes
stood in no earlier row; the later ones share the first one's latent. Contents are numbered through
the whole dataset in order of first appearance, and every content has a row in its shard's latents,
one that turns out not to be a picture too (zeros, never used): so numbers follow from hashes alone,
before anything is decoded, and do not depend on who does the work or when. Several processes may therefore share the
shards: each walks over all of them, encodes those that it can claim, and comes back for what the others leave undone.
A finished shard is taken up if the hashes are still those it was made of, and made anew if not.

What stands in the picture files, shard by shard, before anything is decoded: hashes, or why they cannot be read.

Every run reads all files, those of finished shards too: only so is a picture noticed that was replaced, came back or
went since the shard was made.

What worker processes do: read files, hash them, decode and scale pictures.

Imports little, since every worker pays for it when it starts.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from alignvl_cli.artifacts import canonical_json
from alignvl_cli.datasets.dataset import MOST_BYTES, ImageSource, Item
from alignvl_cli.distributed import Workers
from alignvl_cli.encoders.decoding import UnreadableImage, decode_image
from alignvl_cli.encoders.pixels import Preprocess
from alignvl_cli.extraction.encoding import Lanes, Stopwatch, open_lanes, require_storable, within_memory
from alignvl_cli.extraction.events import Progress, Stage
from alignvl_cli.extraction.plan import Plan
from alignvl_cli.extraction.shards import WorkFolder

if TYPE_CHECKING:
    from alignvl_cli.encoders.vision import VisionEncoder

"""Of one file: no picture within any pixel limit is as long, and reading it all would cost a worker's memory."""
CHANGED = "the file changed while it was being read"


class Vanished(str):
    """Why a file that was there when it was hashed cannot be had any more; nothing is said of the picture."""


def hash_sources(sources: Sequence[ImageSource]) -> list[bytes | str]:
    """SHA-256 of each file's bytes, or the reason why they cannot be read."""
    return [_hash(source) for source in sources]


def prepare_sources(
    preprocess: Preprocess, max_pixels: int, sources: Sequence[ImageSource], sha256: Sequence[bytes]
) -> list[np.ndarray | str]:
    """Pixels of each picture as `preprocess` gives them, or the reason why there are none: `Vanished` where another
    file of the same content may do."""
    return [
        _prepare(preprocess, max_pixels, source, expected) for source, expected in zip(sources, sha256, strict=True)
    ]


def _hash(source: ImageSource) -> bytes | str:
    try:
        return hashlib.sha256(source.read(MOST_BYTES)).digest()
    except OSError as problem:
        return _reason(problem)


def _prepare(preprocess: Preprocess, max_pixels: int, source: ImageSource, sha256: bytes) -> np.ndarray | str:
    try:
        data = source.read(MOST_BYTES)
        if hashlib.sha256(data).digest() != sha256:
            return Vanished(CHANGED)
        return preprocess(decode_image(data, max_pixels))
    except OSError as problem:
        return Vanished(_reason(problem))
    except UnreadableImage as problem:
        return str(problem)


def _reason(problem: OSError) -> str:
    return problem.strerror or str(problem)


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


NO_CONTENT = -1
KEY_BYTES = 16
"""Of each SHA-256, kept in memory to know a content again."""
DECODE_CHUNK = 16
"""Pictures in one task: enough that passing it costs nothing, few enough that many in flight fit in memory."""


@dataclass
class EncodedImages:
    """What is known of each row once its picture is encoded."""

    sha256: np.ndarray
    """(rows, 32) uint8; zeros for a file that could not be read."""
    content: np.ndarray
    """(rows,) int64 number of each row's content, NO_CONTENT for a file that could not be read."""
    starts: list[int] = field(default_factory=list)
    """The first content of each shard."""
    contents: int = 0
    reasons: dict[int, str] = field(default_factory=dict)
    """Row -> why it is rejected."""
    taken_up: int = 0
    """Rows of shards that were finished before."""
    left_untried: bool = False
    """Whether a file vanished between hashing and decoding, of which an equal one was found too late to take its
    place."""

    @property
    def accepted(self) -> np.ndarray:
        """Rows whose picture has a latent, ascending."""
        is_rejected = np.zeros(len(self.content), dtype=bool)
        is_rejected[list(self.reasons)] = True
        return np.flatnonzero(~is_rejected)


@dataclass(frozen=True)
class _Chunk:
    """Some of a shard's contents, to be decoded in one task; a shard without any has one empty chunk."""

    shard: Shard
    positions: Sequence[int]
    """Among the shard's contents."""
    is_last: bool


def encode_images(
    items: Sequence[Item], vision: "VisionEncoder", plan: Plan, folder: WorkFolder, workers: Workers, watch: Stopwatch
) -> Generator[Progress, None, EncodedImages]:
    """Finish all image shards. Raises DataError when the encoder returns a number that cannot be kept, or when a batch
    does not fit in memory."""
    if folder.is_shared:
        with watch.measure("decode"):
            share_survey(items, plan, folder, workers)
    taken_up = None
    furthest = 0
    is_second_reading = False
    while True:
        done = EncodedImages(np.zeros((len(items), 32), np.uint8), np.full(len(items), NO_CONTENT, np.int64))
        elsewhere: list[int] = []
        with open_lanes(within_memory(vision.encode, "pictures"), str(vision.about["device"])) as lanes:
            tasks = _chunks(items, vision.preprocess, plan, folder, workers, done)
            pieces = workers.map(prepare_sources, tasks, ahead=2 * workers.count)
            batch = _Batch(items, vision.width, lanes, plan, watch)
            again = _again(items, vision.preprocess, plan, done)
            for progress in _encode_pass(items, pieces, batch, again, folder, watch, done, elsewhere):
                if progress.done >= furthest:  # a later pass begins at the first row again
                    furthest = progress.done
                    yield progress
        taken_up = done.taken_up if taken_up is None else taken_up
        if elsewhere:
            folder.wait(Stage.images, elsewhere)
        elif done.left_untried and not folder.is_shared and not is_second_reading:
            is_second_reading = True  # once: a file that changes for ever would have it go on for ever
        else:
            done.taken_up = taken_up
            return done


def _encode_pass(
    items: Sequence[Item],
    pieces: Iterator[tuple[_Chunk, Sequence[np.ndarray | str]]],
    batch: "_Batch",
    again: "_Again",
    folder: WorkFolder,
    watch: Stopwatch,
    done: EncodedImages,
    elsewhere: list[int],
) -> Iterator[Progress]:
    """Walk over all shards and finish those that nobody else is at; the others' numbers go to `elsewhere`."""
    rejected_contents: dict[int, str] = {}
    tried: dict[int, int] = {}
    """Content that vanished -> files that were tried."""
    session_rows = 0
    while True:
        with watch.measure("decode"):
            chunk, pictures = next(pieces, (None, ()))
        if chunk is None:
            break
        shard = chunk.shard
        for position, picture in zip(chunk.positions, pictures, strict=True):
            if isinstance(picture, Vanished):
                picture, tried[done.starts[shard.number] + position] = again(shard.new_rows[position], picture)
            if isinstance(picture, str):
                batch.reject(position, picture)
                continue
            if batch.is_full:
                batch.send()
                row = shard.new_rows[position]
                yield _progress(row, len(items), session_rows + row - shard.rows.start, watch)
            batch.add(position, picture)
        if not chunk.is_last:
            continue
        if shard.is_elsewhere:
            elsewhere.append(shard.number)
            session_rows += len(shard.rows)  # the others' work counts for the time that is left
            continue
        if shard.record is None:
            batch.send()
            latents = batch.latents(shard)
            with watch.measure("write"):
                shard.record = _record(shard, batch.rejected)
                folder.write_shard(Stage.images, shard.number, latents, shard.record)
            session_rows += len(shard.rows)
        else:
            done.taken_up += len(shard.rows)
        batch.clear()
        start = done.starts[shard.number]
        for entry in ("rejected", VANISHED):
            rejected_contents |= {start + int(position): why for position, why in shard.record[entry].items()}
        yield _progress(shard.rows.stop, len(items), session_rows, watch)
    for row in np.flatnonzero(np.isin(done.content, list(rejected_contents))).tolist():
        done.reasons[row] = rejected_contents[int(done.content[row])]
    done.left_untried = any(
        content in rejected_contents and np.count_nonzero(done.content == content) > count
        for content, count in tried.items()
    )


_Again = Callable[[int, Vanished], tuple[np.ndarray | str, int]]


def _again(items: Sequence[Item], preprocess: Preprocess, plan: Plan, done: EncodedImages) -> _Again:
    """A function that finds pixels for a row whose file vanished in the other rows of its content that are known so
    far; returns them, or the last reason against, and how many rows there are."""

    def again(row: int, why: Vanished) -> tuple[np.ndarray | str, int]:
        rows = np.flatnonzero(done.content == done.content[row]).tolist()
        found: np.ndarray | str = why
        for twin in rows:
            if twin != row and isinstance(found, Vanished):
                sha256 = done.sha256[twin].tobytes()
                (found,) = prepare_sources(preprocess, plan.max_pixels, [items[twin].source], [sha256])
        return found, len(rows)

    return again


class _Batch:
    """Pictures on their way through the encoder, and the latents of one shard."""

    def __init__(self, items: Sequence[Item], width: int, lanes: Lanes, plan: Plan, watch: Stopwatch) -> None:
        self._items = items
        self._width = width
        self._lanes = lanes
        self._size = plan.image_batch
        self._dtype = plan.dtype
        self._watch = watch
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
        with self._watch.measure("encode_images"):
            self._sent.append((self._positions, self._lanes.submit(np.stack(self._pixels))))
        self._positions, self._pixels = [], []

    def latents(self, shard: Shard) -> np.ndarray:
        """(contents, D) float32, zeros where a content was rejected; waits for all that was sent."""
        latent = np.zeros((len(shard.new_rows), self._width), np.float32)
        for positions, future in self._sent:
            with self._watch.measure("encode_images"):
                part = future.result()
            names = [self._items[shard.new_rows[position]].id for position in positions]
            require_storable(part, self._dtype, "image", names)
            latent[positions] = part
        return latent


def _chunks(
    items: Sequence[Item],
    preprocess: Preprocess,
    plan: Plan,
    folder: WorkFolder,
    workers: Workers,
    done: EncodedImages,
) -> Iterator[tuple[_Chunk, tuple[Any, ...]]]:
    """The decoding tasks, numbering contents in `done` on the way."""
    known: dict[bytes, int] = {}
    for shard in surveyed(items, plan, folder, workers):
        _number_contents(shard, known, done)
        take_up(shard, folder)
        positions = range(0) if shard.record or shard.is_elsewhere else range(len(shard.new_rows))
        for first in range(0, max(1, len(positions)), DECODE_CHUNK):
            here = positions[first : first + DECODE_CHUNK]
            rows = [shard.new_rows[position] for position in here]
            arguments = (
                preprocess,
                plan.max_pixels,
                [items[row].source for row in rows],
                [done.sha256[row].tobytes() for row in rows],
            )
            yield _Chunk(shard, here, first + DECODE_CHUNK >= len(positions)), arguments


def _number_contents(shard: Shard, known: dict[bytes, int], done: EncodedImages) -> None:
    done.starts.append(done.contents)
    for row, found in zip(shard.rows, shard.found, strict=True):
        if isinstance(found, str):
            done.reasons[row] = found
            continue
        done.sha256[row] = np.frombuffer(found, np.uint8)
        number = known.setdefault(found[:KEY_BYTES], done.contents)
        done.content[row] = number
        if number == done.contents:
            done.contents += 1
            shard.new_rows.append(row)


def _record(shard: Shard, rejected: dict[int, str]) -> dict[str, Any]:
    vanished = {str(position): reason for position, reason in rejected.items() if isinstance(reason, Vanished)}
    damaged = {str(position): reason for position, reason in rejected.items() if not isinstance(reason, Vanished)}
    return {**shard.identity, "rejected": damaged, VANISHED: vanished}


def _progress(done: int, total: int, in_session: int, watch: Stopwatch) -> Progress:
    return Progress(Stage.images, done, total, in_session / watch.total())
