"""What every dataset is made of: images by reference, each with its captions."""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Where the bytes of an image lie: a file, or a stretch of one (a member of a tar).

    Cheap and picklable, so that a worker process reads the bytes; listing a dataset reads none.
    """

    path: Path
    offset: int | None = None
    size: int | None = None
    """Start and length in bytes; None for a whole file."""

    def read(self, at_most: int | None = None) -> bytes:
        """The bytes. OSError when they are missing, cut short, more than `at_most`, or in no regular file (a pipe
        would block)."""
        about = os.stat(self.path)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(f"{self.path} is not a regular file")
        length = about.st_size if self.size is None else self.size
        if at_most is not None and length > at_most:
            raise OSError(f"{length} bytes long, more than {at_most}")
        with open(self.path, "rb") as stream:
            if self.offset is None or self.size is None:
                return stream.read()
            stream.seek(self.offset)
            data = stream.read(self.size)
        if len(data) < self.size:
            raise OSError(f"{self.path} ends inside the member at byte {self.offset}")
        return data


@dataclass(frozen=True, slots=True)
class Item:
    """One image with all its captions; none makes it an image of the gallery that is never a query."""

    id: str
    uri: str
    captions: tuple[str, ...]
    split: str | None
    """As declared, with `dev`, `validation`, `restval` already under their usual names; None: not declared."""
    label: str
    """Empty where there is none."""
    source: ImageSource


@dataclass(frozen=True)
class Dataset:
    """Items in the order of the data, which is the order of the store's rows."""

    name: str
    """For default file names: letters, digits, `.`, `_`, `-`."""
    record: dict[str, Any]
    """What identifies the data: format, sha256 of the file that lists them, options that change the reading."""
    items: Sequence[Item]
    cleaned_captions: int = 0
    """Captions in which NUL or lone surrogates were replaced by U+FFFD."""
    blank_captions: int = 0
    """Captions of white space alone, which were dropped."""
    notes: tuple[str, ...] = ()
    """Sentences for the user: what was read otherwise than it stands, or left out."""
