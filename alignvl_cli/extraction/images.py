"""The image stage: each distinct picture content decoded and encoded once, into shards.

A shard is a stretch of the dataset's rows. Its *contents* are the readable files in it whose bytes
stood in no earlier row; the later ones share the first one's latent. Contents are numbered through
the whole dataset in order of first appearance, and every content has a row in its shard's latents,
one that turns out not to be a picture too (zeros, never used): so numbers follow from hashes alone
and do not depend on who does the work or when.

A finished shard is reused if its files are as they were, by size and time or else by hash, and if no
earlier shard has taken or given it a content; its files are not opened then. Every other file is opened
once, by a worker, which hashes and decodes the same bytes; pixels of a content that is known are dropped.

Ranks that share an extraction read the files of their own shards, tell each other the hashes, and
encode what is new: a rank holds the pixels of one shard until the hashes of all earlier ones are there.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xxhash

from alignvl_cli.artifacts import canonical_json
from alignvl_cli.datasets.dataset import Item
from alignvl_cli.devices import computing_with
from alignvl_cli.distributed import Workers
from alignvl_cli.extraction.batches import require_storable, within_memory
from alignvl_cli.extraction.plan import Plan
from alignvl_cli.extraction.progress import Progress, Stage, Stopwatch
from alignvl_cli.extraction.shards import WorkFolder
from alignvl_cli.extraction.sources import CHUNK, Reading, packed, read_pictures, states_of, unpacked

if TYPE_CHECKING:
    from alignvl_cli.encoders.vision import VisionEncoder

NO_CONTENT = -1
KEY_BYTES = 16
"""Of each SHA-256, kept in memory to know a content again."""
CHANGED = "the file changed while it was being read"
CPU_THREADS = 2
"""Encoding threads on a CPU."""

Encode = Callable[[np.ndarray], np.ndarray]


class Encoding:
    """Threads that encode batches; see `encoding_threads`."""

    def __init__(self, encode: Encode, pool: ThreadPoolExecutor, count: int) -> None:
        self._encode = encode
        self._pool = pool
        self._count = count
        self._waiting: deque[Future[np.ndarray]] = deque()

    def submit(self, batch: np.ndarray) -> Future[np.ndarray]:
        """Have `batch` encoded. Waits while one batch more than there are threads is pending, so memory is bounded."""
        while len(self._waiting) > self._count:
            self._waiting.popleft().result()
        future = self._pool.submit(self._encode, batch)
        self._waiting.append(future)
        return future


@contextmanager
def encoding_threads(encode: Encode, device: str) -> Iterator[Encoding]:
    """Threads that run `encode` beside the one that decodes; a batch that has not begun when they close never does.

    On a CPU two batches at a time, each with half of torch's threads, are faster than one with all of them: no thread
    waits for the others after every layer, and decoding fills the gaps. On other devices one keeps the device at work.
    """
    threads = torch.get_num_threads()
    count = CPU_THREADS if device == "cpu" and threads >= CPU_THREADS else 1
    with computing_with(threads // count):
        pool = ThreadPoolExecutor(count, "encoding")
        try:
            yield Encoding(encode, pool, count)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@dataclass
class Shard:
    """A shard whose contents are being numbered."""

    number: int
    rows: range
    sha256: list[str | None] = field(default_factory=list)
    """Of each row's file, hexadecimal; None where it cannot be read."""
    new: list[int] = field(default_factory=list)
    """Positions of the rows that bring a content not seen before, in order."""

    @property
    def identity(self) -> dict[str, Any]:
        """What tells a shard, in its record: its rows, what stands in their files, and which of them it has latents
        of. That depends on the shards before it, too."""
        files = xxhash.xxh3_64_hexdigest(canonical_json(self.sha256).encode())
        return {"rows": [self.rows.start, self.rows.stop], "files_xxh3": files, "new": self.new}


@dataclass
class EncodedImages:
    """What is known of each row once its picture is encoded."""

    sha256: np.ndarray
    """(rows, 32) uint8; zeros for a file that could not be read."""
    content: np.ndarray
    """(rows,) int64 number of each row's content, NO_CONTENT for a file that could not be read."""
    states: np.ndarray
    """(rows, 3) int64 state of each file when it was read; see `sources.FileState`."""
    starts: list[int] = field(default_factory=list)
    """The first content of each shard."""
    contents: int = 0
    reasons: dict[int, str] = field(default_factory=dict)
    """Row -> why it is rejected."""
    reused: int = 0
    """Rows of shards that were finished before; those of other ranks as they say before contents are compared."""

    @property
    def accepted(self) -> np.ndarray:
        """Rows whose picture has a latent, ascending."""
        is_rejected = np.zeros(len(self.content), dtype=bool)
        is_rejected[list(self.reasons)] = True
        return np.flatnonzero(~is_rejected)


def shard_rows(count: int, plan: Plan) -> list[range]:
    """The rows of the dataset in each image shard."""
    return [range(start, min(start + plan.image_shard, count)) for start in range(0, count, plan.image_shard)]


def encode_images(
    items: Sequence[Item], vision: "VisionEncoder", plan: Plan, folder: WorkFolder, workers: Workers, watch: Stopwatch
) -> Generator[Progress, None, EncodedImages]:
    """Finish all image shards. Raises DataError when the encoder returns a number that cannot be kept, when a batch
    does not fit in memory, or when a rank that shares the work is gone."""
    with encoding_threads(within_memory(vision.encode, "pictures"), str(vision.about["device"])) as encoding:
        return (yield from _ImageStage(items, vision, plan, folder, workers, watch, encoding).run())


@dataclass(eq=False)
class _ImageStage:
    items: Sequence[Item]
    vision: "VisionEncoder"
    plan: Plan
    folder: WorkFolder
    workers: Workers
    watch: Stopwatch
    encoding: Encoding
    known: dict[bytes, int] = field(default_factory=dict)
    """Key of each content so far -> its number."""
    unchanged: dict[int, dict[str, Any] | None] = field(default_factory=dict)
    """The record of each own shard that is about to come; None for one that is to be made."""
    encoded_rows: int = 0
    """Of this process."""

    def __post_init__(self) -> None:
        rows = len(self.items)
        self.rows = shard_rows(rows, self.plan)
        self.done = EncodedImages(
            np.zeros((rows, 32), np.uint8), np.full(rows, NO_CONTENT, np.int64), np.zeros((rows, 3), np.int64)
        )

    def run(self) -> Generator[Progress, None, EncodedImages]:
        is_shared = self.folder.ranks.is_shared
        ahead = 2 * self.workers.count
        if is_shared and self.workers.count:  # a shard is encoded while the next one is read
            ahead = max(ahead, self.plan.image_shard // CHUNK)
        shards: list[Shard] = []
        rejected: dict[int, str] = {}
        pieces = self.workers.map(read_pictures, self._tasks(), ahead)
        for number, group in groupby(self._timed(pieces), key=lambda piece: piece[0]):
            record = self.unchanged.pop(number)
            readings: Iterator[Reading] = (one for _, some in group for one in some)
            if is_shared:
                readings = iter(self._told(number, record, readings))
                shards += [self._of_other_rank(other) for other in range(len(shards), number)]
            shard = self._begin(number)
            shards.append(shard)
            if record is not None:
                self._number_all(shard, record)
                if shard.new == record["new"]:
                    self.done.reused += len(shard.rows)
                else:  # a content has moved to or from an earlier shard
                    record = yield from self._encode(shard, self._read_again(shard))
            else:
                record = yield from self._encode(shard, self._number_each(shard, readings))
            rejected |= self._rejected(shard, record)
            yield self._progress(shard.rows.stop)
        shards += [self._of_other_rank(other) for other in range(len(shards), len(self.rows))]
        for shard in shards:
            if not self.folder.is_own(shard.number):
                record = self.folder.wait(shard.number, partial(self._finished, shard))
                rejected |= self._rejected(shard, record)
        for row in np.flatnonzero(np.isin(self.done.content, list(rejected))).tolist():
            self.done.reasons[row] = rejected[int(self.done.content[row])]
        if is_shared:
            yield self._progress(len(self.items))
        return self.done

    def _tasks(self) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """What to read, a chunk of a shard at a time; a shard that can be reused has one task, of no files."""
        for number, rows in enumerate(self.rows):
            if not self.folder.is_own(number):
                continue
            record = self.unchanged[number] = self._reusable(number, rows)
            for first in range(rows.start, rows.stop if record is None else rows.start + 1, CHUNK):
                here = range(first, min(first + CHUNK, rows.stop)) if record is None else range(0)
                yield number, self._task(here)

    def _task(self, rows: Iterable[int]) -> tuple[Any, ...]:
        return self.vision.preprocess, self.plan.max_pixels, [self.items[row].source for row in rows]

    def _timed(self, pieces: Iterator[Any]) -> Iterator[Any]:
        while True:
            with self.watch.measure("decode"):
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    def _reusable(self, number: int, rows: range) -> dict[str, Any] | None:
        """The record of a finished shard whose files are as they were, brought up to date with their states."""
        wanted = {"rows": [rows.start, rows.stop]}
        record = self.folder.read_record(Stage.images, number)
        if record is None or record.get("rows") != wanted["rows"]:
            return None
        try:
            before = unpacked(record.get("states"))
        except ValueError:  # of an earlier version
            return None
        sources = [self.items[row].source for row in rows]
        now = states_of(sources)
        if before.shape != now.shape:
            return None
        differing = np.flatnonzero((before != now).any(axis=1)).tolist()
        for position, one in zip(
            differing, read_pictures(None, self.plan.max_pixels, [sources[n] for n in differing]), strict=True
        ):
            if (one.sha256.hex() if one.sha256 else None) != record["sha256"][position]:
                return None
            before[position] = one.state
        verified = self.folder.read_shard(Stage.images, number, wanted)
        return None if verified is None else verified | {"states": packed(before)}

    def _told(self, number: int, record: dict[str, Any] | None, readings: Iterable[Reading]) -> list[Reading]:
        """The readings, once the other ranks know of the files."""
        found = list(readings)
        files = (
            {name: record[name] for name in ("rows", "sha256", "states", "unreadable")}
            if record is not None
            else _files(self.rows[number], found)
        )
        self.folder.write_record(Stage.files, number, {**files, "is_finished": record is not None})
        return found

    def _of_other_rank(self, number: int) -> Shard:
        """A shard of another rank, numbered as soon as that one has read its files."""
        shard = self._begin(number)
        files = self.folder.wait(number, lambda: self.folder.read_record(Stage.files, number))
        self._number_all(shard, files)
        self.done.reused += len(shard.rows) if files["is_finished"] else 0
        return shard

    def _finished(self, shard: Shard) -> dict[str, Any] | None:
        record = self.folder.read_record(Stage.images, shard.number)
        is_it = record is not None and all(record.get(name) == value for name, value in shard.identity.items())
        return record if is_it else None

    def _begin(self, number: int) -> Shard:
        self.done.starts.append(self.done.contents)
        return Shard(number, self.rows[number])

    def _number(self, shard: Shard, sha256: bytes | None) -> bool:
        """Number the content of the shard's next row; whether it is new."""
        position = len(shard.sha256)
        shard.sha256.append(None if sha256 is None else sha256.hex())
        if sha256 is None:
            return False
        row = shard.rows[position]
        self.done.sha256[row] = np.frombuffer(sha256, np.uint8)
        number = self.done.content[row] = self.known.setdefault(sha256[:KEY_BYTES], self.done.contents)
        if number < self.done.contents:
            return False
        self.done.contents += 1
        shard.new.append(position)
        return True

    def _number_all(self, shard: Shard, files: dict[str, Any]) -> None:
        """Number a shard of which a record says what stands in its files."""
        self.done.states[shard.rows.start : shard.rows.stop] = unpacked(files["states"])
        for sha256 in files["sha256"]:
            self._number(shard, None if sha256 is None else bytes.fromhex(sha256))
        self.done.reasons |= {shard.rows[int(position)]: why for position, why in files["unreadable"].items()}

    def _number_each(self, shard: Shard, readings: Iterable[Reading]) -> Iterator[tuple[int, np.ndarray | str]]:
        """Position and pixels of each new content, as they are read; or the reason why it has none."""
        for position, one in enumerate(readings):
            row = shard.rows[position]
            self.done.states[row] = one.state
            if self._number(shard, one.sha256):
                assert one.picture is not None  # only a repeated content has none
                yield position, one.picture
            elif one.sha256 is None:
                self.done.reasons[row] = str(one.picture)

    def _read_again(self, shard: Shard) -> Iterator[tuple[int, np.ndarray | str]]:
        """As `_number_each`, of a shard whose contents are numbered already: those of finished work."""
        chunks = (shard.new[first : first + CHUNK] for first in range(0, len(shard.new), CHUNK))
        tasks = ((chunk, self._task(shard.rows[position] for position in chunk)) for chunk in chunks)
        for chunk, readings in self.workers.map(read_pictures, tasks, 2 * self.workers.count):
            for position, one in zip(chunk, readings, strict=True):
                self.done.states[shard.rows[position]] = one.state
                is_same = one.sha256 is not None and one.sha256.hex() == shard.sha256[position]
                yield position, one.picture if is_same and one.picture is not None else CHANGED

    def _encode(
        self, shard: Shard, pictures: Iterable[tuple[int, np.ndarray | str]]
    ) -> Generator[Progress, None, dict[str, Any]]:
        """Encode the new contents of a shard and write it; returns its record."""
        rejected: dict[str, str] = {}
        batch: list[np.ndarray] = []
        order: list[int] = []
        """Number of each picture's content, counted from the shard's first."""
        sent: list[Future[np.ndarray]] = []

        def send() -> None:
            if batch:
                with self.watch.measure("encode_images"):
                    sent.append(self.encoding.submit(np.stack(batch)))
                batch.clear()

        for content, (position, picture) in enumerate(pictures):
            if isinstance(picture, str):
                rejected[str(content)] = picture
                continue
            if len(batch) == self.plan.image_batch:
                send()
                yield self._progress(shard.rows[position], position)
            batch.append(picture)
            order.append(content)
        send()
        latents = np.zeros((len(shard.new), self.vision.width), np.float32)
        done = 0
        for future in sent:
            with self.watch.measure("encode_images"):
                part = future.result()
            here = order[done : done + len(part)]
            names = [self.items[shard.rows[shard.new[content]]].id for content in here]
            require_storable(part, self.plan.dtype, "image", names)
            latents[here] = part
            done += len(part)
        rows = slice(shard.rows.start, shard.rows.stop)
        record = {
            **shard.identity,
            "rejected": rejected,
            "sha256": shard.sha256,
            "states": packed(self.done.states[rows]),
            "unreadable": {
                str(row - rows.start): self.done.reasons[row]
                for row in shard.rows
                if shard.sha256[row - rows.start] is None
            },
        }
        with self.watch.measure("write"):
            self.folder.write_shard(Stage.images, shard.number, latents, record)
        self.encoded_rows += len(shard.rows)
        return record

    def _rejected(self, shard: Shard, record: dict[str, Any]) -> dict[int, str]:
        """Number of each content of the shard that has no latent -> why."""
        start = self.done.starts[shard.number]
        return {start + int(content): why for content, why in record["rejected"].items()}

    def _progress(self, row: int, more: int = 0) -> Progress:
        rate = (self.encoded_rows + more) * self.folder.ranks.count / self.watch.total()
        return Progress(Stage.images, row, len(self.items), rate)


def _files(rows: range, readings: Sequence[Reading]) -> dict[str, Any]:
    """What stands in the files of a shard, for the other ranks."""
    return {
        "rows": [rows.start, rows.stop],
        "sha256": [None if one.sha256 is None else one.sha256.hex() for one in readings],
        "states": packed(np.array([one.state for one in readings], np.int64).reshape(-1, 3)),
        "unreadable": {str(n): str(one.picture) for n, one in enumerate(readings) if one.sha256 is None},
    }
