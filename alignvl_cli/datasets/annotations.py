"""Annotation files: Karpathy's splits (`dataset_coco.json`), COCO's captions (`captions_*.json`), and the caption lists
of Flickr8k and Flickr30k (`name.jpg#0<tab>caption`, `image_name| comment_number| comment`).
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignvl_cli.artifacts import file_sha256, read_json
from alignvl_cli.datasets.dataset import (
    UNSTORABLE,
    CaptionCleaner,
    Dataset,
    Item,
    image_folder,
    located,
    make_dataset,
    no_path,
)
from alignvl_cli.datasets.splits import split_name
from alignvl_cli.datasets.tables import recoding
from alignvl_cli.errors import DataError
from alignvl_cli.settings import DatasetFormat, DatasetOptions

KARPATHY, COCO = DatasetFormat.karpathy, DatasetFormat.coco


@dataclass(slots=True)
class _Reading:
    """One annotation file on its way to items."""

    path: Path
    document: Mapping[str, Any]
    root: str
    cleaner: CaptionCleaner = field(default_factory=CaptionCleaner)
    notes: list[str] = field(default_factory=list)

    def images(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Where each image stands, and its entry."""
        for number, entry in enumerate(self.entries("images"), start=1):
            yield f"image {number}", entry

    def entries(self, key: str) -> list[dict[str, Any]]:
        entries = self.document.get(key)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise self.error(f"`{key}` should be a list of objects")
        return entries

    def text(self, where: str, entry: Mapping[str, Any], key: str) -> str:
        """A text that must be there."""
        value = entry.get(key)
        if not isinstance(value, str):
            raise self.error(f"{where} has no text under `{key}`")
        return value

    def name(self, where: str, entry: Mapping[str, Any], key: str) -> str:
        """The path of an image, or a part of it."""
        value = self.text(where, entry, key)
        if not value or UNSTORABLE.search(value):
            raise self.error(f"{where} has {_shown(value)} under `{key}`, which is no file's name")
        if reason := no_path(value):
            raise self.error(f"{where} has {_shown(value)} under `{key}`: {reason}")
        return value

    def item(self, name: str, captions: list[str], split: str | None) -> Item:
        uri, source = located(self.root, name)
        return Item(name, uri, tuple(self.cleaner.clean(captions)), split, "", source)

    def error(self, problem: str) -> DataError:
        return DataError(f"{self.path}: {problem}")


def open_annotations(path: Path, options: DatasetOptions) -> Dataset:
    """The images that the file lists, those without captions too; its keys say of which kind it is.

    DataError for a file that is damaged, or of another kind than `--format` says.
    """
    document = read_json(path, "annotation file")
    kind = _kind_of(path, document)
    if options.format not in (None, kind):
        raise DataError(f"{path}: its keys are those of --format {kind}, not of --format {options.format}")
    reading = _Reading(path, document, image_folder(path, options.image_root))
    return make_dataset(
        path,
        _ITEMS[kind](reading),
        reading.cleaner,
        kind=kind,
        sha256=file_sha256(path),
        options={"image_root": reading.root},
        notes=reading.notes,
    )


def _kind_of(path: Path, document: Mapping[str, Any]) -> DatasetFormat:
    if "images" in document:
        return COCO if "annotations" in document else KARPATHY
    keys = ", ".join(map(ascii, list(document)[:5])) or "nothing"
    raise DataError(
        f"{path}: neither COCO captions (`images`, `annotations`) nor Karpathy's splits (`images` with `sentences`), "
        f"but {keys}; rows of images and captions are read from a list of objects, or a .jsonl file of one a line"
    )


def _karpathy_items(reading: _Reading) -> list[Item]:
    """`images`: filepath (a folder, may be absent), filename, split, sentences with `raw`. The id is the path."""
    items = []
    for where, entry in reading.images():
        name = reading.name(where, entry, "filename")
        if entry.get("filepath"):
            name = f"{reading.name(where, entry, 'filepath').rstrip('/')}/{name}"
        split = reading.name(where, entry, "split") if entry.get("split") is not None else None
        sentences = entry.get("sentences")
        if not isinstance(sentences, list) or not all(isinstance(sentence, dict) for sentence in sentences):
            raise reading.error(f"{where} ({name!a}) has no list of objects under `sentences`")
        captions = [reading.text(f"a sentence of {where}", sentence, "raw") for sentence in sentences]
        items.append(reading.item(name, captions, split_name(split) if split else None))
    return items


def _coco_items(reading: _Reading) -> list[Item]:
    """`images`: id, file_name. `annotations`: image_id, caption, in any order. The id is the file's name."""
    names: dict[str, str] = {}
    captions: dict[str, list[str]] = {}
    for where, entry in reading.images():
        key = _key(reading, where, entry, "id")
        if key in names:
            raise reading.error(f"{where} has id {entry['id']!r}, which another image has")
        names[key] = reading.name(where, entry, "file_name")
        captions[key] = []
    strays = 0
    for number, entry in enumerate(reading.entries("annotations"), start=1):
        where = f"annotation {number}"
        if "caption" not in entry and {"bbox", "category_id", "keypoints"} & entry.keys():
            raise reading.error(f"{where} has boxes and no caption; COCO's captions are in captions_*.json")
        caption = reading.text(where, entry, "caption")
        key = _key(reading, where, entry, "image_id")
        if key in captions:
            captions[key].append(caption)
        else:
            strays += 1
    if strays:
        reading.notes.append(f"{strays} captions are of images that the file does not list, and were left out")
    return [reading.item(name, captions[key], None) for key, name in names.items()]


def _key(reading: _Reading, where: str, entry: Mapping[str, Any], key: str) -> str:
    """An id as text: some files have `7` in one place and `"7"` in another."""
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise reading.error(f"{where} has no number or text under `{key}`")
    return str(value)


_ITEMS: dict[DatasetFormat, Callable[[_Reading], list[Item]]] = {KARPATHY: _karpathy_items, COCO: _coco_items}


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
        raise DataError(
            f"{path}: not UTF-8 text at byte {problem.start}, so no list of captions; {recoding(path, problem)}"
        ) from problem
    items = [
        Item(name, uri, tuple(texts), None, "", source)
        for name, texts in captions.items()
        for uri, source in [located(root, name)]
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
    if reason := no_path(name):
        raise DataError(f"{path}, line {number}: {_shown(name)}: {reason}")
    return name


def _shown(text: str) -> str:
    return ascii(text.rstrip("\r\n")[:60])


PARSERS: dict[DatasetFormat, Callable[[Path, Iterable[str]], Iterator[tuple[int, Parsed]]]] = {
    DatasetFormat.flickr_token: _token_lines,
    DatasetFormat.flickr_csv: _csv_lines,
}
