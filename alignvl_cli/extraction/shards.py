"""`STORE.partial/`: the plan, a lock, and finished shards, from which the same command resumes.

A shard is two files, `images-000004.npy` (latents, float32) and then `images-000004.json`, which
completes it: which files and rows it is of, and the digest of the latents. Each is whole or absent, so
a process may be killed at any moment: `finished.json` tells a folder whose store is in place already
from one of work to resume, and a folder without a plan holds nothing.

One process holds the folder's lock alone. The ranks of a shared extraction hold it together: shard n is made by rank
n % world size, and each rank holds a lock of its own, by which the others see that it is alive.
"""

import glob
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import xxhash

from alignvl_cli.artifacts import SharedLock, committed, held, is_litter, read_json, write_json
from alignvl_cli.distributed import ALONE, Ranks
from alignvl_cli.errors import DataError, MismatchError
from alignvl_cli.extraction.plan import Plan, shown_differences
from alignvl_cli.extraction.progress import Stage
from alignvl_cli.store.reader import open_store
from alignvl_cli.store.writer import Written

Found = TypeVar("Found")

PLAN = "plan.json"
LOCK = "lock"
ASSEMBLED = "store.h5"
FINISHED = "finished.json"
"""The content hash of the store that the folder is about to become, and the rounding of its latents."""
RANK = "rank-{:04d}.lock"
SCRATCH = re.compile(r"\.(.+)\.\d+\.tmp")
"""A file on its way to the name in the group (`artifacts.committed`)."""
OURS = re.compile(
    "|".join(map(re.escape, (PLAN, LOCK, ASSEMBLED, ASSEMBLED + ".claim", FINISHED)))
    + rf"|rank-\d{{4,}}\.lock|({'|'.join(Stage)}|surveys)-\d{{6,}}(\.json|\.npy|\.claim)"
)
"""Surveys and claims were made by earlier versions."""
POLL_SECONDS = 0.2
OPEN_MAPS = 64
SHOWN_FILES = 3
ENTRY_SECONDS = 20.0
"""How long a rank waits for another to write the plan."""
START_SECONDS = 600.0
"""How long a rank waits for one that has not come yet: encoders may load slowly."""
LEAVE_SECONDS = 10.0
"""How long the first rank waits for the others to leave, to remove the folder."""


@dataclass
class WorkFolder:
    path: Path
    ranks: Ranks = ALONE
    """This process's place among those that make shards of it."""
    is_over: bool = False
    """Nothing is left to do in it: the last rank to leave a shared folder removes it."""
    _since: float = field(default_factory=time.monotonic)

    @property
    def assembled(self) -> Path:
        return self.path / ASSEMBLED

    def is_own(self, number: int) -> bool:
        """Whether this process makes the shards of that number."""
        return number % self.ranks.count == self.ranks.rank

    def read_shard(self, stage: Stage, number: int, wanted: dict[str, Any]) -> dict[str, Any] | None:
        """The record of a finished shard, its latents checked; None when it is not there, damaged, or another's.

        `wanted` are entries that the record must hold: they name the rows that the shard is of.
        """
        record = self.read_record(stage, number)
        if record is None or any(record.get(name) != value for name, value in wanted.items()):
            return None
        try:
            latents = self._latents(stage, number)
        except (OSError, ValueError):  # damaged by the disk
            return None
        return record if record.get("xxh3") == _digest(latents) else None

    def write_shard(self, stage: Stage, number: int, latents: np.ndarray, record: dict[str, Any]) -> None:
        """Keep a finished shard. DataError when there is no room for it."""
        path = self._path(stage, number, "npy")
        latents = np.ascontiguousarray(latents)
        with _kept(path):
            with committed(path) as scratch, open(scratch, "wb") as stream:
                # As np.save, whose short write does not say what the system said.
                np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(latents))
                stream.write(latents.reshape(-1).view(np.uint8).data)
            write_json(self._path(stage, number, "json"), {**record, "xxh3": _digest(latents)})

    def read_record(self, stage: Stage, number: int) -> dict[str, Any] | None:
        """A record alone; None when it is not there or damaged."""
        path = self._path(stage, number, "json")
        try:
            return read_json(path, "shard record") if path.exists() else None
        except DataError:  # damaged by the disk, not by a crash: made again
            return None

    def write_record(self, stage: Stage, number: int, record: dict[str, Any]) -> None:
        """Keep a record alone, for the other ranks. DataError when there is no room for it."""
        path = self._path(stage, number, "json")
        with _kept(path):
            write_json(path, record)

    def wait(self, number: int, found: Callable[[], Found | None]) -> Found:
        """What `found` returns of a shard once the rank that makes it has got there. DataError when that one is gone,
        or does not come."""
        rank = number % self.ranks.count
        gone = 0
        while (value := found()) is None:
            if gone > 1:  # seen twice: a lock is held a moment after its file is there
                raise DataError(
                    f"{self.path}: rank {rank} of {self.ranks.count} stopped before its shards were finished, see its "
                    "own message; what is finished is kept: run the same command again, with any number of processes"
                )
            gone = gone + 1 if self._is_gone(rank) else 0
            time.sleep(POLL_SECONDS)
        return value

    def _is_gone(self, rank: int) -> bool:
        """Whether a rank was here and no longer is, or is long overdue."""
        path = self.path / RANK.format(rank)
        if not path.exists():
            return time.monotonic() - self._since > START_SECONDS
        lock = shared_lock(path)
        try:
            return lock.take()
        finally:
            lock.close()

    def gather(
        self, stage: Stage, starts: Sequence[int], rows: np.ndarray, block_rows: int = 8192
    ) -> Iterator[np.ndarray]:
        """Latents of `rows`, counted through all shards of a stage, in blocks; shard n begins with row `starts[n]`."""
        latents = lru_cache(OPEN_MAPS)(lambda number: self._latents(stage, number))
        for first in range(0, len(rows), block_rows):
            wanted = rows[first : first + block_rows]
            shard = np.searchsorted(starts, wanted, side="right") - 1
            block = None
            for number in np.unique(shard).tolist():
                here = shard == number
                part = latents(number)[wanted[here] - starts[number]]
                if block is None:
                    block = np.empty((len(wanted), part.shape[1]), dtype=np.float32)
                block[here] = part
            if block is not None:
                yield block

    def finish(self, output: Path, written: Written) -> None:
        """Give the assembled store its final name: atomically, and on disk before the name is. Removes the folder."""
        write_json(self.path / FINISHED, asdict(written))
        with committed(output) as scratch:
            os.replace(self.assembled, scratch)
        self.discard()

    def became(self, output: Path) -> bool:
        """Whether `output` is the store that was made here, or nothing is left that could become another."""
        try:
            content_hash = open_store(output).content_hash
            return (
                not (self.path / PLAN).exists()
                or read_json(self.path / FINISHED, "extraction's last record").get("content_hash") == content_hash
            )
        except DataError:
            return False

    def discard(self) -> None:
        """Remove the folder; while it is shared, once the last rank leaves it."""
        if self.ranks.is_shared:
            self.is_over = True
            return
        (self.path / PLAN).unlink(missing_ok=True)  # first, so that half a folder is not resumed
        self.empty()
        (self.path / LOCK).unlink(missing_ok=True)
        if not any(self.path.iterdir()):  # of another process that has just come, or the user's
            self.path.rmdir()

    def empty(self) -> None:
        """Remove all files of ours but the lock, which is held."""
        for path in self.path.iterdir():
            if path.name != LOCK and is_ours(path.name):
                path.unlink(missing_ok=True)

    def _latents(self, stage: Stage, number: int) -> np.ndarray:
        path = self._path(stage, number, "npy")
        with open(path, "rb") as stream:
            np.lib.format.read_magic(stream)
            shape, _, _ = np.lib.format.read_array_header_1_0(stream)
        # An empty array cannot be mapped.
        return np.load(path, mmap_mode="r" if 0 not in shape else None, allow_pickle=False)

    def _path(self, stage: Stage, number: int, suffix: str) -> Path:
        return self.path / f"{stage.value}-{number:06d}.{suffix}"


def is_ours(name: str) -> bool:
    """Whether a file of this name in the folder is one that an extraction makes, or litter, which goes with them."""
    scratch = SCRATCH.fullmatch(name)
    return is_litter(name) or bool(OURS.fullmatch(scratch[1] if scratch else name))


@contextmanager
def _kept(path: Path) -> Iterator[None]:
    """DataError that says what to do when `path` cannot be written."""
    try:
        yield
    except OSError as problem:
        raise DataError(
            f"{path}: cannot be written: {problem.strerror or problem}; what is finished is kept: make room, and run "
            "the same command again"
        ) from problem


def shared_lock(path: Path) -> SharedLock:
    """A lock that an extraction cannot be shared without."""
    return SharedLock(
        path,
        f"{path.parent}: files cannot be locked here, which sharing an extraction needs; run it as one "
        "process, or put --output on a file system with locks",
    )


def _digest(latents: np.ndarray) -> str:
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(latents).reshape(-1).view(np.uint8).data)


@contextmanager
def work_folder(output: Path, plan: Plan, *, restart: bool, ranks: Ranks = ALONE) -> Iterator[WorkFolder]:
    """The folder of the work on `output`, made or resumed; it stays behind unless it is discarded.

    Raises DataError while another process works on the same store, unless both are `ranks` of one extraction, and for a
    folder of the user's own; MismatchError, naming what differs, when the folder was begun with another plan and
    `restart` does not discard it.
    """
    folder = _folder_of(output)
    _require_ours(folder, output)
    if ranks.is_shared:
        lock = _enter(folder, output, plan)
        shared = WorkFolder(folder.path, ranks)
        alive = shared_lock(folder.path / RANK.format(ranks.rank))
        try:
            deadline = time.monotonic() + ENTRY_SECONDS
            while not alive.take():  # another rank looks whether we are there, or an earlier process is on its way out
                if time.monotonic() > deadline:
                    raise DataError(_occupied(output))
                time.sleep(POLL_SECONDS / 20)
            yield shared
        finally:
            deadline = time.monotonic() + (LEAVE_SECONDS if ranks.is_first else 0)
            while shared.is_over and not (is_last := lock.take()) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS / 4)
            if shared.is_over and is_last and lock.is_current:  # else another has removed it
                folder.discard()
            alive.close()
            lock.close()
        return
    folder.path.mkdir(parents=True, exist_ok=True)
    with held(folder.path / LOCK, _occupied(output)):
        if restart:
            folder.empty()
        _settle_plan(folder, output, plan, is_alone=True)
        _remove_scratch(folder, output)
        yield folder


def _enter(folder: WorkFolder, output: Path, plan: Plan) -> SharedLock:
    """The folder's lock, shared with the ranks of the same plan; the first to come settles the plan, alone."""
    deadline = time.monotonic() + ENTRY_SECONDS
    while time.monotonic() < deadline:
        folder.path.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # removed just now by the last process of an extraction that ended
            lock = shared_lock(folder.path / LOCK)
            try:
                if lock.take() and lock.is_current:
                    _settle_plan(folder, output, plan, is_alone=True)
                    _remove_scratch(folder, output)
                    _forget_ranks(folder)
                if lock.share() and lock.is_current and (folder.path / PLAN).exists():
                    _settle_plan(folder, output, plan, is_alone=False)
                    return lock
            except BaseException:
                lock.close()
                raise
            lock.close()
        time.sleep(POLL_SECONDS)
    raise DataError(_occupied(output))


def recorded_plan(output: Path) -> dict[str, Any] | None:
    """The plan of the unfinished work on `output`, as JSON; None where there is none."""
    path = _folder_of(output).path / PLAN
    try:
        return read_json(path, "extraction plan") if path.exists() else None
    except DataError:  # removed, or damaged, which `work_folder` says
        return None


def remove_leftover(output: Path) -> None:
    """Remove the folder that the finished store `output` was made in, if a process was killed between the two.

    A folder of other work stays, such as an interrupted extraction that is to replace this store; so does one
    that another process is at work in.
    """
    folder = _folder_of(output)
    if not (folder.path / LOCK).exists():
        if output.exists():
            with suppress(OSError):  # not there, or not empty
                folder.path.rmdir()
        return
    with suppress(DataError, FileNotFoundError), held(folder.path / LOCK, _occupied(output)):
        if folder.became(output):
            _remove_scratch(folder, output)
            folder.discard()


def _forget_ranks(folder: WorkFolder) -> None:
    """Remove what the ranks of an earlier run told each other: who was there, and what stood in the files then."""
    for path in [*folder.path.glob(f"{Stage.files}-*.json"), *folder.path.glob("rank-*.lock")]:
        if is_ours(path.name):
            path.unlink()


def _folder_of(output: Path) -> WorkFolder:
    return WorkFolder(output.with_name(output.name + ".partial"))


def _remove_scratch(folder: WorkFolder, output: Path) -> None:
    """Remove what a killed process was writing, here and under the store's name; nobody else is, under the lock."""
    for scratch in (*folder.path.glob(".*.tmp"), *output.parent.glob(f".{glob.escape(output.name)}.*.tmp")):
        named = SCRATCH.fullmatch(scratch.name)
        if named and (named[1] == output.name or is_ours(scratch.name)):
            scratch.unlink()


def _require_ours(folder: WorkFolder, output: Path) -> None:
    """DataError for a folder that no extraction has begun, with files that no extraction makes."""
    if (folder.path / PLAN).exists():
        return
    others = []
    with suppress(FileNotFoundError, NotADirectoryError):
        others = sorted(path.name for path in folder.path.iterdir() if not is_ours(path.name))
    if others:
        named = ", ".join(others[:SHOWN_FILES]) + (", ..." if len(others) > SHOWN_FILES else "")
        raise DataError(
            f"{folder.path}: unfinished work on {output.name} would lie in this folder, and it holds other files "
            f"({named}); move them away, or choose another --output"
        )


def _settle_plan(folder: WorkFolder, output: Path, plan: Plan, *, is_alone: bool) -> None:
    """Write the plan, or see that the one there is the same; who `is_alone` with the folder may have another dtype
    than before, for shards are float32 whatever the store will be."""
    path = folder.path / PLAN
    now = json.loads(json.dumps(plan.to_json()))
    if not path.exists():
        folder.empty()
        write_json(path, now)
        return
    there = read_json(path, "extraction plan")
    if is_alone and there != now and not shown_differences(there | {"dtype": now["dtype"]}, now):
        write_json(path, now)
        return
    changed = shown_differences(there, now)
    if changed:
        raise MismatchError(
            f"{folder.path}: an extraction of {output.name} was begun with other settings ({changed}); "
            "resume it with those, or discard it with --restart"
        )


def _occupied(output: Path) -> str:
    return f"{output}: another process is extracting this store; wait for it, or choose another --output"
