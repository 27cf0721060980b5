"""What a store's file must be like to be read at all; whatever is wrong with it becomes one DataError."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from alignvl_cli.errors import DataError
from alignvl_cli.store import schema

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
    """The dataset `name`, whose bytes must lie in this very file: no link that leads elsewhere, no virtual or
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
