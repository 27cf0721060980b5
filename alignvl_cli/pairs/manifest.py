"""The user's own data: rows of a manifest become images with their captions.

Columns: `image` (a path), `captions` (a list) or `caption` (one a row), and optionally `id`, `split`,
`label`. A row with a list is a whole image; rows with single captions are grouped by image.
"""

import difflib
import json
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignvl_cli.config import DatasetOptions
from alignvl_cli.errors import DataError
from alignvl_cli.pairs.items import Dataset, ImageSource, Item
from alignvl_cli.pairs.splits import split_name
from alignvl_cli.pairs.tables import Row, RowReader
from alignvl_cli.provenance import file_sha256

UNSTORABLE = re.compile("[\0\ud800-\udfff]")
"""NUL and lone surrogates: no UTF-8 text in a store can hold them."""
REPLACEMENT = "\ufffd"


def open_manifest(path: Path, options: DatasetOptions, *, kind: str, read_rows: RowReader) -> Dataset:
    """The images that the manifest names, in the order of their first rows; no image is opened.

    DataError for a manifest that is empty, damaged, without images or captions, or ambiguous.
    """
    root = os.path.abspath(options.image_root or path.parent)
    if not os.path.isdir(root):
        raise DataError(f"--image-root {options.image_root}: no such folder")
    gathered = _Gathering(path, options)
    wanted = {options.image_column, options.caption_column or "", "captions", "caption", "id", "split", "label"}
    columns: Sequence[str] = ()
    for row in read_rows(path, frozenset(wanted)):
        columns = columns or row.columns
        gathered.add(row)
    if not gathered.drafts:
        raise DataError(f"{path}: this manifest is empty; it should have a row with an image and a caption at least")
    if not any(draft.captions for draft in gathered.drafts.values()):
        names = [options.caption_column] if options.caption_column else ["captions", "caption"]
        raise DataError(
            f"{path}: not one caption for {len(gathered.drafts)} images in column {' or '.join(map(repr, names))} "
            f"({_columns_found(columns)}); {_advice('--caption-column', names[-1], columns)}"
        )
    return Dataset(
        name=_slug(path.stem),
        record={
            "format": kind,
            "sha256": file_sha256(path),
            "image_root": root,
            "image_column": options.image_column,
            "caption_column": options.caption_column,
        },
        items=[draft.item(identity, root) for identity, draft in gathered.drafts.items()],
        cleaned_captions=gathered.cleaned,
        blank_captions=gathered.blank,
    )


@dataclass(slots=True)
class _Draft:
    """An image that may still get captions from rows to come."""

    image: str
    where: str
    whole: bool
    """Its one row held a list of captions: no other row may add to it."""
    split: str | None
    label: str
    captions: list[str]

    def item(self, identity: str, root: str) -> Item:
        uri = os.path.join(root, self.image)
        return Item(identity, uri, tuple(self.captions), self.split, self.label, ImageSource(Path(uri)))


@dataclass(slots=True)
class _Gathering:
    """Groups rows by image and refuses what contradicts."""

    path: Path
    options: DatasetOptions
    drafts: dict[str, _Draft] = field(default_factory=dict)
    """By id, in order of appearance."""
    grouped: dict[str, str] = field(default_factory=dict)
    """Id of each image that is spread over rows of single captions."""
    cleaned: int = 0
    blank: int = 0

    def add(self, row: Row) -> None:
        image = self._image(row)
        identity = self._name(row, "id") or image
        split = (self._name(row, "split") or "").strip()
        captions, whole = self._captions(row)
        found = _Draft(
            image, row.where, whole, split_name(split) if split else None, self._name(row, "label") or "", captions
        )
        if not whole and self.grouped.setdefault(image, identity) != identity:
            raise self._error(
                row,
                f"image {image!r} has id {identity!r} here and {self.grouped[image]!r} before; rows of one image need "
                "one id (drop the id column to group them by image, or give `captions` as a list to keep them apart)",
            )
        known = self.drafts.setdefault(identity, found)
        if known is not found:
            self._merge(row, identity, known, found)

    def _merge(self, row: Row, identity: str, known: _Draft, more: _Draft) -> None:
        if known.whole or more.whole or known.image != more.image:
            raise self._error(
                row,
                f"duplicate id {identity!r}, already used in {known.where} "
                f"(image {known.image!r} there, {more.image!r} here); ids must be unique",
            )
        if known.split and more.split and known.split != more.split:
            raise self._error(
                row, f"image {known.image!r} is in split {more.split!r} here and in {known.split!r} before"
            )
        if known.label and more.label and known.label != more.label:
            raise self._error(row, f"image {known.image!r} has label {more.label!r} here and {known.label!r} before")
        known.split = known.split or more.split
        known.label = known.label or more.label
        known.captions += more.captions

    def _image(self, row: Row) -> str:
        column = self.options.image_column
        image = self._name(row, column)
        if image is not None:
            return image
        if column in row.columns:
            raise self._error(row, f"nothing in column {column!r}, which should hold the path of an image")
        advice = _advice("--image-column", column, row.columns)
        raise self._error(row, f"no column {column!r} ({_columns_found(row.columns)}); {advice}")

    def _captions(self, row: Row) -> tuple[list[str], bool]:
        """The row's captions, cleaned, without the blank ones; and whether they came as a list."""
        several = row.values.get("captions") not in (None, "")
        column = self.options.caption_column or ("captions" if several else "caption")
        value = row.values.get(column)
        if column == "captions" and isinstance(value, str) and value.startswith("["):
            value = self._list_in_text(row, value)
        whole = isinstance(value, list)
        captions = []
        for text in value if isinstance(value, list) else [value] if value is not None else []:
            if not isinstance(text, str):
                raise self._error(row, f"a caption in column {column!r} is {_shown(text)}, not text")
            caption = UNSTORABLE.sub(REPLACEMENT, text)
            self.cleaned += caption != text
            if caption.strip():
                captions.append(caption)
            elif text:
                self.blank += 1
        return captions, whole

    def _list_in_text(self, row: Row, text: str) -> Any:
        """`captions` of a format that has no lists, as a JSON list."""
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as problem:
            raise self._error(row, f"`captions` begins like a list but is no JSON list: {_shown(text)}") from problem

    def _name(self, row: Row, column: str) -> str | None:
        """Text of a column where nothing may be lost; whole numbers are spelled out; None for an empty cell."""
        value = row.values.get(column)
        if value is None or value == "":
            return None
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            raise self._error(row, f"column {column!r} holds {_shown(value)}, which is not text")
        if UNSTORABLE.search(value):
            raise self._error(
                row, f"column {column!r} holds {_shown(value)}, with a NUL or half a surrogate pair in it"
            )
        return value

    def _error(self, row: Row, problem: str) -> DataError:
        return DataError(f"{self.path}, {row.where}: {problem}")


def _shown(value: object) -> str:
    """A value in an error message: printable, and not the whole of a long one."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _columns_found(columns: Sequence[str]) -> str:
    return "columns: " + (", ".join(map(repr, columns)) or "none")


def _advice(flag: str, wanted: str, columns: Sequence[str]) -> str:
    folded = {name.casefold(): name for name in columns}
    nearest = difflib.get_close_matches(wanted.casefold(), folded, n=1)
    return f"did you mean {flag} {folded[nearest[0]]!r}?" if nearest else f"name the column with {flag}"


def _slug(name: str) -> str:
    """Letters, digits, `.`, `_` and `-` of a file's name."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9._-]+", "-", plain).strip("-.") or "data"
