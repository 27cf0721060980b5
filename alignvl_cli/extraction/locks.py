"""Locks on files that go with the process that holds them, even a killed one."""

import os
from pathlib import Path

from alignvl_cli.errors import DataError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


class FileLock:
    """An open lock file. Best effort on file systems without locks, unless `required`: then DataError."""

    def __init__(self, path: Path, *, required: bool = False) -> None:
        self._path = path
        self._required = required
        self._stream = open(path, "a")  # noqa: SIM115 - held until `close`

    def take(self) -> bool:
        """Hold the lock alone; False when any other process holds it."""
        return self._flock("LOCK_EX")

    def share(self) -> bool:
        """Hold it together with others that share it, giving up sole possession; False when one holds it alone."""
        return self._flock("LOCK_SH")

    @property
    def is_current(self) -> bool:
        """Whether the file is still the one under its name: a folder may be removed while its lock is opened."""
        try:
            return os.path.samestat(os.fstat(self._stream.fileno()), os.stat(self._path))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Give the lock up."""
        self._stream.close()

    def _flock(self, kind: str) -> bool:
        if fcntl is not None:
            try:
                fcntl.flock(self._stream, getattr(fcntl, kind) | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                return False
            except OSError:
                pass
        if self._required:
            raise DataError(
                f"{self._path.parent}: files cannot be locked here, which sharing an extraction needs; run it as one "
                "process, or put --output on a file system with locks"
            )
        return True
