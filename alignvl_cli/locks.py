"""Locks on files and folders that go with the process that holds them, even a killed one."""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from alignvl_cli.errors import DataError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


class Lock:
    """The lock of a file, which is made, or of a folder that is there; open until `close`.

    Best effort where nothing can be locked: there a lock is always to be had. With `unlockable` that is a DataError
    which says so.
    """

    def __init__(self, path: Path, *, is_folder: bool = False, unlockable: str | None = None) -> None:
        self._path = path
        self._unlockable = unlockable
        flags = os.O_RDONLY if is_folder else os.O_WRONLY | os.O_CREAT
        self._handle: int | None = None if is_folder and fcntl is None else os.open(path, flags, 0o666)

    def take(self) -> bool:
        """Hold the lock alone; False when any other process holds it."""
        return self._flock("LOCK_EX")

    def share(self) -> bool:
        """Hold it together with others that share it, giving up sole possession; False when one holds it alone."""
        return self._flock("LOCK_SH")

    @property
    def is_current(self) -> bool:
        """Whether what is locked is still what has its name: a folder may be removed while its lock is opened."""
        if self._handle is None:
            return True
        try:
            return os.path.samestat(os.fstat(self._handle), os.stat(self._path))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Give the lock up."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _flock(self, kind: str) -> bool:
        if fcntl is not None and self._handle is not None:
            try:
                fcntl.flock(self._handle, getattr(fcntl, kind) | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                return False
            except OSError:
                pass
        if self._unlockable is not None:
            raise DataError(self._unlockable)
        return True


@contextmanager
def held(path: Path, busy: str, *, is_folder: bool = False) -> Iterator[None]:
    """Hold the lock of `path` alone while the block runs; DataError that says `busy` when another process holds it."""
    with closing(Lock(path, is_folder=is_folder)) as lock:
        if not (lock.take() and lock.is_current):
            raise DataError(busy)
        yield
