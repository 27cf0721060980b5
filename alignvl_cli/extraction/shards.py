"""`STORE.partial/`: the plan, a lock, and finished shards, from which the same command resumes.

A shard is two files, `images-000004.npy` (latents, float32) and then `images-000004.json`, which
completes it: which files and rows it is of, and the digest of the latents. Each is whole or absent, so
a process may be killed at any moment: `finished.json` tells a folder whose store is in place already
from one of work to resume, and a folder without a plan holds nothing.

One process holds the folder's lock alone; processes that share an extraction hold it together, and claim each shard
by a lock of its own. A killed one's claims are free at once, so the others do its work: nobody waits for the dead.
"""

import glob
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from alignvl_cli.artifacts import SharedLock, committed, held, is_litter, read_json, write_json
from alignvl_cli.errors import DataError, MismatchError
from alignvl_cli.extraction.events import Stage
from alignvl_cli.extraction.plan import Plan, shown_differences
from alignvl_cli.store.reader import open_store
from alignvl_cli.store.writer import Written

PLAN = "plan.json"
LOCK = "lock"
ASSEMBLED = "store.h5"
FINISHED = "finished.json"
"""The content hash of the store that the folder is about to become, and the rounding of its latents."""
CLAIM = ".claim"
SCRATCH = re.compile(r"\.(.+)\.\d+\.tmp")
"""A file on its way to the name in the group (`artifacts.committed`)."""
OURS = re.compile(
    "|".join(map(re.escape, (PLAN, LOCK, ASSEMBLED, ASSEMBLED + CLAIM, FINISHED)))
    + rf"|({'|'.join(Stage)}|surveys)-\d{{6,}}(\.json|\.npy|{re.escape(CLAIM)})"
)
POLL_SECONDS = 0.2
OPEN_MAPS = 64


@dataclass
class WorkFolder:
    path: Path
    is_shared: bool = False
    """Whether other processes may be making shards of it."""
    _claims: dict[str, SharedLock] = field(default_factory=dict)
    is_over: bool = False
    """Nothing is left to do in it: the last process to leave a shared folder removes it."""

    @property
    def assembled(self) -> Path:
        return self.path / ASSEMBLED

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
        self.release(stage, number)

    def forget_shard(self, stage: Stage, number: int) -> None:
        """Remove the record of a shard, which is not finished then; so that nobody waits for it, or takes it up."""
        self._path(stage, number, "json").unlink(missing_ok=True)

    def numbers(self, stage: Stage) -> list[int]:
        """Of the shards that have a record."""
        found = [path for path in self.path.glob(f"{stage.value}-*.json") if is_ours(path.name)]
        return sorted(int(path.stem.rpartition("-")[2]) for path in found)

    def claim(self, stage: Stage, number: int) -> bool:
        """Whether making this shard is up to this process; True until it is written or released."""
        return not self.is_shared or self._take(f"{stage.value}-{number:06d}")

    def release(self, stage: Stage, number: int) -> None:
        """Give a claim up, the shard made or not."""
        self._give(f"{stage.value}-{number:06d}")

    def release_all(self) -> None:
        """Give all claims up."""
        for name in list(self._claims):
            self._give(name)

    def wait(self, stage: Stage, numbers: Sequence[int]) -> None:
        """Until all these shards of other processes are there, or one of them is free to be made here."""
        while any(not self._path(stage, number, "json").exists() for number in numbers):
            if any(not self._path(stage, number, "json").exists() and self.claim(stage, number) for number in numbers):
                return
            time.sleep(POLL_SECONDS)

    def read_record(self, stage: Stage, number: int) -> dict[str, Any] | None:
        """The record of a shard alone; None when it is not there or damaged."""
        path = self._path(stage, number, "json")
        try:
            return read_json(path, "shard record") if path.exists() else None
        except DataError:  # damaged by the disk, not by a crash: made again
            return None

    def write_hashes(self, number: int, hashes: dict[str, Any]) -> None:
        """Keep what stands in the files of an image shard, which every process needs to number contents."""
        path = self._path(Stage.hashes, number, "json")
        with _kept(path):
            write_json(path, hashes)
        self.release(Stage.hashes, number)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Held by one process at a time, in which the store is put together."""
        while self.is_shared and not self._take(ASSEMBLED):
            time.sleep(POLL_SECONDS)
        try:
            yield
        finally:
            self._give(ASSEMBLED)

    def _take(self, name: str) -> bool:
        if name in self._claims:
            return True
        lock = shared_lock(self.path / (name + CLAIM))
        if not lock.take():
            lock.close()
            return False
        self._claims[name] = lock
        return True

    def _give(self, name: str) -> None:
        if name in self._claims:
            self._claims.pop(name).close()

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

    def finished(self) -> Written:
        """What another process said of the store that it put together."""
        return Written(**read_json(self.path / FINISHED, "extraction's last record"))

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
        """Remove the folder; while it is shared, once the last process leaves it."""
        if self.is_shared:
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


SHOWN_FILES = 3
ENTRY_SECONDS = 20.0
"""How long a process that shares waits for another to write the plan."""


@contextmanager
def work_folder(output: Path, plan: Plan, *, restart: bool, is_shared: bool = False) -> Iterator[WorkFolder]:
    """The folder of the work on `output`, made or resumed; it stays behind unless it is discarded.

    Raises DataError while another process works on the same store, unless both share it, and for a folder of the
    user's own; MismatchError, naming what differs, when the folder was begun with another plan and `restart` does not
    discard it.
    """
    folder = _folder_of(output)
    _require_ours(folder, output)
    if is_shared:
        lock = _enter(folder, output, plan)
        shared = WorkFolder(folder.path, is_shared=True)
        try:
            yield shared
        finally:
            if shared.is_over and lock.take():  # the others have left
                folder.discard()
            shared.release_all()
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
    """The folder's lock, shared with the processes of the same plan; the first to come settles the plan, alone."""
    deadline = time.monotonic() + ENTRY_SECONDS
    while time.monotonic() < deadline:
        folder.path.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # removed just now by the last process of an extraction that ended
            lock = shared_lock(folder.path / LOCK)
            try:
                if lock.take() and lock.is_current:
                    _settle_plan(folder, output, plan, is_alone=True)
                    _remove_scratch(folder, output)
                    for number in folder.numbers(Stage.hashes):  # files may stand otherwise now
                        folder.forget_shard(Stage.hashes, number)
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
            "give those to resume it, or discard it with --restart"
        )


def _occupied(output: Path) -> str:
    return f"{output}: another process is extracting this store; wait for it, or choose another --output"
