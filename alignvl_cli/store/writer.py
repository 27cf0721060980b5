"""Writes a store, whole or not at all, from blocks that stream by.

Default libver on purpose: a file killed in the newest format needs `h5clear`, and older readers
cannot open it; nothing that it adds is needed here.
"""

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from alignvl_cli.artifacts import canonical_json, committed
from alignvl_cli.errors import DataError
from alignvl_cli.settings import StoreDtype
from alignvl_cli.store import schema
from alignvl_cli.store.schema import BlockDigest, Rejected

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

STORED: dict[StoreDtype, np.dtype] = {StoreDtype.float32: np.dtype("<f4"), StoreDtype.float16: np.dtype("<f2")}
FLOAT16_MAX = 65_504.0
SLACK_BYTES = 1 << 18
"""For what HDF5 writes besides the datasets, and an eighth of them."""


@dataclass(frozen=True)
class StoreRows:
    """Everything about the rows but their latents; images in the order of the data, texts in theirs."""

    image_id: Sequence[str]
    image_uri: Sequence[str]
    image_label: Sequence[str]
    image_sha256: np.ndarray
    """(I, 32) uint8: of the image file's bytes."""
    image_split: Sequence[int] | np.ndarray
    """(I,) positions in `split_names`."""
    split_names: Sequence[str]
    text_image: Sequence[int] | np.ndarray
    """(T,) row of each text's image."""
    text_caption: Sequence[str]
    rejected: Sequence[Rejected] = ()


@dataclass(frozen=True, kw_only=True)
class StoreAbout:
    """Where the latents come from: `vision` and `text` are {"record": ..., "about": ...}, all JSON."""

    vision: dict[str, Any]
    text: dict[str, Any]
    encoder_hash: str
    dataset: dict[str, Any]
    made_by: dict[str, Any]


@dataclass(frozen=True)
class Written:
    content_hash: str
    rounding_error: float | None
    """Largest absolute difference that float16 made; None for float32."""


def write_store(
    path: Path,
    rows: StoreRows,
    about: StoreAbout,
    image_blocks: Iterable[np.ndarray],
    text_blocks: Iterable[np.ndarray],
    *,
    dtype: StoreDtype = StoreDtype.float32,
    named: Path | None = None,
) -> Written:
    """Write the store at `path`; the latents come as float blocks (n, width), in the order of the rows. In messages it
    is called `named`, the name that it is to have in the end.

    Raises DataError for no image, no caption, repeated ids, text that is not UTF-8 or holds NUL,
    a latent that is not finite or, for float16, out of range; ValueError when rows and blocks disagree.
    """
    _check_rows(rows)
    named = named or path
    _require_room(named, _column_bytes(rows))
    with committed(path) as scratch:
        with h5py.File(
            scratch, "w", alignment_threshold=schema.PAGE_BYTES // 2, alignment_interval=schema.PAGE_BYTES
        ) as file:
            writer = _Writer(named, file, STORED[dtype], _column_bytes(rows))
            writer.latents("image/latent", image_blocks, rows.image_id)
            writer.latents("text/latent", text_blocks, rows.text_caption)
            writer.numbers("image/sha256", np.asarray(rows.image_sha256, dtype=np.uint8))
            writer.numbers("image/split", np.asarray(rows.image_split, dtype=np.uint8))
            writer.numbers("text/image", np.asarray(rows.text_image, dtype="<i8"))
            file["image/split"].attrs[schema.SPLIT_NAMES] = list(rows.split_names)
            writer.strings("image/id", rows.image_id)
            writer.strings("image/uri", rows.image_uri)
            writer.strings("image/label", rows.image_label)
            writer.strings("text/caption", rows.text_caption)
            writer.strings("rejected/id", [item.id for item in rows.rejected])
            writer.strings("rejected/uri", [item.uri for item in rows.rejected])
            writer.strings("rejected/reason", [item.reason for item in rows.rejected])
            content = writer.attributes(about, rows.split_names)
    return Written(content, writer.rounding_error if dtype is StoreDtype.float16 else None)


class _Writer:
    """One open file; keeps each dataset's digest until the attributes sum them up."""

    def __init__(self, path: Path, file: h5py.File, stored: np.dtype, column_bytes: int) -> None:
        self.path = path
        self.file = file
        self.stored = stored
        self.column_bytes = column_bytes
        self.described: dict[str, dict[str, Any]] = {}
        self.rounding_error = 0.0

    def latents(self, name: str, blocks: Iterable[np.ndarray], row_names: Sequence[str]) -> None:
        stream = iter(blocks)
        first = next(stream, None)
        if first is None:
            raise ValueError(f"{name}: no block of latents for {len(row_names)} rows")
        width = first.shape[1]
        _require_room(self.path, len(row_names) * width * self.stored.itemsize + self.column_bytes, self.file.filename)
        dataset = self.file.create_dataset(name, (len(row_names), width), dtype=self.stored)
        digest = BlockDigest()
        done = 0
        for block in chain([first], stream):
            if block.shape[1] != width or done + len(block) > len(row_names):
                raise ValueError(f"{name}: a block {block.shape} at row {done} of ({len(row_names)}, {width})")
            cast = self._cast(name, block, done, row_names)
            dataset[done : done + len(cast)] = cast
            digest.update(schema.as_bytes(cast))
            done += len(cast)
        if done != len(row_names):
            raise ValueError(f"{name}: {done} latents for {len(row_names)} rows")
        self._keep(name, dataset.shape, self.stored.name, digest.finish())

    def _cast(self, name: str, block: np.ndarray, start: int, row_names: Sequence[str]) -> np.ndarray:
        """`block` as stored, checked: finite, and for float16 in range."""
        limit = FLOAT16_MAX if self.stored.itemsize == 2 else np.inf
        within = np.abs(block) <= limit if limit < np.inf else np.isfinite(block)
        if not within.all():
            row = int(np.flatnonzero(~within.all(axis=1))[0])
            what = "beyond float16 (65504)" if np.isfinite(block[row]).all() else "not finite"
            remedy = "; use --dtype float32" if what.startswith("beyond") else ""
            raise DataError(f"{self.path}: /{name} of row {start + row} ({row_names[start + row]!r}) is {what}{remedy}")
        cast = np.ascontiguousarray(block, dtype=self.stored)
        if limit < np.inf and block.size:
            self.rounding_error = max(self.rounding_error, float(np.abs(cast.astype(np.float32) - block).max()))
        return cast

    def numbers(self, name: str, array: np.ndarray) -> None:
        array = np.ascontiguousarray(array)
        self.file.create_dataset(name, data=array)
        self._keep(name, array.shape, array.dtype.name, schema.digest_array(array))

    def strings(self, name: str, column: Sequence[str]) -> None:
        dataset = self.file.create_dataset(name, (len(column),), dtype=h5py.string_dtype())
        digest = BlockDigest()
        done = 0
        try:
            for group in schema.string_groups(column):
                packed = schema.pack_strings(group)
                if any(b"\0" in row for row in group):
                    raise DataError(f"{self.path}: /{name} holds a NUL character, which HDF5 text cannot")
                dataset[done : done + len(group)] = group
                digest.update(packed)
                done += len(group)
        except UnicodeEncodeError as problem:
            raise DataError(f"{self.path}: /{name} holds text that is not Unicode: {problem.object!r}") from problem
        self._keep(name, dataset.shape, "utf-8", digest.finish())

    def attributes(self, about: StoreAbout, split_names: Sequence[str]) -> str:
        """Write the root attributes; returns the content hash."""
        content = schema.content_hash(self.described, split_names)
        attributes = {
            "format": schema.FORMAT,
            "vision": canonical_json(about.vision),
            "text": canonical_json(about.text),
            "dataset": canonical_json(about.dataset),
            "encoder_hash": about.encoder_hash,
            "content_hash": content,
            "made_by": canonical_json(about.made_by),
        }
        self.file.attrs.update(attributes)
        self.file.attrs["digest"] = schema.metadata_digest(attributes, self.described, split_names)
        return content

    def _keep(self, name: str, shape: Sequence[int], kind: str, blocks: np.ndarray) -> None:
        self.file.create_dataset(f"digest/{name}", data=blocks)
        self.described[name] = schema.describe(shape, kind, blocks)


def _require_room(path: Path, more_bytes: int, begun: str | None = None) -> None:
    """DataError unless `more_bytes` of datasets fit on the disk, besides what the file `begun` holds: HDF5 may crash
    the process when a write or its closing fails, so that it must not come to that."""
    needed = more_bytes * 9 // 8 + SLACK_BYTES
    free = shutil.disk_usage(path.parent).free
    if resource is not None:
        limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        if limit != resource.RLIM_INFINITY:
            free = min(free, limit - (os.path.getsize(begun) if begun else 0))
    if needed > free:
        raise DataError(
            f"{path}: the store takes {needed:,} more bytes, and there is room for {max(0, free):,}; "
            "make room (what is extracted already is kept), or name another place with --output"
        )


def _column_bytes(rows: StoreRows) -> int:
    """What the columns besides the latents take in the file, about: 16 bytes a reference to a text, 16 of its heap."""
    texts = (rows.image_id, rows.image_uri, rows.image_label, rows.text_caption)
    rejected = (len(item.id) + len(item.uri) + len(item.reason) + 96 for item in rows.rejected)
    written = sum(32 + len(text.encode(errors="replace")) for column in texts for text in column)
    return written + sum(rejected) + 33 * len(rows.image_id) + 8 * len(rows.text_caption)


def _check_rows(rows: StoreRows) -> None:
    images, texts = len(rows.image_id), len(rows.text_caption)
    if not images:
        raise DataError("no image to store: none was given, or none could be read")
    if not texts:
        raise DataError("no caption at all: a store needs at least one image with a caption")
    if len(set(rows.image_id)) != images:
        seen: set[str] = set()
        again = next(name for name in rows.image_id if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise DataError(f"two images share the id {again!r}: ids must be unique")
    lengths = {
        "image_uri": (len(rows.image_uri), images),
        "image_label": (len(rows.image_label), images),
        "image_sha256": (len(rows.image_sha256), images),
        "image_split": (len(rows.image_split), images),
        "text_image": (len(rows.text_image), texts),
    }
    for name, (found, wanted) in lengths.items():
        if found != wanted:
            raise ValueError(f"{name} has {found} rows, not {wanted}")
    if len(rows.split_names) > schema.MAX_SPLITS:
        raise DataError(f"{len(rows.split_names)} splits: a store holds at most {schema.MAX_SPLITS}")
    if int(np.max(rows.image_split)) >= len(rows.split_names) or int(np.min(rows.image_split)) < 0:
        raise ValueError("image_split points past split_names")
    if int(np.max(rows.text_image)) >= images or int(np.min(rows.text_image)) < 0:
        raise ValueError("text_image points past the images")
