"""Opens a store: checked on opening, latents mapped into memory and verified when first loaded.

Whatever is wrong with the file becomes one DataError that names it.
"""

import json
import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash

from alignvl_cli.errors import DataError
from alignvl_cli.settings import LAST_LAYER
from alignvl_cli.store import schema
from alignvl_cli.store.schema import BLOCK_BYTES, Rejected

SHAPES = {
    "image/latent": ("I", "D"),
    "image/sha256": ("I", 32),
    "image/split": ("I",),
    "image/id": ("I",),
    "image/uri": ("I",),
    "image/label": ("I",),
    "text/latent": ("T", "C"),
    "text/image": ("T",),
    "text/caption": ("T",),
    "rejected/id": ("R",),
    "rejected/uri": ("R",),
    "rejected/reason": ("R",),
}
DTYPES = {
    "image/latent": ("float32", "float16"),
    "text/latent": ("float32", "float16"),
    "image/sha256": ("uint8",),
    "image/split": ("uint8",),
    "text/image": ("int64",),
}

MOST_COMPRESSED = 1100
"""Times that the filters of HDF5 make data smaller at most (deflate: 1032)."""


@contextmanager
def readable(path: Path) -> Iterator[h5py.File]:
    """The open HDF5 file; whatever HDF5 or the disk say about it becomes one DataError."""
    if not path.exists():
        raise DataError(f"{path}: no such store; {_next_step(path)}")
    if not path.is_file():
        raise DataError(f"{path}: a store is one HDF5 file, and this is not a file")
    try:
        if not h5py.is_hdf5(path):
            raise DataError(f"{path}: not a store (no HDF5 file); `alignvl extract` makes one")
        # Some network file systems cannot lock; a store never changes under its name, so reading needs no lock.
        with h5py.File(path, "r", locking="best-effort") as file:
            yield file
    except KeyError as problem:
        raise DataError(f"{path}: not a complete store: {problem.args[0] if problem.args else problem}") from problem
    except (OSError, RuntimeError, ValueError, TypeError, MemoryError) as problem:
        raise DataError(f"{path}: cannot be read, truncated or damaged ({problem}); extract it again") from problem


def _next_step(path: Path) -> str:
    partial = path.with_name(path.name + ".partial")
    if partial.is_dir():
        return f"an unfinished one lies in {partial}: run the same `alignvl extract` again"
    return "`alignvl extract` makes one, `alignvl inspect` lists those of the workspace"


def read_attributes(path: Path, file: h5py.File) -> dict[str, str]:
    found = file.attrs.get("format")
    if not isinstance(found, str) or not found.startswith(schema.FORMAT_FAMILY):
        raise DataError(f"{path}: an HDF5 file, but not a store: its attribute `format` is {found!r}")
    if found != schema.FORMAT:
        raise DataError(f"{path}: written in format {found}, and this version reads {schema.FORMAT}; extract it again")
    return {name: str(file.attrs[name]) for name in schema.ATTRIBUTES}


def read_sizes(path: Path, file: h5py.File) -> dict[str, int]:
    """The sizes I, T, R, D, C, on which all datasets must agree."""
    sizes: dict[str, int] = {}
    for name, wanted in SHAPES.items():
        dataset = own_dataset(path, file, name)
        fits = isinstance(dataset, h5py.Dataset) and len(dataset.shape) == len(wanted)
        if not fits or not all(
            found == (sizes.setdefault(size, found) if isinstance(size, str) else size)
            for found, size in zip(dataset.shape, wanted, strict=True)
        ):
            raise DataError(f"{path}: /{name} has shape {getattr(dataset, 'shape', None)}, not {wanted} with {sizes}")
        kind = "text" if h5py.check_string_dtype(dataset.dtype) else dataset.dtype.name
        if kind not in DTYPES.get(name, ("text",)):
            raise DataError(f"{path}: /{name} holds {kind}, not {' or '.join(DTYPES.get(name, ('text',)))}")
    return sizes


def own_dataset(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    """The dataset `name`, whose bytes must lie in this very file: no link to elsewhere, no virtual or
    external storage, no size that the file is too small for."""
    parts = name.split("/")
    for depth in range(1, len(parts) + 1):
        node = "/".join(parts[:depth])
        if not isinstance(file.get(node, getlink=True), h5py.HardLink) and node in file:
            raise DataError(f"{path}: /{node} is a link to another place, which a store never has; not read")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise DataError(f"{path}: /{name} is no dataset; extract it again")
    if dataset.is_virtual or dataset.external:
        raise DataError(f"{path}: /{name} lies in another file, which a store's never does; not read")
    stored = dataset.id.get_storage_size()
    if stored > path.stat().st_size or dataset.nbytes > stored * MOST_COMPRESSED:
        raise DataError(
            f"{path}: truncated or damaged: /{name} says it holds {dataset.nbytes:,} bytes, and {stored:,} are "
            f"stored in a file of {path.stat().st_size:,}; extract it again"
        )
    return dataset


def read_digests(path: Path, file: h5py.File) -> dict[str, np.ndarray]:
    """The digests of every dataset, one for each MiB of a numeric one."""
    digests = {name: own_dataset(path, file, f"digest/{name}")[:] for name in schema.DATASETS}
    for name in schema.NUMBERS:
        blocks = -(-file[name].nbytes // schema.BLOCK_BYTES)
        if digests[name].shape != (blocks,):
            raise damaged(path, f"/digest/{name}: {digests[name].shape} digests of {blocks} blocks")
    return digests


def check_rows(
    path: Path,
    sizes: Mapping[str, int],
    image_id: list[str],
    image_split: np.ndarray,
    text_image: np.ndarray,
    split_names: list[str],
) -> None:
    if not sizes["I"] or not sizes["T"]:
        raise DataError(f"{path}: a store without {'images' if not sizes['I'] else 'captions'}")
    if text_image.min() < 0 or text_image.max() >= sizes["I"]:
        raise DataError(f"{path}: /text/image points to rows that are not there (there are {sizes['I']} images)")
    if image_split.max() >= len(split_names):
        raise DataError(f"{path}: /image/split holds {image_split.max()}, but names only {len(split_names)} splits")
    if len(set(image_id)) != len(image_id):
        raise DataError(f"{path}: /image/id repeats an id")


def map_latents(path: Path, dataset: h5py.Dataset) -> np.ndarray:
    """A read-only memory map where the layout allows it (as our writer's does), else the rows themselves."""
    offset = dataset.id.get_offset()
    if offset is None or dataset.dtype.byteorder == ">":
        return dataset[:]
    return np.memmap(path, dtype=dataset.dtype, mode="r", offset=offset, shape=dataset.shape)


def read_numbers(path: Path, file: h5py.File, name: str, digests: Mapping[str, np.ndarray]) -> np.ndarray:
    array = file[name][:]
    if not np.array_equal(schema.digest_array(array), digests[name]):
        raise damaged(path, f"/{name}")
    return array


def read_strings(path: Path, file: h5py.File, name: str, digests: Mapping[str, np.ndarray]) -> list[str]:
    """The column decoded; raw bytes first, since the digest runs over them and it is five times as fast."""
    rows = file[name][:].tolist()
    if not np.array_equal(schema.digest_strings(rows), digests[name]):
        raise damaged(path, f"/{name}")
    return [row.decode() for row in rows]


def damaged(path: Path, where: str) -> DataError:
    return DataError(f"{path}: damaged in {where}: the bytes are not those that were written; extract it again")


def parts_of(path: Path, encoder: Mapping[str, Any], width: int) -> dict[str, slice]:
    """The parts of a latent so wide, by what is kept of its encoder. DataError where they do not add up to it."""
    try:
        parts = encoder.get("record", {}).get("parts", [{"name": LAST_LAYER, "width": width}])
        names, widths = [str(part["name"]) for part in parts], [int(part["width"]) for part in parts]
    except (AttributeError, KeyError, TypeError, ValueError) as problem:
        raise DataError(f"{path}: its parts of latents are not named ({problem!r}); extract it again") from problem
    if sum(widths) != width or min(widths) < 1 or len(set(names)) < len(names):
        raise DataError(
            f"{path}: its parts ({', '.join(names)}; {sum(widths)} wide together) are not those of latents {width} "
            "wide; extract it again"
        )
    edges = [0, *accumulate(widths)]
    return {name: slice(start, stop) for name, (start, stop) in zip(names, pairwise(edges), strict=True)}


ALL = "all"
FINITE_ROWS = 65_536


@dataclass(frozen=True)
class SplitRows:
    """The rows of one split, ascending: n images, m texts."""

    image: np.ndarray
    """(n,) int64 rows of `image_latent`."""
    text: np.ndarray
    """(m,) int64 rows of `text_latent`."""
    text_image: np.ndarray
    """(m,) int64 position of each text's image *within* `image`."""


def split_rows(chosen_I: np.ndarray, text_image: np.ndarray) -> SplitRows:
    """The rows of the images that are chosen (I,) bool, and of their texts."""
    text = np.flatnonzero(chosen_I[text_image])
    position_I = np.cumsum(chosen_I) - 1
    return SplitRows(image=np.flatnonzero(chosen_I), text=text, text_image=position_I[text_image[text]])


@dataclass(frozen=True)
class Store:
    """An open store. Holds no file handle: latents are read-only memory maps, strings are read when asked for."""

    path: Path
    encoder_hash: str
    content_hash: str
    digest: str
    vision: dict[str, Any]
    """{"record": what decides a latent, "about": what is recorded beside it}."""
    text: dict[str, Any]
    dataset: dict[str, Any]
    made_by: dict[str, Any]
    image_latent: np.ndarray
    """(I, D) as stored and **not verified**: `image_block` verifies what it returns."""
    text_latent: np.ndarray
    """(T, C), alike."""
    image_id: list[str]
    image_split: np.ndarray
    """(I,) uint8 positions in `split_names`."""
    split_names: list[str]
    text_image: np.ndarray
    """(T,) int64 row of each text's image."""
    _digests: Mapping[str, np.ndarray] = field(repr=False)
    _verified: Mapping[str, np.ndarray] = field(repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy or a pickle holds no latents: it opens the file again, which must hold the same."""
        return _reopen, (self.path, self.digest)

    @property
    def stores(self) -> "tuple[Store]":
        """Itself: what several that are joined have, too."""
        return (self,)

    @property
    def image_parts(self) -> dict[str, slice]:
        """The parts of an image latent by name, and where they lie in its D columns: `last` alone, unless several
        layers were extracted."""
        return parts_of(self.path, self.vision, self.image_latent.shape[1])

    @property
    def text_parts(self) -> dict[str, slice]:
        """As `image_parts`, of a text latent's C columns."""
        return parts_of(self.path, self.text, self.text_latent.shape[1])

    @cached_property
    def image_uri(self) -> list[str]:
        return self._strings("image/uri")

    @cached_property
    def image_label(self) -> list[str]:
        return self._strings("image/label")

    @cached_property
    def text_caption(self) -> list[str]:
        return self._strings("text/caption")

    @cached_property
    def image_sha256(self) -> np.ndarray:
        """(I, 32) uint8, of the image files' bytes."""
        with readable(self.path) as file:
            return read_numbers(self.path, file, "image/sha256", self._digests)

    @cached_property
    def rejected(self) -> list[Rejected]:
        columns = (self._strings(f"rejected/{name}") for name in ("id", "uri", "reason"))
        return [Rejected(*row) for row in zip(*columns, strict=True)]

    def split_sizes(self) -> dict[str, int]:
        """Images in each split that has any, in the order of `split_names`."""
        counts = np.bincount(self.image_split, minlength=len(self.split_names))
        return {name: int(count) for name, count in zip(self.split_names, counts, strict=True) if count}

    def rows(self, split: str) -> SplitRows:
        """The rows of `split`, or of everything for "all"; DataError when it is absent or empty."""
        if split == ALL:
            chosen_I = np.ones(len(self.image_id), dtype=bool)
        else:
            sizes = self.split_sizes()
            if split not in sizes:
                there = ", ".join(f"{name} ({count} images)" for name, count in sizes.items())
                raise DataError(f"{self.path}: no image in a split {split!r}; this store has {there}; or say {ALL!r}")
            chosen_I = self.image_split == self.split_names.index(split)
        return split_rows(chosen_I, self.text_image)

    def image_block(self, rows: np.ndarray | slice) -> np.ndarray:
        """Image latents of `rows`, contiguous float32 (n, D), verified: digest and finite, else DataError."""
        return self._block("image/latent", self.image_latent, rows)

    def text_block(self, rows: np.ndarray | slice) -> np.ndarray:
        """Text latents of `rows`, contiguous float32 (m, C), verified: digest and finite, else DataError."""
        return self._block("text/latent", self.text_latent, rows)

    def release(self) -> None:
        """Give the mapped pages that were read back to the system: they no longer count as this process's memory."""
        for latent in (self.image_latent, self.text_latent):
            pages = getattr(latent, "_mmap", None)
            if pages is not None and hasattr(pages, "madvise"):
                pages.madvise(mmap.MADV_DONTNEED)

    def verify(self) -> None:
        """Read every dataset against its digest; DataError for the first that is damaged."""
        for block, total in ((self.image_block, len(self.image_id)), (self.text_block, len(self.text_image))):
            for start in range(0, total, FINITE_ROWS):
                block(slice(start, start + FINITE_ROWS))
        for name in schema.STRINGS:
            self._strings(name)
        with readable(self.path) as file:
            read_numbers(self.path, file, "image/sha256", self._digests)

    def _strings(self, name: str) -> list[str]:
        with readable(self.path) as file:
            return read_strings(self.path, file, name, self._digests)

    def _block(self, name: str, latent: np.ndarray, rows: np.ndarray | slice) -> np.ndarray:
        if isinstance(rows, slice):
            rows = np.arange(len(latent))[rows]
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(latent):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(latent)}")
        self._verify_rows(name, latent, rows)
        is_run = len(rows) > 0 and rows[-1] - rows[0] == len(rows) - 1 and bool((np.diff(rows) == 1).all())
        picked = latent[rows[0] : rows[-1] + 1] if is_run else latent[rows]
        block = np.array(picked, dtype=np.float32, order="C")
        for start in range(0, len(block), FINITE_ROWS):
            part = np.isfinite(block[start : start + FINITE_ROWS])
            if not part.all():
                row = int(rows[start + np.flatnonzero(~part.all(axis=1))[0]])
                item = self.image_id[row if name.startswith("image") else int(self.text_image[row])]
                raise DataError(
                    f"{self.path}: /{name} of row {row} (image {item!r}) is not finite; "
                    "extract again with `alignvl extract --overwrite`"
                )
        return block

    def _verify_rows(self, name: str, latent: np.ndarray, rows: np.ndarray) -> None:
        """Check the MiB blocks that `rows` lie in, each once in the life of this object."""
        if not len(rows):
            return
        row_bytes = latent.shape[1] * latent.itemsize
        verified = self._verified[name]
        edges = np.zeros(len(verified) + 1, dtype=np.int64)
        np.add.at(edges, rows * row_bytes // BLOCK_BYTES, 1)
        np.add.at(edges, ((rows + 1) * row_bytes - 1) // BLOCK_BYTES + 1, -1)
        needed = (np.cumsum(edges[:-1]) > 0) & ~verified
        flat = schema.as_bytes(latent)
        for number in np.flatnonzero(needed):
            start = int(number) * BLOCK_BYTES
            if xxhash.xxh3_64_intdigest(flat[start : start + BLOCK_BYTES]) != self._digests[name][number]:
                first = start // row_bytes
                last = min((start + BLOCK_BYTES - 1) // row_bytes, len(latent) - 1)
                raise damaged(self.path, f"/{name}, rows {first} to {last}")
            verified[number] = True


def open_store(path: str | Path) -> Store:
    """Open and check a store: format, shapes, row pointers, split codes, unique ids, metadata digest.

    Raises DataError with one message for whatever is wrong with the file. Latents, captions and the
    other columns are verified when they are first loaded; `Store.verify` loads them all.
    """
    path = Path(path)
    with readable(path) as file:
        attributes = read_attributes(path, file)
        sizes = read_sizes(path, file)
        names = [str(name) for name in file["image/split"].attrs[schema.SPLIT_NAMES]]
        digests = read_digests(path, file)
        described = {
            name: schema.describe(
                file[name].shape, "utf-8" if name in schema.STRINGS else file[name].dtype.name, blocks
            )
            for name, blocks in digests.items()
        }
        if schema.metadata_digest(attributes, described, names) != file.attrs["digest"]:
            raise damaged(path, "its attributes or its table of digests")
        image_split = read_numbers(path, file, "image/split", digests)
        text_image = read_numbers(path, file, "text/image", digests)
        image_id = read_strings(path, file, "image/id", digests)
        records = {name: _record(attributes, name) for name in ("vision", "text", "dataset", "made_by")}
        latents = {name: map_latents(path, file[name]) for name in ("image/latent", "text/latent")}
    check_rows(path, sizes, image_id, image_split, text_image, names)
    for side, name in (("vision", "image/latent"), ("text", "text/latent")):
        parts_of(path, records[side], latents[name].shape[1])
    return Store(
        path=path,
        encoder_hash=attributes["encoder_hash"],
        content_hash=attributes["content_hash"],
        digest=schema.metadata_digest(attributes, described, names),
        **records,
        image_latent=latents["image/latent"],
        text_latent=latents["text/latent"],
        image_id=image_id,
        image_split=image_split,
        split_names=names,
        text_image=text_image,
        _digests=digests,
        _verified={name: np.zeros(len(digests[name]), dtype=bool) for name in latents},
    )


def _reopen(path: Path, digest: str) -> Store:
    store = open_store(path)
    if store.digest != digest:
        raise DataError(f"{path}: another store than the one that was copied or pickled; open the one that is meant")
    return store


def read_made_by(path: Path) -> dict[str, Any] | None:
    """What a store says of its making, its rows unread; None when `path` is no complete store."""
    try:
        with readable(path) as file:
            return _record(read_attributes(path, file), "made_by")
    except DataError:
        return None


def creation_counter(path: Path) -> int | None:
    """Which store of its workspace this was, from 1; 0 outside of one; None when `path` is no complete store."""
    made_by = read_made_by(path)
    counter = None if made_by is None else made_by.get("counter", 0)
    return counter if isinstance(counter, int) else None


def _record(attributes: Mapping[str, str], name: str) -> dict[str, Any]:
    """An attribute that is a JSON object; ValueError or RecursionError when it is none."""
    return dict(json.loads(attributes[name]))
