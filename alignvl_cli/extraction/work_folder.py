"""`STORE.partial/`: the plan, a lock, and finished shards, from which the same command goes on.

A shard is two files, `images-000004.npy` (latents, float32) and then `images-000004.json`, which
completes it: what was found in its rows and the digest of the latents. Each is whole or absent, so
a process may be killed at any moment: `finished.json` tells a folder whose store is in place already
from one of work to go on with, and a folder without a plan holds nothing.
"""

import glob
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from alignvl_cli.errors import DataError, MismatchError
from alignvl_cli.extraction.events import Stage
from alignvl_cli.extraction.plan import Plan, differences
from alignvl_cli.provenance import committed, read_json, write_json
from alignvl_cli.store.reader import open_store

try:
    import fcntl
except ImportError:  # not on Windows; the lock is a courtesy there is no substitute for
    fcntl = None  # type: ignore[assignment]

PLAN = "plan.json"
LOCK = "lock"
ASSEMBLED = "store.h5"
FINISHED = "finished.json"
"""The content hash of the store that the folder is about to become."""
OPEN_MAPS = 64
SHOWN_DIFFERENCES = 4


@dataclass(frozen=True)
class WorkFolder:
    path: Path

    @property
    def assembled(self) -> Path:
        return self.path / ASSEMBLED

    def read_shard(self, stage: Stage, number: int, wanted: dict[str, Any]) -> dict[str, Any] | None:
        """The record of a finished shard, its latents checked; None when it is not there, damaged, or another's.

        `wanted` are entries that the record must hold: they name the rows that the shard is of.
        """
        path = self._path(stage, number, "json")
        if not path.exists():
            return None
        try:
            record = read_json(path, "shard record")
            latents = self._latents(stage, number)
        except (DataError, OSError, ValueError):  # damaged by the disk, not by a crash: made again
            return None
        same = all(record.get(name) == value for name, value in wanted.items())
        return record if same and record.get("xxh3") == _digest(latents) else None

    def write_shard(self, stage: Stage, number: int, latents: np.ndarray, record: dict[str, Any]) -> None:
        with committed(self._path(stage, number, "npy")) as scratch, open(scratch, "wb") as stream:
            np.save(stream, latents)
        write_json(self._path(stage, number, "json"), {**record, "xxh3": _digest(latents)})

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

    def finish(self, output: Path, content_hash: str) -> None:
        """Give the assembled store its final name: atomically, and on disk before the name is. Removes the folder."""
        write_json(self.path / FINISHED, {"content_hash": content_hash})
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
        (self.path / PLAN).unlink(missing_ok=True)  # first, so that half a folder is not taken up
        _empty(self.path)
        shutil.rmtree(self.path)

    def _latents(self, stage: Stage, number: int) -> np.ndarray:
        path = self._path(stage, number, "npy")
        with open(path, "rb") as stream:
            np.lib.format.read_magic(stream)
            shape, _, _ = np.lib.format.read_array_header_1_0(stream)
        # An empty array cannot be mapped.
        return np.load(path, mmap_mode="r" if 0 not in shape else None, allow_pickle=False)

    def _path(self, stage: Stage, number: int, suffix: str) -> Path:
        return self.path / f"{stage.value}-{number:06d}.{suffix}"


@contextmanager
def work_folder(output: Path, plan: Plan, *, restart: bool) -> Iterator[WorkFolder]:
    """The locked folder of the work on `output`, made or taken up; it stays behind unless it is discarded.

    Raises DataError while another process works on the same store, and MismatchError, naming what
    differs, when the folder was begun with another plan and `restart` does not discard it.
    """
    folder = _folder_of(output)
    folder.path.mkdir(parents=True, exist_ok=True)
    with _locked(folder.path / LOCK, output):
        if restart:
            _empty(folder.path)
        _settle_plan(folder, output, plan)
        _remove_scratch(folder, output)
        yield folder


def remove_leftover(output: Path) -> None:
    """Remove the folder that the finished store `output` was made in, if a process was killed between the two.

    A folder of other work stays, such as an interrupted extraction that is to replace this store; so does one
    that another process is at work in.
    """
    folder = _folder_of(output)
    if not (folder.path / LOCK).exists():
        return
    with suppress(DataError, FileNotFoundError), _locked(folder.path / LOCK, output):
        if folder.became(output):
            _remove_scratch(folder, output)
            folder.discard()


def _folder_of(output: Path) -> WorkFolder:
    return WorkFolder(output.with_name(output.name + ".partial"))


def _remove_scratch(folder: WorkFolder, output: Path) -> None:
    """Remove what a killed process was writing, here and under the store's name; nobody else is, under the lock."""
    for scratch in (*folder.path.glob(".*.tmp"), *output.parent.glob(f".{glob.escape(output.name)}.*.tmp")):
        scratch.unlink()


def _settle_plan(folder: WorkFolder, output: Path, plan: Plan) -> None:
    """Write the plan, or see that the one there is the same."""
    path = folder.path / PLAN
    now = json.loads(json.dumps(plan.to_json()))
    if not path.exists():
        _empty(folder.path)
        write_json(path, now)
        return
    changed = differences(read_json(path, "extraction plan"), now)
    if changed:
        shown = "; ".join(changed[:SHOWN_DIFFERENCES])
        more = f"; and {len(changed) - SHOWN_DIFFERENCES} more" if len(changed) > SHOWN_DIFFERENCES else ""
        raise MismatchError(
            f"{folder.path}: an extraction of {output.name} was begun with other settings ({shown}{more}); "
            "go on with those, or discard it with --restart"
        )


@contextmanager
def _locked(path: Path, output: Path) -> Iterator[None]:
    """Hold the one lock of a work folder. It goes with the process, even a killed one; best effort on file systems
    without locks."""
    with open(path, "a") as stream:
        if fcntl is not None:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as problem:
                raise DataError(
                    f"{output}: another process is extracting this store; wait for it, or choose another --output"
                ) from problem
            except OSError:
                pass
        yield


def _empty(folder: Path) -> None:
    """Remove all but the lock, which is held."""
    for path in folder.iterdir():
        if path.name != LOCK:
            with suppress(FileNotFoundError):
                path.unlink()


def _digest(latents: np.ndarray) -> str:
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(latents).reshape(-1).view(np.uint8).data)
