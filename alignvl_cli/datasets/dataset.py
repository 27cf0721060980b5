"""What every reader gives: images by reference, each with its captions.

Here too: how captions are cleaned so that a store can hold them, and how a reader's items become a dataset, or the
reason why there are none.
"""

import hashlib
import math
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignvl_cli.artifacts import canonical_json
from alignvl_cli.errors import DataError

MOST_BYTES = 1 << 30
"""Of a picture file: a larger one is no picture."""


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Where the bytes of an image lie: a file, or a stretch of one (a member of a tar).

    Cheap and picklable, so that a worker process reads the bytes; listing a dataset reads none.
    """

    path: Path
    offset: int | None = None
    size: int | None = None
    """Start and length in bytes; None for a whole file."""
    absent: str = ""
    """Why there are no bytes: a row without a picture, or with the name of something that is no file."""

    def read(self, at_most: int | None = None) -> bytes:
        """The bytes. OSError when they are missing, cut short, more than `at_most`, or in no regular file (a pipe
        would block)."""
        if self.absent:
            raise OSError(self.absent)
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
    """As declared, with `dev`, `valid`, `restval` and the like already under their usual names; None: not declared."""
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


UNSTORABLE = re.compile("[\0\ud800-\udfff]")
"""NUL and lone surrogates: no UTF-8 text in a store can hold them."""
REPLACEMENT = "\ufffd"


@dataclass(slots=True)
class CaptionCleaner:
    """Counts over a whole dataset."""

    cleaned: int = 0
    """Captions in which something was replaced."""
    blank: int = 0
    """Captions of white space alone, which were dropped; a cell that is empty is no caption and not counted."""

    def clean(self, texts: Iterable[str]) -> list[str]:
        """The captions that say something, each made storable."""
        captions = []
        for text in texts:
            caption = storable(text)
            self.cleaned += caption != text
            if caption.strip():
                captions.append(caption)
            elif text:
                self.blank += 1
        return captions


def storable(text: str) -> str:
    """`text` with NUL and lone surrogates replaced by U+FFFD."""
    return UNSTORABLE.sub(REPLACEMENT, text)


def spelled(value: Any) -> Any:
    """`value`, or the text of a number: whole ones alike as int and as float (`3.0` is `3`), which is what a column
    of whole numbers becomes when one is missing; None for NaN."""
    if isinstance(value, float):
        if math.isnan(value):
            return None
        value = int(value) if value.is_integer() else str(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def make_dataset(
    path: Path,
    items: Sequence[Item],
    cleaner: CaptionCleaner,
    *,
    kind: str,
    sha256: str,
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
    notes: Iterable[str] = (),
) -> Dataset:
    """The dataset of `items`, named after `path` with its suffix, so that `photos.tar` and the folder `photos` are told
    apart; `options` are those that changed the reading.

    DataError when there is no image, no caption, or an id that stands twice.
    """
    if not items:
        raise DataError(f"{path}: read as {kind}, and it names no image at all")
    notes = tuple(notes)
    if not any(item.captions for item in items):
        cause = f": {'; '.join(notes)}" if notes else ""
        raise DataError(f"{path}: read as {kind}, and there is not one caption for {len(items)} images{cause}")
    known: dict[str, Item] = {}
    for item in items:
        if known.setdefault(item.id, item) is not item:
            raise DataError(
                f"{path}: duplicate id {item.id!r} ({known[item.id].uri} and {item.uri}); ids must be unique"
            )
    return Dataset(
        name=slug(path.name if name is None else name),
        record={"format": kind, "sha256": sha256, **(options or {})},
        items=items,
        cleaned_captions=cleaner.cleaned,
        blank_captions=cleaner.blank,
        notes=notes,
    )


def listing_sha256(items: Iterable[Item]) -> str:
    """Hex SHA-256 of what a dataset lists, for formats in which no one file does: as with a manifest, pictures
    count by name and place, not by content."""
    digest = hashlib.sha256()
    for item in items:
        place = [item.source.offset, item.source.size]
        digest.update(canonical_json([item.id, item.captions, item.split, item.label, place]).encode() + b"\n")
    return digest.hexdigest()


def image_folder(path: Path, image_root: Path | None) -> str:
    """The absolute folder that relative image paths start from: `image_root`, else that of the file `path`."""
    root = os.path.abspath(image_root or path.parent)
    if not os.path.isdir(root):
        raise DataError(f"--image-root {image_root}: no such folder")
    return root


def slug(name: str) -> str:
    """Letters, digits, `.`, `_` and `-` of a name."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9._-]+", "-", plain).strip("-.") or "data"
