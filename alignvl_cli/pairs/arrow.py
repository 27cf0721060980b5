"""Where in an Arrow file the bytes of each picture lie, so that they are read later by a plain seek.

Hugging Face `datasets` keeps every dataset in Arrow stream files, uncompressed, one value after the other.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from alignvl_cli.errors import DataError
from alignvl_cli.pairs.items import ImageSource

BYTES, PATH = "bytes", "path"
"""Fields of an image in Hugging Face's layout."""


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
        return [Picture(None, None, name) for name in cells.to_pylist()]
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
