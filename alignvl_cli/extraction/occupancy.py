"""Who works in `STORE.partial/`: one process alone, or several that share it by the same plan."""

import glob
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from alignvl_cli.artifacts import SharedLock, held, read_json, write_json
from alignvl_cli.errors import DataError, MismatchError
from alignvl_cli.extraction.images import forget_readings
from alignvl_cli.extraction.plan import Plan, shown_differences
from alignvl_cli.extraction.shards import LOCK, PLAN, POLL_SECONDS, SCRATCH, WorkFolder, is_ours, shared_lock

SHOWN_FILES = 3
ENTRY_SECONDS = 20.0
"""How long a process that shares waits for another to write the plan."""


@contextmanager
def work_folder(output: Path, plan: Plan, *, restart: bool, is_shared: bool = False) -> Iterator[WorkFolder]:
    """The folder of the work on `output`, made or taken up; it stays behind unless it is discarded.

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
                    forget_readings(folder)
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
            "go on with those, or discard it with --restart"
        )


def _occupied(output: Path) -> str:
    return f"{output}: another process is extracting this store; wait for it, or choose another --output"
