"""What a store holds, as plain HDF5: for comparing two of them."""

from pathlib import Path

import h5py
import numpy as np


def stored_datasets(path: Path) -> dict[str, np.ndarray]:
    """Every dataset by name, and the names of the splits."""
    found: dict[str, np.ndarray] = {}
    with h5py.File(path) as store:
        store.visititems(lambda name, node: found.update({name: node[()]}) if isinstance(node, h5py.Dataset) else None)
        found["splits"] = np.asarray(store["image/split"].attrs["names"])
    return found


def differing(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> list[str]:
    """Names of the datasets that differ in any byte, or stand on one side alone."""
    names = sorted(one.keys() | other.keys())
    return [name for name in names if name not in one or name not in other or _bytes(one[name]) != _bytes(other[name])]


def _bytes(array: np.ndarray) -> tuple[object, ...]:
    return array.shape, array.dtype.str, array.tolist() if array.dtype.hasobject else array.tobytes()
