"""What every stage that writes files shares: hashes, sealed JSON, files that are whole or absent, provenance, locks.

Loads no heavy library: versions come from package metadata.
"""

import errno
import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignvl_cli.errors import DataError, UsageError

if TYPE_CHECKING:
    import pandas

RECORDED_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "h5py",
    "faiss-cpu",
    "pillow",
    "scipy",
    "safetensors",
)
READ_BYTES = 1 << 20
SEAL = "alignvl_digest"
"""The last key of every JSON file that we write: `fingerprint` of all the others."""


def canonical_json(value: Any) -> str:
    """The one spelling of a JSON value: sorted keys, no spaces, no NaN. Equal values, equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(value: Any) -> str:
    """Hex SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in `path`, without its seal; `what` names it in the error (exit 3) when it is missing or broken.

    What `write_json` wrote must still say the same. A file without a seal, foreign, by hand or of an earlier version,
    is taken as it is.
    """
    value, _ = read_sealed(path, what)
    return value


def read_sealed(path: Path, what: str) -> tuple[dict[str, Any], bool]:
    """As `read_json`; and whether the file has a seal, which then was verified."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as problem:
        raise DataError(f"{path}: cannot read this {what}: {problem.strerror or problem}") from problem
    except (ValueError, RecursionError) as problem:
        raise DataError(f"{path}: this {what} is not valid JSON ({problem})") from problem
    if not isinstance(value, dict):
        raise DataError(f"{path}: this {what} should hold a JSON object, not a {type(value).__name__}")
    if not value:
        return value, False
    key = SEAL if SEAL in value else next(reversed(value))
    rest = {name: part for name, part in value.items() if name != key}
    try:
        is_sealed = fingerprint(rest) == value[key]
    except ValueError:  # NaN, or half a character
        is_sealed = False
    if SEAL not in value and not is_sealed:
        return value, False
    if key != SEAL or not is_sealed:  # a seal by another name is one whose name was damaged
        raise DataError(f"{path}: this {what} is damaged or was edited: it is not what its {SEAL} was taken of")
    return rest, True


def stated_format(path: Path) -> str | None:
    """What the JSON in `path` says of its format, sound or damaged; None where it says nothing, or cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    stated = (value.get("format") or value.get("schema")) if isinstance(value, dict) else None
    return stated if isinstance(stated, str) else None


LITTER = (".DS_Store", "._*", "Thumbs.db", "desktop.ini")
"""What a desktop leaves in a folder that somebody looked at: nobody's, and no reason to keep the folder."""


def is_litter(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in LITTER)


def foreign_file(folder: Path, written: Mapping[str, tuple[str, ...]]) -> Path | None:
    """A file below `folder` that `written` ({subfolder, "." for itself: patterns of names}) does not cover; None when
    there is none. What a killed process was writing (see `committed`) is ours, and litter nobody's."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        inside = path.relative_to(folder)
        patterns = (*written.get(inside.parent.as_posix(), ()), ".*.tmp")
        if not (is_litter(path.name) or any(fnmatch(path.name, pattern) for pattern in patterns)):
            return inside
    return None


def frame_of(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> "pandas.DataFrame":
    """A row each of `rows`; `columns` are those of none. What is counted stays whole where some of it is missing, and
    texts are Python's own: a path may be no valid Unicode, which pandas' type for text refuses."""
    import pandas

    def column(name: str) -> "pandas.Series":
        values = [row.get(name) for row in rows]
        kinds = {type(value) for value in values if value is not None}
        if kinds == {int}:
            return pandas.Series(values, dtype="Int64" if None in values else "int64")
        return pandas.Series(values, dtype="float64" if kinds <= {int, float} else object)

    names = dict.fromkeys(name for row in rows for name in row) if rows else columns
    return pandas.DataFrame({name: column(name) for name in names})


def check_parts(folder: Path, sha256: Mapping[str, str], what: str) -> None:
    """DataError unless each file of `folder` that `sha256` names is there with that hash."""
    for name, wanted in sha256.items():
        try:
            found = file_sha256(folder / name)
        except OSError as problem:
            raise DataError(f"{folder / name}: cannot read this {what}: {problem.strerror or problem}") from problem
        if found != wanted:
            raise DataError(f"{folder / name}: this {what} is damaged: its SHA-256 is not the recorded one")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as indented JSON with its seal, whole or not at all."""
    stored = json.loads(json.dumps(value, allow_nan=False))  # tuples are lists, as they will be once read
    write_foreign_json(path, {**stored, SEAL: fingerprint(stored)})


def write_foreign_json(path: Path, value: Mapping[str, Any]) -> None:
    """As `write_json`, without a seal: for a format of others, that knows its keys."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with committed(path) as scratch:
        scratch.write_text(text + "\n", encoding="utf-8")


@contextmanager
def committed(path: Path) -> Iterator[Path]:
    """Yield a scratch path beside `path` that takes its name only if the block succeeds.

    The bytes are on disk before the name is: after a crash the file is whole or absent, and a
    version that was there before stays until the new one replaces it. Through a link it is its target that is
    replaced; UsageError for a device or a pipe, which a file would take the place of.
    """
    if path.is_symlink():
        path = path.resolve()
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UsageError(f"{path}: no regular file, and writing would put one in its place; name a file")
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield scratch
        _sync(scratch)
        scratch.replace(path)
        _sync(path.parent)
    except OSError as problem:
        if problem.filename is None:  # of a write, which knows a number and no name
            problem.filename = str(path)
        raise
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a scratch folder beside `folder`, which takes its name only if the block succeeds.

    UsageError when `folder` is there already; with `replace` it is moved aside then, and removed last.
    """
    if folder.exists() and not replace:
        raise UsageError(f"{folder} is there already; choose another folder")
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)  # of a killed process that had our number
    scratch.mkdir(parents=True)
    try:
        yield scratch
        if replace and folder.exists():
            aside = folder.with_name(f".{folder.name}.{os.getpid()}.old")
            folder.rename(aside)
            scratch.rename(folder)
            shutil.rmtree(aside)
        else:
            scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _sync(path: Path) -> None:
    """Flush a file or a folder to disk, where the platform lets a folder be opened."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except (PermissionError, IsADirectoryError):  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@cache
def alignvl_version() -> str:
    """The installed version, from the one place that states it."""
    from importlib import metadata  # a tenth of the start-up time of `--help`

    return metadata.version("alignvl")


@cache
def library_versions() -> dict[str, str]:
    """Versions of the libraries that can move a number; an absent one is left out."""
    from importlib import metadata

    versions = {}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def made_by(stage: str, settings: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The record kept beside an artefact: it explains and warns, and has no part in equality."""
    return {
        "stage": stage,
        "alignvl": alignvl_version(),
        "python": platform.python_version(),
        "platform": f"{sys.platform}-{platform.machine()}",
        "libraries": library_versions(),
        "settings": dict(settings),
        **more,
    }


NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
"""What a file system without locks answers."""


@contextmanager
def held(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock file `path` alone while the block runs, against this process's other threads too.

    The lock goes with the process, even a killed one; the file stays, and says who locked it last. DataError that says
    `busy` ("what happened; what to do") and by whom when it is held already. Where files cannot be locked, nothing is.
    """
    from filelock import FileLock, Timeout

    path.parent.stat()  # which filelock would make
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
        path.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
    except Timeout as problem:
        what, separator, remedy = busy.partition("; ")
        raise DataError(f"{what} ({_holder(path)}){separator}{remedy}") from problem
    except OSError as problem:
        if problem.errno not in NO_LOCKS:
            lock.release()
            raise
    try:
        yield
    finally:
        lock.release()


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip() or "it has just begun"
    except OSError:  # Windows lets nobody read a locked file
        return "it holds the lock"


try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


class SharedLock:
    """A lock file that one process holds alone, or several together, which `filelock` cannot; open until `close`.

    DataError that says `unlockable` where files cannot be locked.
    """

    def __init__(self, path: Path, unlockable: str) -> None:
        self._path = path
        self._unlockable = unlockable
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)

    def take(self) -> bool:
        """Hold the lock alone; False when any other process holds it."""
        return self._flock("LOCK_EX")

    def share(self) -> bool:
        """Hold it together with others that share it, giving up sole possession; False when one holds it alone."""
        return self._flock("LOCK_SH")

    @property
    def is_current(self) -> bool:
        """Whether what is locked is still what has its name: the file may be removed while it is opened."""
        try:
            return os.path.samestat(os.fstat(self._handle), os.stat(self._path))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Give the lock up."""
        os.close(self._handle)

    def _flock(self, kind: str) -> bool:
        try:
            if fcntl is not None:
                fcntl.flock(self._handle, getattr(fcntl, kind) | fcntl.LOCK_NB)
                return True
        except BlockingIOError:
            return False
        except OSError:
            pass
        raise DataError(self._unlockable)
