"""Hugging Face datasets: saved with `save_to_disk`, folders or files of Parquet, and ids of the Hub (`hf:org/name`).

The library `datasets` (extra `data`) finds, downloads and converts; pictures are then read in place
from its Arrow files, undecoded: the files are uncompressed streams, so that the bytes of each picture are found by a
plain seek. It runs no code of a dataset.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from alignvl_cli.datasets.dataset import (
    Dataset,
    ImageSource,
    image_folder,
    listing_sha256,
    located,
    make_dataset,
    storable,
)
from alignvl_cli.datasets.formats import HUB, is_saved
from alignvl_cli.datasets.grouping import Grouping, id_record
from alignvl_cli.datasets.splits import TEST, TRAIN, VAL, split_name
from alignvl_cli.datasets.tables import Row
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.remote import is_url
from alignvl_cli.settings import DatasetFormat, DatasetOptions

HUB_ID = re.compile(r"hf:(?P<id>[\w.-]+(/[\w.-]+)?)(:(?P<configuration>[\w.-]+))?(@(?P<revision>[\w./-]+))?")


def open_huggingface(path: Path, options: DatasetOptions, files: Mapping[str, Path] | None = None) -> Dataset:
    """The pictures of all splits in the order of the data; or of the Parquet `files` by name, in place of what is at
    `path`.

    A column `split` says the split, else the dataset's own splits do, unless `train` is the only one,
    which is how undivided data look there. The id is the column `id`, else the picture's file name,
    else its row; with several splits it begins with the split. Rows with single captions are one image
    when their pictures have equal bytes.

    UsageError when the library is not installed; DataError for a dataset that cannot be had or has no
    such columns.
    """
    if options.image_root:
        image_folder(path, options.image_root)
    splits = _load(str(path), files or {})
    if list(splits) == [TRAIN]:
        splits = {"": splits[TRAIN]}
    reading = _Reading(path, options)
    for split, data in splits.items():
        for row in reading.rows(split, data, prefix=f"{split}/" if len(splits) > 1 else ""):
            reading.grouping.add(row)
    items = reading.grouping.items(reading.places.__getitem__)
    return make_dataset(
        path,
        items,
        reading.grouping.cleaner,
        kind=DatasetFormat.huggingface,
        sha256=listing_sha256(items),
        name=str(path).removeprefix(HUB) if str(path).startswith(HUB) else path.resolve().name,
        options={
            "image_root": options.image_root and str(options.image_root),
            "image_column": options.image_column,
            "caption_column": options.caption_column,
            **id_record(options),
        },
        notes=reading.grouping.notes(),
    )


@dataclass(slots=True)
class _Reading:
    """Turns rows with pictures in them into rows that name pictures, and remembers where each lies."""

    path: Path
    options: DatasetOptions
    places: dict[str, tuple[str, ImageSource]] = field(default_factory=dict)
    """Uri and source of each picture, by the name that it has here."""
    singles: dict[tuple[str, str, int], list[tuple[str, Any, Any]]] = field(default_factory=dict)
    """Pictures in rows of single captions, by split, file name and length: name, content, `id` of the first row."""
    grouping: Grouping = field(init=False)

    def __post_init__(self) -> None:
        self.grouping = Grouping(self.path, self.options)

    def rows(self, split: str, data: Any, prefix: str) -> Iterator[Row]:
        """The rows of one split, each with the name of its picture. DataError when the column holds none."""
        column = self.options.image_column
        features = data.features
        if column not in features:
            yield Row("row 1", {}, list(features))  # for the error that names the columns
            return
        self._refuse_other_type(features.arrow_schema)
        wanted = [name for name in features if self.grouping.wants(name) and name != column]
        number = 0
        for file in data.cache_files:
            for batch in read_batches(Path(file["filename"]), column):
                rest = batch.columns.select(wanted).to_pylist() or [{} for _ in batch.pictures]
                for picture, values in zip(batch.pictures, rest, strict=True):
                    number += 1
                    values = _plain(values, features) | ({} if values.get("split") or not split else {"split": split})
                    row = Row(f"row {number}" + (f" of {split}" if split else ""), values, list(features))
                    values[column] = self._name(picture, row, values, prefix, number)
                    yield row
        if number != len(data):
            raise DataError(f"{self.path}: {number} rows in its Arrow files, and it should have {len(data)}")

    def _refuse_other_type(self, schema: pa.Schema) -> None:
        column = self.options.image_column
        kind = schema.field(column).type
        if embeds(kind) or names_files(kind):
            return
        others = [field.name for field in schema if embeds(field.type)]
        advice = f"; give --image-column {others[0]!r}" if others else ""
        raise DataError(
            f"{self.path}: column {column!r} is of type {str(kind)[:SHOWN]}, and one picture a row is wanted there: "
            f"bytes (binary), an Image() of the library `datasets`, or the path of a file{advice}"
        )

    def _name(self, picture: Any, row: Row, values: dict[str, Any], prefix: str, number: int) -> str | None:
        """The name of the picture here: that of an earlier row when it is the same one; None for an empty cell."""
        if picture.content is None:
            return None if not picture.path else self._elsewhere(picture.path)
        alike: list[tuple[str, Any, Any]] = []
        if not self.grouping.captions_of(row)[1]:
            alike = self.singles.setdefault((prefix, picture.path or "", picture.content.size), [])
            for name, content, identity in alike:
                if content.equals(picture.content):
                    values[self.options.id_column] = identity
                    return name
        name = prefix + storable(picture.path or str(number))
        while name in self.places:
            name = f"{name}#{number}"
        self.places[name] = (storable(f"{picture.source.path}#{number}"), picture.source)
        alike.append((name, picture.content, values.get(self.options.id_column)))
        return name

    def _elsewhere(self, path: str) -> str:
        """A picture in a file of its own; paths start from the dataset's folder unless `--image-root` says else."""
        root = str(self.options.image_root or (self.path.parent if self.path.is_file() else self.path))
        uri, source = located(root if is_url(root) else os.path.abspath(root), path)
        self.places[path] = (storable(uri), source)
        return path


def _plain(values: dict[str, Any], features: Mapping[str, Any]) -> dict[str, Any]:
    """Class numbers as their names; a split or label that is neither text nor a number is none."""
    for key, value in values.items():
        if isinstance(value, int) and hasattr(features[key], "int2str"):
            values[key] = features[key].int2str(value) if value >= 0 else None
        elif key in ("split", "label") and not isinstance(value, str | int | float):
            values[key] = None
    return values


def _load(spec: str, files: Mapping[str, Path]) -> dict[str, Any]:
    """The splits of a dataset, by name; one without splits is a single one without a name."""
    try:
        import datasets
    except ImportError as problem:
        raise UsageError(f"{spec}: Hugging Face datasets need a library: pip install 'alignvl[data]'") from problem
    try:
        with _silent_bars():
            found = _found(spec, files)
    except (
        *(OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError),
        *(LookupError, TypeError, AttributeError),  # of a record that lacks a key, or is of another type
    ) as problem:
        message = (str(problem) or type(problem).__name__).splitlines()[0]
        if isinstance(problem, LookupError | TypeError | AttributeError):
            message = f"a record of it is damaged, or a split of it empty ({type(problem).__name__}: {message})"
        raise DataError(f"{spec}: cannot load this Hugging Face dataset: {message}") from problem
    if isinstance(found, datasets.DatasetDict):
        return dict(found)
    return {"": found}


NAMES_SPLIT = re.compile(
    r"(?:^|[-._ 0-9/])(train|training|validation|valid|val|dev|test|testing|eval|evaluation)[-._ 0-9/]"
)
"""What the library takes for a split in the name of a file."""


def _by_split(files: Mapping[str, Path]) -> dict[str, list[str]] | list[str]:
    """The files of each split that their names say, as the library has it of a folder; all of them where none says
    one. DataError where some do."""
    found: dict[str, list[str]] = {TRAIN: [], "validation": [], TEST: []}
    unnamed: list[str] = []
    for name, file in files.items():
        match = NAMES_SPLIT.search(name)
        split = split_name(match[1]) if match else ""
        found.get("validation" if split == VAL else split, unnamed).append(str(file))
    splits = {split: some for split, some in found.items() if some}
    if splits and unnamed:
        raise DataError(
            f"of {len(files)} Parquet files {len(unnamed)} have no split in their names, which the others have, like "
            "train-00000.parquet: name all of them so, or none"
        )
    return splits or unnamed


def _found(spec: str, files: Mapping[str, Path]) -> Any:
    import datasets

    if files:
        return datasets.load_dataset("parquet", data_files=_by_split(files))
    if spec.startswith(HUB):
        match = HUB_ID.fullmatch(spec)
        if match is None:
            raise UsageError(f"{spec}: wanted hf:org/name, hf:org/name:configuration or either with @revision")
        return datasets.load_dataset(match["id"], match["configuration"], revision=match["revision"])
    if is_saved(Path(spec)):
        return datasets.load_from_disk(spec)
    if os.path.isfile(spec):
        return datasets.load_dataset("parquet", data_files=spec)
    parquet = {
        str(file.relative_to(spec)): file
        for file in sorted(Path(spec).rglob("*.parquet"))
        if not any(part.startswith(".") for part in file.relative_to(spec).parts)
    }
    if parquet and not Path(spec, "README.md").is_file():  # which may say what the splits are
        return datasets.load_dataset("parquet", data_files=_by_split(parquet))
    return datasets.load_dataset(spec)


@contextmanager
def _silent_bars() -> Iterator[None]:
    """The library draws bars of its own; what is shown is the caller's business."""
    import datasets

    shown = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


BYTES, PATH = "bytes", "path"
"""Fields of an image in Hugging Face's layout."""
TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
SHOWN = 80
"""Characters of a type in a message."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One cell of an image column: bytes in the file, or the path of another file, or neither."""

    content: pa.Buffer | None
    """The bytes, not copied out of the file."""
    source: ImageSource | None
    """Where they lie."""
    path: str | None


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows of an Arrow file, and the pictures in them."""

    columns: pa.RecordBatch
    pictures: list[Picture]


def embeds(kind: pa.DataType) -> bool:
    """Whether a column of this type holds pictures themselves: bytes, or an object with `bytes` in it."""
    if pa.types.is_struct(kind):
        return kind.get_field_index(BYTES) >= 0 and embeds(kind.field(BYTES).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def names_files(kind: pa.DataType) -> bool:
    """Whether a column of this type holds paths, or nothing at all."""
    if pa.types.is_struct(kind):
        return kind.get_field_index(PATH) >= 0 and names_files(kind.field(PATH).type)
    if pa.types.is_dictionary(kind):
        return names_files(kind.value_type)
    return any(is_kind(kind) for is_kind in TEXTS)


def read_batches(path: Path, image_column: str) -> Iterator[Batch]:
    """The rows of the stream file `path`, whose `image_column` embeds pictures or holds paths.

    DataError for a file that is no Arrow stream, or a compressed one.
    """
    try:
        with pa.memory_map(str(path)) as mapped:
            whole = mapped.read_buffer()
            with pa.ipc.open_stream(pa.BufferReader(whole)) as reader:
                for columns in reader:
                    yield Batch(columns, _pictures(columns.column(image_column), whole, path))
    except pa.ArrowException as problem:
        raise DataError(f"{path}: not a readable Arrow file ({problem})") from problem


def _pictures(cells: pa.Array, whole: pa.Buffer, path: Path) -> list[Picture]:
    if not embeds(cells.type):
        names = cells.to_pylist()
        if pa.types.is_struct(cells.type):
            names = [name and name[PATH] for name in names]
        return [Picture(None, None, name) for name in names]
    names = [None] * len(cells)
    if pa.types.is_struct(cells.type):
        fields = dict(zip([field.name for field in cells.type], cells.flatten(), strict=True))
        cells = fields[BYTES]
        names = fields[PATH].to_pylist() if PATH in fields else names
    _, offsets, values = cells.buffers()
    if values is None:
        return [Picture(None, None, name) for name in names]
    start = values.address - whole.address if values.size else 0  # an empty buffer lies anywhere
    if not 0 <= start <= start + values.size <= whole.size:
        raise DataError(f"{path}: a compressed Arrow file, in which pictures have no place of their own; save it anew")
    width = np.int64 if pa.types.is_large_binary(cells.type) else np.int32
    borders = np.frombuffer(offsets, width)[cells.offset : cells.offset + len(cells) + 1].tolist()
    present = cells.is_valid().to_pylist()
    return [
        Picture(values.slice(first, last - first), ImageSource(path, start + first, last - first), name)
        if there
        else Picture(None, None, name)
        for (first, last), there, name in zip(pairwise(borders), present, names, strict=True)
    ]
