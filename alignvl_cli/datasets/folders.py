"""A folder of pictures: captions in sidecar files of the same name, as img2dataset has them, or one metadata file, as
Hugging Face's imagefolder has it. Tars hold the same sidecars.

A `.txt` or `.caption` holds one caption a line; blank lines do not count. A `.json` holds an object with `captions`
(a list) or `caption`, and optionally `split` and `label`; or a list of captions. Where a picture has several, the
first of these speaks and the others are not read, unless a column of captions was asked for.
"""

import io
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alignvl_cli.datasets.dataset import (
    UNSTORABLE,
    CaptionCleaner,
    Dataset,
    ImageSource,
    Item,
    listing_sha256,
    make_dataset,
    slug,
    spelled,
    storable,
)
from alignvl_cli.datasets.grouping import open_manifest
from alignvl_cli.datasets.splits import USUAL, split_name
from alignvl_cli.datasets.tables import UTF16_MARKS, RowReader, caption_columns, csv_rows, jsonl_rows, parquet_rows
from alignvl_cli.errors import DataError
from alignvl_cli.settings import DatasetFormat, DatasetOptions

IMAGE_SUFFIXES = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "dib", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "tga"}
    | {"jp2", "j2k", "avif", "qoi"}
)
"""Lower case, without the dot."""
JSON_SUFFIX = "json"
TEXT_SUFFIXES = ("txt", "caption")
SIDECAR_SUFFIXES = frozenset({*TEXT_SUFFIXES, JSON_SUFFIX})
UNREAD_SUFFIXES = frozenset({"heic", "heif", "hif", "jxl", "svg", "psd", "eps", "exr", "hdr", "ico", "dng", "cr2"}) | {
    *("cr3", "nef", "arw", "orf", "rw2", "raf", "dcm", "pdf", "jxr", "jpf")
}
"""Of pictures that are not read, so that they are named and not passed over."""
METADATA: dict[str, tuple[str, RowReader]] = {
    "metadata.csv": ("csv", csv_rows),
    "metadata.jsonl": ("jsonl", jsonl_rows),
    "metadata.parquet": ("parquet", parquet_rows),
}
"""Captions of a whole folder in Hugging Face's layout, whose columns are FILE_NAME and usually TEXT."""
FILE_NAME, TEXT = "file_name", "text"
MOST_BYTES = 16 << 20
"""Of a sidecar: more is none."""
SHOWN = 3
SHOWN_CHARACTERS = 60


class UnreadableSidecar(Exception):
    """A sidecar without usable captions; the text is the short reason."""


@dataclass(slots=True)
class _Odd:
    """Sidecars that are not as they should be: how many, and the first few with the reason."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, name: str, reason: object) -> None:
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(f"{name}: {reason}")

    def __str__(self) -> str:
        return "; ".join(self.first) + ("; ..." if self.count > len(self.first) else "")


@dataclass(slots=True)
class SidecarReader:
    """Makes items of pictures and what lies beside them, and counts what could not be used.

    One damaged sidecar among a million does not end the reading: its picture has no captions then. Nor does an odd
    label, which is dropped; an odd split does, since the picture would go where it was kept out of.
    """

    options: DatasetOptions
    cleaner: CaptionCleaner = field(default_factory=CaptionCleaner)
    bare: int = 0
    """Pictures with no sidecar."""
    unreadable: _Odd = field(default_factory=_Odd)
    labels: _Odd = field(default_factory=_Odd)
    """Labels that are not text."""
    keyless: _Odd = field(default_factory=_Odd)
    """Objects without a key for captions."""

    def item(
        self, identity: str, uri: str, picture: ImageSource, sidecars: Mapping[str, tuple[str, ImageSource]]
    ) -> Item:
        """`sidecars` has the name and place of each, by lower-case suffix. DataError for a split that is no text."""
        captions: list[str] = []
        split, label = None, ""
        suffix = self._speaking(sidecars)
        if suffix is None:
            self.bare += 1
        else:
            name, source = sidecars[suffix]
            try:
                captions, declared, labelled = self._read(suffix, name, source)
            except UnreadableSidecar as problem:
                self.unreadable.add(name, problem)
            else:
                split, label = _split(uri, name, declared), self._label(name, labelled)
        return Item(identity, uri, tuple(self.cleaner.clean(captions)), split, label, picture)

    def notes(self) -> list[str]:
        """What the user should know of pictures without captions or labels."""
        notes = []
        if self.bare:
            notes.append(f"{self.bare} images have no .txt or .json beside them: kept, without captions")
        if self.keyless.count:
            asked = self.options.caption_column
            key = f"key {asked!r}" if asked else "key 'captions' or 'caption', and --caption-column names another"
            notes.append(f"{self.keyless.count} images have a .json without a {key} ({self.keyless})")
        if self.unreadable.count:
            notes.append(f"{self.unreadable.count} images have a sidecar that cannot be used ({self.unreadable})")
        if self.labels.count:
            notes.append(
                f"{self.labels.count} images have a label that is not text, and are read without it ({self.labels})"
            )
        return notes

    def _speaking(self, sidecars: Mapping[str, Any]) -> str | None:
        """The suffix of the sidecar that counts."""
        order = (JSON_SUFFIX,) if self.options.caption_column else (*TEXT_SUFFIXES, JSON_SUFFIX)
        return next((suffix for suffix in order if suffix in sidecars), None)

    def _read(self, suffix: str, name: str, source: ImageSource) -> tuple[list[str], Any, Any]:
        """Captions, and split and label as they stand there."""
        try:
            data = source.read(at_most=MOST_BYTES)
            text = data.decode("utf-8-sig")
        except OSError as problem:
            raise UnreadableSidecar(problem.strerror or str(problem)) from problem
        except UnicodeDecodeError as problem:
            kind = " but UTF-16" if data.startswith(UTF16_MARKS) and len(data) > len(UTF16_MARKS[0]) else ""
            raise UnreadableSidecar(f"not UTF-8 text at byte {problem.start}{kind}") from problem
        if suffix in TEXT_SUFFIXES:
            return [line.strip() for line in io.StringIO(text, newline=None)], None, None
        return self._of_json(name, text)

    def _of_json(self, name: str, text: str) -> tuple[list[str], Any, Any]:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as problem:
            raise UnreadableSidecar("not valid JSON") from problem
        if isinstance(value, list) and value and all(isinstance(caption, str) for caption in value):
            return value, None, None
        if not isinstance(value, dict):
            raise UnreadableSidecar("no JSON object")
        groups = caption_columns(self.options.caption_column, value)
        if not any(key in value for columns in groups for key in columns):
            self.keyless.add(name, "keys " + (", ".join(_shown(key) for key in list(value)[:SHOWN]) or "none"))
        captions: list[str] = []
        for column in next((some for some in groups if any(value.get(key) not in (None, "", []) for key in some)), []):
            found = value.get(column)
            texts = [found] if isinstance(found, str) else [] if found is None else found
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise UnreadableSidecar(f"{column!r} is neither text nor a list of texts")
            captions += texts
        return captions, spelled(value.get("split")), spelled(value.get("label"))

    def _label(self, name: str, found: Any) -> str:
        if found is None or _is_storable(found):
            return found or ""
        self.labels.add(name, _shown(found))
        return ""


def _split(uri: str, name: str, found: Any) -> str | None:
    if found is not None and not _is_storable(found):
        raise DataError(
            f"{uri}: {name} has {_shown(found)} under 'split', not the name of a split; write one like \"train\", or "
            "leave the key out"
        )
    return split_name(found) if found and found.strip() else None


def pairing_name(stem: str) -> str:
    """`stem` as it is compared with others (NFC): macOS may write a letter and its accent as two characters."""
    return unicodedata.normalize("NFC", stem)


def _is_storable(value: object) -> bool:
    return isinstance(value, str) and not UNSTORABLE.search(value)


def _shown(value: object) -> str:
    return ascii(value)[:SHOWN_CHARACTERS]


def open_folder(path: Path, options: DatasetOptions) -> Dataset:
    """The pictures in `path` and then in the folders below it, sorted by name; hidden ones are passed over.

    A picture and a sidecar belong together when their paths are equal up to the last dot; suffixes may
    be in upper case. The id is the path from `path` on. Folders that are links are not followed.
    DataError when there is no picture, no pair, or when two pictures share a stem: whose the captions
    are would be a guess.
    """
    if not path.is_dir():
        raise DataError(f"{path}: not a folder")
    root = os.path.abspath(path)
    pictures: dict[str, str] = {}
    sidecars: dict[str, dict[str, tuple[str, ImageSource]]] = {}
    unread = Unread()
    for name, stem, suffix in _files(root):
        if suffix in IMAGE_SUFFIXES:
            if stem in pictures:
                raise DataError(f"{path}: {pictures[stem]} and {name} share the stem {stem!r}; rename one of them")
            pictures[stem] = name
        elif suffix in SIDECAR_SUFFIXES:
            beside = sidecars.setdefault(stem, {})
            if suffix in beside:
                raise DataError(f"{path}: {beside[suffix][0]} and {name} differ in case alone; rename one of them")
            beside[suffix] = (name, ImageSource(Path(root, name)))
        else:
            unread.add(stem, suffix)
    if not pictures:
        raise DataError(
            f"{path}: no picture in this folder or below ({', '.join(sorted(IMAGE_SUFFIXES))})"
            + "".join(f"; {note}" for note in unread.notes())
        )
    metadata = next((name for name in METADATA if os.path.isfile(os.path.join(root, name))), None)
    if metadata and not pictures.keys() & sidecars.keys():
        return _open_metadata(Path(root, metadata), options, len(pictures), unread.notes())
    if not pictures.keys() & sidecars.keys():
        raise DataError(f"{path}: {_no_pair(pictures, sidecars)}")
    reader = SidecarReader(options)
    items = [
        reader.item(
            storable(name), storable(os.path.join(root, name)), ImageSource(Path(root, name)), sidecars.get(stem, {})
        )
        for stem, name in pictures.items()
    ]
    strays = len(sidecars.keys() - pictures.keys() - unread.stems)
    items, split_notes = split_by_folders(items)
    if metadata:
        split_notes.append(f"{metadata} is not read, since pictures have sidecars of their own; remove one kind")
    notes = reader.notes() + unread.notes() + split_notes
    if strays:
        notes.append(f"{strays} .txt or .json files have no picture beside them, and were left out")
    return make_dataset(
        path,
        items,
        reader.cleaner,
        kind=DatasetFormat.folder,
        sha256=listing_sha256(items),
        name=os.path.basename(root),
        options={"image_root": root, "caption_column": options.caption_column},
        notes=notes,
    )


def split_by_folders(items: list[Item]) -> tuple[list[Item], list[str]]:
    """The items with the splits that their folders say, where all lie in folders that are called like several of the
    usual splits (`train`, `test`) and none declares another; and a note."""
    folders = [split_name(item.id.partition("/")[0]) if "/" in item.id else "" for item in items]
    if any(item.split for item in items) or not {*folders} <= {*USUAL} or len({*folders}) < 2:
        return items, []
    found = [replace(item, split=folder) for item, folder in zip(items, folders, strict=True)]
    return found, [f"the folders are the splits: {', '.join(sorted({*folders}))}"]


@dataclass(slots=True)
class Unread:
    """Files that are pictures of kinds that are not read."""

    stems: set[str] = field(default_factory=set)
    suffixes: Counter[str] = field(default_factory=Counter)

    def add(self, stem: str, suffix: str) -> None:
        """Count the file if it is one."""
        if suffix in UNREAD_SUFFIXES:
            self.stems.add(stem)
            self.suffixes[suffix] += 1

    def notes(self) -> list[str]:
        """How many of which kinds, and what to do."""
        if not self.suffixes:
            return []
        kinds = ", ".join(f"{count} .{suffix}" for suffix, count in self.suffixes.most_common())
        return [f"pictures of kinds that are not read, and were left out: {kinds}; convert them to JPEG or PNG"]


def _open_metadata(path: Path, options: DatasetOptions, pictures: int, notes: list[str]) -> Dataset:
    """The pictures that a metadata file names."""
    kind, read_rows = METADATA[path.name]
    columns = next((list(row.columns) for row in read_rows(path, lambda column: True)), [])
    image = FILE_NAME if FILE_NAME in columns else options.image_column
    is_text = options.caption_column is None and not any(
        name in columns for some in caption_columns(None, columns) for name in some
    )
    caption = TEXT if is_text and TEXT in columns else options.caption_column
    dataset = open_manifest(
        path, replace(options, image_column=image, caption_column=caption), kind=kind, read_rows=read_rows
    )
    said = f"the captions are those of {path.name}, which names {len(dataset.items)} of the {pictures} pictures here"
    items, split_notes = split_by_folders([*dataset.items])
    return replace(
        dataset, items=tuple(items), name=slug(path.parent.name), notes=(*dataset.notes, said, *notes, *split_notes)
    )


def _files(root: str) -> Iterator[tuple[str, str, str]]:
    """Path from `root` on, the same without its suffix as it pairs, and the lower-case suffix, of each file below
    `root`."""

    def fail(problem: OSError) -> None:
        raise problem

    for folder, below, files in os.walk(root, onerror=fail):
        below[:] = sorted(name for name in below if not name.startswith("."))
        inner = os.path.relpath(folder, root)
        for file in sorted(files):
            name = file if inner == "." else f"{inner}/{file}"
            stem, dot, suffix = name.rpartition(".")
            if dot and not file.startswith("."):
                yield name, pairing_name(stem), suffix.lower()


def _no_pair(pictures: dict[str, str], sidecars: dict[str, dict[str, tuple[str, ImageSource]]]) -> str:
    picture = next(iter(pictures.values()))
    if not sidecars:
        return (
            f"{len(pictures)} pictures and not one .txt or .json file; beside {picture} there should be one of its "
            f"stem, or a list in one file ({', '.join(METADATA)}) in the folder"
        )
    name, _ = next(iter(next(iter(sidecars.values())).values()))
    return (
        f"not one of {len(pictures)} pictures has a sidecar: a picture like {picture} and a file like {name} "
        "belong together when they lie in one folder and are named alike up to the last dot"
    )
