"""What every reader gives: images by reference, each with its captions.

Here too: how captions are cleaned so that a store can hold them, and how a reader's items become a dataset, or the
reason why there are none; where its pictures lie, and why not one of them is there.
"""

import hashlib
import math
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from alignvl_cli.artifacts import canonical_json
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.remote import AT_ONCE, RemoteFile, fetch, is_url, joined, look, shown

Found = TypeVar("Found")

MOST_BYTES = 1 << 30
"""Of a picture file: a larger one is no picture."""
NO_STAMP = (-1, -1)
"""Of a file that could not be read: it is tried again whatever its size and time say."""


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Where the bytes of an image lie: a file, or a stretch of one (a member of a tar), here or behind a URL.

    Cheap and picklable, so that a worker process reads the bytes; listing a dataset reads none.
    """

    path: Path
    offset: int | None = None
    size: int | None = None
    """Start and length in bytes; None for a whole file."""
    absent: str = ""
    """Why there are no bytes: a row without a picture, or with the name of something that is no file."""
    remote: RemoteFile | None = None
    """What `path` stands for, where the data are behind a URL; of a member, the tar as it was when it was listed, and
    `path` is a copy of it that may be gone."""

    @property
    def place(self) -> str:
        """Where the file lies, without credentials."""
        return shown(self.remote.url) if self.remote else os.path.abspath(self.path)

    def exists(self) -> bool:
        """Whether there is a file; DataError when its server does not tell."""
        try:
            return not self.absent and (os.path.exists(self.path) if self.remote is None else bool(self.stamp()))
        except FileNotFoundError:
            return False

    def stamp(self) -> tuple[int, int]:
        """Size in bytes and modification time in ns of the file, or the number of its version; opens nothing. OSError
        when it is missing."""
        if self.absent:
            raise OSError(self.absent)
        if self.remote is not None:
            return self.remote.stamp if self.size is not None else look(self.remote.url).stamp
        about = os.stat(self.path)
        return about.st_size, about.st_mtime_ns

    def is_unchanged(self, stamp: Sequence[int]) -> bool:
        """Whether the file has the size and modification time that it had when it was read; opens nothing."""
        try:
            return tuple(stamp) != NO_STAMP and self.stamp() == tuple(stamp)
        except OSError:
            return False

    def load(self, at_most: int | None = None) -> tuple[tuple[int, int], bytes]:
        """The stamp, taken before the bytes are read, so that a later change differs from it; and the bytes as of
        `read`."""
        if self.remote is not None and self.size is None:
            found, data = fetch(self.remote.url, at_most)
            return found.stamp, data
        return self.stamp(), self.read(at_most)

    def read(self, at_most: int | None = None) -> bytes:
        """The bytes. OSError when they are missing, cut short, more than `at_most`, or in no regular file (a pipe
        would block); DataError when a server does not give them."""
        if self.absent:
            raise OSError(self.absent)
        if self.remote is not None and self.size is None:
            return fetch(self.remote.url, at_most)[1]
        if self.remote is not None and not os.path.exists(self.path):
            return self.remote.read(self.offset or 0, self.size or 0)
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


Loaded = tuple[tuple[int, int], bytes] | OSError
"""What `ImageSource.load` gives, or why it cannot."""


def load_each(sources: Sequence[ImageSource], at_most: int) -> Iterator[Loaded]:
    """What each loads, in order."""

    def loaded(source: ImageSource) -> Loaded:
        try:
            return source.load(at_most)
        except OSError as problem:
            return problem

    return _each(loaded, sources)


def are_unchanged(sources: Sequence[ImageSource], stamps: Sequence[Sequence[int]]) -> list[bool]:
    """`is_unchanged` of each."""
    return list(_each(ImageSource.is_unchanged, sources, stamps))


def _each(work: Callable[..., Found], sources: Sequence[ImageSource], *more: Sequence[Any]) -> Iterator[Found]:
    """`work` on each, in order; where any is behind a URL some at a time, ahead of the one that is handed out."""
    if not any(source.remote for source in sources):
        yield from map(work, sources, *more)
        return
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from pool.map(work, sources, *more)


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
    notes = tuple(notes)
    cause = f": {'; '.join(notes)}" if notes else ""
    if not items:
        raise DataError(f"{path}: read as {kind}, and it names no image at all{cause}")
    if not any(item.captions for item in items):
        raise DataError(f"{path}: read as {kind}, and there is not one caption for {len(items)} images{cause}")
    known: dict[str, Item] = {}
    for item in items:
        if known.setdefault(item.id, item) is not item:
            raise DataError(
                f"{path}: duplicate id {item.id!r} ({known[item.id].uri} and {item.uri}); ids must be unique"
            )
    return Dataset(
        name=slug(path.name if name is None else name),
        record={
            "format": kind,
            "sha256": sha256,
            **{name: shown(value) if isinstance(value, str) else value for name, value in (options or {}).items()},
        },
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


def image_folder(path: Path, image_root: str | Path | None) -> str:
    """The absolute folder that relative image paths start from: `image_root`, else that of the file `path`; or the URL
    of one."""
    if is_url(str(image_root)):
        if str(image_root).lower().startswith("http") and "?" in str(image_root):
            raise UsageError(f"--image-root {shown(str(image_root))}: a query signs one file, and this names a folder")
        return str(image_root).rstrip("/")
    root = os.path.abspath(path.parent if image_root is None else image_root)
    if not os.path.isdir(root):
        raise DataError(f"--image-root {image_root}: no such folder")
    return root


def slug(name: str) -> str:
    """Letters, digits, `.`, `_` and `-` of a name."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9._-]+", "-", plain).strip("-.") or "data"


ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://")
MOST_LOOKS = 50
LONGEST_PATH, LONGEST_NAME = 4096, 255
"""Bytes of a path, and of one part of it, on the file systems there are."""
IN_BASE64 = ("data:image/", "/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk0", "SUkqA", "TU0AK")
"""How a picture's bytes begin in base64: JPEG, PNG, GIF, WebP, BMP, TIFF."""
MISSING = os.strerror(2)


def no_path(name: str) -> str:
    """Why `name` can be no file's; empty for one that can."""
    written = name.encode("utf-8", "surrogatepass")
    if len(written) <= LONGEST_PATH and max(map(len, written.split(b"/"))) <= LONGEST_NAME:
        return ""
    if name.startswith(IN_BASE64):
        return "a picture in base64, which is not read; write it to a file, or as bytes to a Parquet file"
    return f"{len(written)} bytes of text, which is longer than a path can be"


def located(root: str, name: str) -> tuple[str, ImageSource]:
    """Uri and source of a picture as the data name it; relative paths start from `root`. An address is fetched only
    below a root that is one: the user has named that."""
    if is_url(root):
        return _fetched(root, name)
    if address := ADDRESS.match(name):
        return name, ImageSource(Path(name), absent=_of_address(address["scheme"].lower()))
    if reason := no_path(name):
        return name[:LONGEST_NAME], ImageSource(Path(root), absent=reason)
    uri = os.path.join(root, name)
    return uri, ImageSource(Path(uri))


def _fetched(root: str, name: str) -> tuple[str, ImageSource]:
    below = next((folder for folder in (root, shown(root)) if name.startswith(f"{folder}/")), None)
    inner = name if below is None else name[len(below) + 1 :]
    if below is not None and root.lower().startswith("http"):  # the key of a bucket is what it is, letter by letter
        inner = unquote(inner)
    if is_url(inner) or inner.startswith("/") or ".." in inner.split("/"):
        reason = f"not below {shown(root)}, and only what is below it is fetched; name another folder with --image-root"
        return shown(name), ImageSource(Path(shown(root)), absent=reason)
    url = joined(root, inner)
    return shown(url), ImageSource(Path(shown(url)), remote=RemoteFile(url))


def _of_address(scheme: str) -> str:
    if scheme == "file":
        return "an address; write the path alone, without file://"
    return (
        "an address, and nothing is fetched unless --image-root names its folder; download the pictures (img2dataset "
        "does) and give what it writes"
    )


def require_pictures(dataset: Dataset) -> None:
    """DataError when not one of the files that the dataset names is there, which costs a look at the first if it is.
    Behind URLs only so many are looked at, one after the other."""
    bad: list[tuple[Item, str]] = []
    for item in dataset.items:
        if item.source.exists() or (item.source.remote and len(bad) == MOST_LOOKS):
            return
        bad.append((item, item.source.absent or MISSING))
    raise DataError(nothing_readable(dataset, bad))


def nothing_readable(dataset: Dataset, bad: Sequence[tuple[Item, str]]) -> str:
    """What to say when no image can be read: the most frequent reason, an image of it, and what may help."""
    reason, count = Counter(reason for _, reason in bad).most_common(1)[0]
    item = next(item for item, why in bad if why == reason)
    often = "the first" if count == len(bad) else f"most often ({count})"
    said = f"none of the {len(bad)} images can be read; {often}, {item.uri}: {reason}"
    if item.source.absent or item.source.remote or os.path.lexists(item.source.path):
        return said
    return f"{said}; {_advice(str(item.source.path), dataset.record.get('image_root'))}"


def _advice(path: str, root: str | None) -> str:
    """What may be wrong with a path where nothing is, from what lies near it."""
    is_below = root is not None and path.startswith(os.path.join(root, ""))
    name = os.path.relpath(path, root) if is_below and path == path.rstrip() else path
    if path.rstrip() != path:
        there = ", and without it the file is there" if os.path.exists(path.rstrip()) else ""
        return f"the path ends in white space{there}"
    if "\\" in path:
        slashed = path.replace("\\", "/")
        there = f"; {slashed} is there" if os.path.exists(slashed) else ""
        return f"the path is written with backslashes, as on Windows: write / instead{there}"
    if near := next(_near(path), None):
        return near
    if root is None:
        return "are the paths right?"
    if not is_below:
        found = next((part for part in _tails(path) if os.path.exists(os.path.join(root, part))), None)
        there = f", and {found} is there: write the paths like that" if found else ", or write relative ones"
        return f"the path is absolute, so --image-root does nothing; the pictures lie elsewhere{there}"
    for folder in [os.path.dirname(root), *_folders(root)]:
        if os.path.exists(os.path.join(folder, name)):
            return f"{os.path.join(folder, name)} is there: give --image-root {folder}"
    return f"are the paths right? They start from {root} (--image-root)"


def _near(path: str) -> Iterator[str]:
    """Files in the same folder under nearly the same name."""
    folder, name = os.path.split(path)
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    for other in names:
        stem = other.rpartition(".")[0]
        if other.casefold() == name.casefold():
            yield f"{other} is there: upper and lower case differ"
        elif stem == name:
            yield f"{other} is there: the name lacks its suffix"
        elif stem and stem == name.rpartition(".")[0]:
            yield f"{other} is there: the suffix differs"


def _tails(path: str) -> Iterator[str]:
    parts = path.strip("/").split("/")
    for first in range(1, len(parts)):
        yield "/".join(parts[first:])


def _folders(root: str) -> list[str]:
    try:
        with os.scandir(root) as entries:
            return sorted(entry.path for entry in entries if entry.is_dir())
    except OSError:
        return []
