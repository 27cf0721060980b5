"""An index: a folder with a FAISS index of a run's images, one of its captions, and what each row is.

`image.faiss`, `text.faiss`, `items.parquet` (modality, row, id, uri, caption, content), and `index.json`, which holds
the hashes of the other three. The folder takes its name only when all four are there (see `index_builder`).
"""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet

from alignvl_cli.errors import DataError
from alignvl_cli.provenance import file_sha256
from alignvl_cli.retrieval.hits import Gallery
from alignvl_cli.retrieval.index_record import IndexRecord
from alignvl_cli.retrieval.nearest import faiss

ITEMS = "items.parquet"
FAISS_FILES = {gallery: f"{gallery.value}.faiss" for gallery in Gallery}
PARTS = (*FAISS_FILES.values(), ITEMS)
COLUMNS = ("modality", "row", "id", "uri", "caption", "content")
FAISS_ERRORS = (RuntimeError, MemoryError)
"""What FAISS raises on a file that it cannot read or write."""


@dataclass(frozen=True)
class Items:
    """One gallery's rows, in the order of its FAISS index."""

    id: list[str]
    uri: list[str]
    caption: list[str]
    content: list[str]
    """Equal for rows that are duplicates: the image's SHA-256, or the caption's text."""

    @cached_property
    def copies(self) -> Counter[str]:
        """How many rows share each content."""
        return Counter(self.content)


@dataclass(frozen=True)
class Index:
    """An index opened and checked."""

    path: Path
    record: IndexRecord
    vectors: dict[Gallery, Any]
    """FAISS indexes."""
    items: dict[Gallery, Items]

    def queries(self, query_QE: np.ndarray) -> np.ndarray:
        """Embedded queries as this index takes them."""
        return query_QE if self.record.hubness is None else with_one(query_QE)

    @property
    def run_path(self) -> Path:
        """Where the run was when the index was made."""
        return Path(self.record.run)


def open_index(path: Path) -> Index:
    """Open an index, every part's hash and size verified; DataError with the reason when it is not sound."""
    record = IndexRecord.read(path)
    for name in PARTS:
        if not (path / name).is_file() or file_sha256(path / name) != record.sha256.get(name):
            raise DataError(
                f"{path / name} is missing or damaged (its SHA-256 is not the recorded one): make the index again"
            )
    indexes = {gallery: _read_faiss(path / FAISS_FILES[gallery]) for gallery in Gallery}
    items = _read_items(path / ITEMS)
    for gallery in Gallery:
        if indexes[gallery].ntotal != len(items[gallery].id):
            raise DataError(
                f"{path}: {FAISS_FILES[gallery]} has {indexes[gallery].ntotal} rows and {ITEMS} "
                f"{len(items[gallery].id)}: make the index again"
            )
    return Index(path, record, indexes, items)


def with_one(query_QE: np.ndarray) -> np.ndarray:
    """Queries (Q, E + 1) for corrected vectors."""
    return np.column_stack([query_QE, np.ones(len(query_QE), dtype=np.float32)])


def _read_faiss(path: Path) -> Any:
    try:
        return faiss().read_index(str(path))
    except FAISS_ERRORS as problem:
        raise DataError(f"{path}: FAISS cannot read this index ({problem}): make it again") from problem


def _read_items(path: Path) -> dict[Gallery, Items]:
    try:
        table = pyarrow.parquet.read_table(path, columns=list(COLUMNS))
    except (pyarrow.ArrowException, OSError) as problem:
        raise DataError(f"{path}: cannot read the items of this index ({problem}): make it again") from problem
    return {gallery: _gallery_items(table, gallery) for gallery in Gallery}


def _gallery_items(table: pyarrow.Table, gallery: Gallery) -> Items:
    mine = table.filter(pyarrow.compute.equal(table["modality"], gallery.value))
    return Items(*(mine[column].to_pylist() for column in ("id", "uri", "caption", "content")))
