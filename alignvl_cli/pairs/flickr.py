"""Caption lists of Flickr8k and Flickr30k: `name.jpg#0<tab>caption`, and `image_name| comment_number| comment`."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from alignvl_cli.config import DatasetFormat, DatasetOptions
from alignvl_cli.errors import DataError
from alignvl_cli.pairs.captions import UNSTORABLE, CaptionCleaner
from alignvl_cli.pairs.items import Dataset, ImageSource, Item
from alignvl_cli.pairs.listing import image_folder, make_dataset
from alignvl_cli.provenance import file_sha256

TOKEN_LINE = re.compile(r"(?P<name>[^\t#]+)#(?P<number>[^\t]*?\d)\t(?P<caption>.*)")
"""Flickr8k numbers `#0`, other caption lists `#en0` or `#zh1`."""
CSV_HEADER = re.compile(r"\s*image(_name)?\s*\|\s*comment_number\s*\|\s*comment\s*")
CSV_LINE = re.compile(r"(?P<name>[^|]+)\|\s*(?P<number>\d+)\s*(?P<mark>\||(?=\s))(?P<caption>.*)")
"""The second separator may be missing, as it is in one line of the published file (2199200615.jpg, comment 4)."""

Parsed = tuple[str, str, bool]
"""An image, a caption of it, and whether the line had to be mended."""


def open_flickr(path: Path, options: DatasetOptions, *, kind: DatasetFormat) -> Dataset:
    """The images in the order of their first lines, each with the captions of all its lines; no image is opened.

    DataError with the number of the first line that is not of the format.
    """
    root = image_folder(path, options.image_root)
    cleaner = CaptionCleaner()
    captions: dict[str, list[str]] = {}
    mended = []
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as stream:
            for number, (name, caption, was_mended) in PARSERS[kind](path, stream):
                captions.setdefault(name, []).extend(cleaner.clean([caption]))
                if was_mended:
                    mended.append(number)
    except UnicodeDecodeError as problem:
        raise DataError(f"{path}: not UTF-8 text at byte {problem.start}, so no list of captions") from problem
    items = [
        Item(name, uri, tuple(texts), None, "", ImageSource(Path(uri)))
        for name, texts in captions.items()
        for uri in [os.path.join(root, name)]
    ]
    notes = [f"{path}, line {number}: read without its second separator `|`" for number in mended]
    return make_dataset(
        path, items, cleaner, kind=kind, sha256=file_sha256(path), options={"image_root": root}, notes=notes
    )


def is_token_line(line: str) -> bool:
    """Whether a file with this first line is a token file."""
    return TOKEN_LINE.fullmatch(line.rstrip("\r\n")) is not None


def is_csv_header(line: str) -> bool:
    """Whether a file with this first line is a `results.csv`."""
    return CSV_HEADER.fullmatch(line) is not None


def _token_lines(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, Parsed]]:
    for number, line in _written(lines, start=1):
        match = TOKEN_LINE.fullmatch(line)
        if match is None:
            raise DataError(f"{path}, line {number}: not of the form name.jpg#0<tab>caption: {_shown(line)}")
        yield number, (_name(path, number, match["name"]), match["caption"].strip(), False)


def _csv_lines(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, Parsed]]:
    lines = iter(lines)
    header = next(lines, "")
    if not is_csv_header(header):
        raise DataError(f"{path}: the first line is not image_name| comment_number| comment: {_shown(header)}")
    for number, line in _written(lines, start=2):
        match = CSV_LINE.fullmatch(line)
        if match is None:
            raise DataError(f"{path}, line {number}: not of the form name.jpg| 0| caption: {_shown(line)}")
        yield number, (_name(path, number, match["name"].strip()), match["caption"].strip(), not match["mark"])


def _written(lines: Iterable[str], start: int) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, without their ends, by number."""
    for number, line in enumerate(lines, start=start):
        if line.strip():
            yield number, line.rstrip("\r\n")


def _name(path: Path, number: int, name: str) -> str:
    if UNSTORABLE.search(name):
        raise DataError(f"{path}, line {number}: {_shown(name)} is no file's name")
    return name


def _shown(text: str) -> str:
    return ascii(text.rstrip("\r\n")[:60])


PARSERS: dict[DatasetFormat, Callable[[Path, Iterable[str]], Iterator[tuple[int, Parsed]]]] = {
    DatasetFormat.flickr_token: _token_lines,
    DatasetFormat.flickr_csv: _csv_lines,
}
