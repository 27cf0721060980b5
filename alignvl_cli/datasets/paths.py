"""Where the pictures lie that a dataset names, and why not one of them is there."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from alignvl_cli.datasets.dataset import Dataset, ImageSource, Item
from alignvl_cli.errors import DataError

ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://")
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
    """Uri and source of a picture as the data name it; relative paths start from `root`."""
    if address := ADDRESS.match(name):
        return name, ImageSource(Path(name), absent=_of_address(address["scheme"].lower()))
    if reason := no_path(name):
        return name[:LONGEST_NAME], ImageSource(Path(root), absent=reason)
    uri = os.path.join(root, name)
    return uri, ImageSource(Path(uri))


def _of_address(scheme: str) -> str:
    if scheme == "file":
        return "an address; write the path alone, without file://"
    return "an address, and nothing is fetched; download the pictures (img2dataset does) and give what it writes"


def require_pictures(dataset: Dataset) -> None:
    """DataError when not one of the files that the dataset names is there, which costs a look at the first if it is."""
    bad = []
    for item in dataset.items:
        if not item.source.absent and os.path.exists(item.source.path):
            return
        bad.append((item, item.source.absent or MISSING))
    raise DataError(nothing_readable(dataset, bad))


def nothing_readable(dataset: Dataset, bad: Sequence[tuple[Item, str]]) -> str:
    """What to say when no image can be read: the most frequent reason, an image of it, and what may help."""
    reason, count = Counter(reason for _, reason in bad).most_common(1)[0]
    item = next(item for item, why in bad if why == reason)
    often = "the first" if count == len(bad) else f"most often ({count})"
    said = f"none of the {len(bad)} images can be read; {often}, {item.uri}: {reason}"
    if item.source.absent or os.path.lexists(item.source.path):
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
