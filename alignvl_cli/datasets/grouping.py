"""Rows become images: those of one image are put together, and what contradicts is refused.

Columns: `image` (a path), `captions` (a list), `caption` (one a row) or `caption_0`, `caption_1` and so on, and
optionally `id`, `split`, `label`.
"""

import difflib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from alignvl_cli.artifacts import file_sha256
from alignvl_cli.datasets.dataset import (
    UNSTORABLE,
    CaptionCleaner,
    Dataset,
    ImageSource,
    Item,
    image_folder,
    located,
    make_dataset,
    no_path,
    spelled,
)
from alignvl_cli.datasets.splits import split_name
from alignvl_cli.datasets.tables import Row, RowReader, caption_columns, may_hold_captions
from alignvl_cli.errors import DataError
from alignvl_cli.settings import DatasetOptions

LIST_OF_TEXTS = re.compile(r"""\s*\[\s*["'].*["']\s*\]\s*""", re.DOTALL)
"""As Python prints it, or JSON with a slip in it; `[laughs] a man` is a caption."""


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
    absent: str = ""
    """Why the row names no picture."""


@dataclass(slots=True)
class Grouping:
    """Groups rows by image and refuses what contradicts.

    A row with a list of captions is a whole image; rows with single captions are grouped by image.
    """

    path: Path
    options: DatasetOptions
    drafts: dict[str, _Draft] = field(default_factory=dict)
    """By id, in order of appearance."""
    grouped: dict[str, str] = field(default_factory=dict)
    """Id of each image that is spread over rows of single captions."""
    columns: Sequence[str] = ()
    """Of the first row."""
    empty: int = 0
    """Rows in which nothing stands."""
    absent: list[str] = field(default_factory=list)
    """Where the rows without a picture stand."""
    layouts: dict[tuple[str, ...], list[list[str]]] = field(default_factory=dict)
    """What `caption_columns` says of the columns of a row."""
    cleaner: CaptionCleaner = field(default_factory=CaptionCleaner)

    def wants(self, column: str) -> bool:
        """Whether the column may be read."""
        named = {self.options.image_column, self.options.id_column, "split", "label"}
        return column in named or may_hold_captions(self.options.caption_column, column)

    def captions_of(self, row: Row) -> tuple[dict[str, Any], bool]:
        """The cells with captions, by column, and whether they are all that there are of the row's picture."""
        key = tuple(row.columns)
        if key not in self.layouts:
            self.layouts[key] = caption_columns(self.options.caption_column, key)
        cells: dict[str, Any] = {}
        for columns in self.layouts[key]:
            cells = {name: listed(row.values.get(name), of_anything=name == "captions") for name in columns}
            if any(not _is_blank(value) for value in cells.values()):
                break
        return cells, len(cells) > 1 or any(isinstance(value, list) for value in cells.values())

    def notes(self) -> list[str]:
        """What the user should know of rows that are no pictures with captions."""
        notes = []
        if self.empty:
            notes.append(f"{self.empty} rows are empty, and were left out")
        if self.absent:
            notes.append(
                f"{len(self.absent)} rows have no picture in column {self.options.image_column!r} (the first: "
                f"{self.absent[0]}): they count as pictures that cannot be read"
            )
        return notes

    def items(self, locate: Callable[[str], tuple[str, ImageSource]]) -> list[Item]:
        """The images in the order of their first rows; `locate` knows uri and source of each image as written."""
        if not self.drafts:
            raise DataError(
                f"{self.path}: this manifest is empty; it should have a row with an image and a caption at least"
            )
        if all(draft.absent for draft in self.drafts.values()):
            raise self._no_picture(next(iter(self.drafts.values())))
        if not any(draft.captions for draft in self.drafts.values()):
            asked = self.options.caption_column
            names = [asked] if asked else ["captions", "caption"]
            others = [column for column in self.columns if column not in names]
            raise DataError(
                f"{self.path}: not one caption for {len(self.drafts)} images in column "
                f"{' or '.join(map(repr, names))} ({_columns_found(self.columns)}); "
                f"{_advice('--caption-column', names[-1], others)}"
            )
        return [
            Item(identity, uri, tuple(draft.captions), draft.split, draft.label, source)
            for identity, draft in self.drafts.items()
            for uri, source in [
                (draft.image, ImageSource(self.path, absent=draft.absent)) if draft.absent else locate(draft.image)
            ]
        ]

    def add(self, row: Row) -> None:
        if not self.columns:
            self.columns = row.columns
            self._require_known_split()
        if all(_is_blank(value) for value in row.values.values()) and row.values:
            self.empty += 1
            return
        image, absent = self._image(row)
        identity = (self.options.id_column and self._name(row, self.options.id_column)) or image
        split = (self._name(row, "split") or "").strip()
        captions, whole = self._captions(row)
        found = _Draft(
            image,
            row.where,
            whole,
            split_name(split) if split else None,
            self._name(row, "label") or "",
            captions,
            absent,
        )
        if not whole and self.grouped.setdefault(image, identity) != identity:
            raise self._error(
                row,
                f"image {image!r} has id {identity!r} here and {self.grouped[image]!r} before; rows of one image need "
                "one id (leave the column out with --id-column '' to group them by image, or give `captions` as a list "
                "to keep them apart)",
            )
        known = self.drafts.setdefault(identity, found)
        if known is not found:
            self._merge(row, identity, known, found)

    def _require_known_split(self) -> None:
        """DataError for a column that is called `Split`: passed over, it would have the test set drawn anew."""
        for column in self.columns:
            if column != "split" and column.strip().casefold() == "split" and "split" not in self.columns:
                raise DataError(f"{self.path}: column {column!r}: splits are read from 'split'; rename it")

    def _merge(self, row: Row, identity: str, known: _Draft, more: _Draft) -> None:
        if known.image == more.image == identity and (known.whole or more.whole):
            raise self._error(
                row,
                f"image {identity!r} stands in {known.where} already, and one of the two has a list of captions: "
                "give an image one row with all its captions and one split, or different ids",
            )
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

    def _image(self, row: Row) -> tuple[str, str]:
        """The image as the row names it; or where the row stands, and why it names none."""
        image = self._name(row, self.options.image_column)
        reason = "the row has no picture" if image is None else no_path(image)
        if image is not None and not reason:
            return image, ""
        if image is None:
            self.absent.append(row.where)
        return f"{self.path.name}, {row.where}", reason

    def _no_picture(self, first: _Draft) -> DataError:
        """Not one row names a picture."""
        column = self.options.image_column
        if column in self.columns:
            reason = f"not one of {len(self.drafts)} rows has a picture: {first.absent}"
            return DataError(f"{self.path}: column {column!r}: {reason} ({first.where})")
        advice = _advice("--image-column", column, self.columns)
        return DataError(f"{self.path}, {first.where}: no column {column!r} ({_columns_found(self.columns)}); {advice}")

    def _captions(self, row: Row) -> tuple[list[str], bool]:
        """The row's captions, cleaned, without the blank ones; and whether they came as a list."""
        cells, whole = self.captions_of(row)
        texts = []
        for column, value in cells.items():
            if isinstance(value, str) and LIST_OF_TEXTS.fullmatch(value):
                raise self._error(
                    row,
                    f"column {column!r} holds a list that is not JSON: {_shown(value)}; write lists of captions as "
                    'JSON, like ["a red kite", "a kite"] (json.dumps in Python)',
                )
            for text in [one for one in (value if isinstance(value, list) else [value]) if not _is_blank(one)]:
                if not isinstance(text, str):
                    raise self._error(
                        row,
                        f"a caption in column {column!r} is {_shown(text)}, not text; name the column of the texts "
                        "with --caption-column, or write it as text",
                    )
                texts.append(text)
        return self.cleaner.clean(texts), whole

    def _name(self, row: Row, column: str) -> str | None:
        """Text of a column where nothing may be lost; numbers are spelled out; None for an empty cell."""
        value = spelled(row.values.get(column))
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            remedy = "; leave the column out with --id-column ''" if column == self.options.id_column else ""
            raise self._error(row, f"column {column!r} holds {_shown(value)}, which is not text{remedy}")
        if UNSTORABLE.search(value):
            raise self._error(
                row, f"column {column!r} holds {_shown(value)}, with a NUL or half a surrogate pair in it"
            )
        return value

    def _error(self, row: Row, problem: str) -> DataError:
        return DataError(f"{self.path}, {row.where}: {problem}")


def listed(value: Any, *, of_anything: bool = False) -> Any:
    """`value`, or the list with texts that it spells out in JSON, as tables do that have no lists. `[1]` is a text
    itself, unless a list of `of_anything` is wanted."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    is_list = isinstance(found, list) and (of_anything or not found or any(isinstance(text, str) for text in found))
    return found if is_list else value


def _is_blank(value: Any) -> bool:
    """Whether a cell says nothing, NaN among them, which is what becomes of an empty cell among numbers."""
    return value is None or value == "" or value == [] or value != value


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


def open_manifest(path: Path, options: DatasetOptions, *, kind: str, read_rows: RowReader) -> Dataset:
    """The images that the manifest names, in the order of their first rows; no image is opened.

    DataError for a manifest that is empty, damaged, without images or captions, or ambiguous.
    """
    root = image_folder(path, options.image_root)
    grouping = Grouping(path, options)
    for row in read_rows(path, grouping.wants):
        grouping.add(row)
    return make_dataset(
        path,
        grouping.items(partial(located, root)),
        grouping.cleaner,
        kind=kind,
        sha256=file_sha256(path),
        options={
            "image_root": root,
            "image_column": options.image_column,
            "caption_column": options.caption_column,
            **id_record(options),
        },
        notes=grouping.notes(),
    )


def id_record(options: DatasetOptions) -> dict[str, str]:
    """`--id-column` in the record of a dataset, where it is not the usual one."""
    return {} if options.id_column == "id" else {"id_column": options.id_column}
