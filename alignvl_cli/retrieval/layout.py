"""Where vectors lie: their nearest neighbours, exactly, and a place in the plane for each, by UMAP."""

# N rows, E shared width, K nearest.

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.retrieval.nearest import flat_index, nearest

MIN_DIST = 0.15
"""UMAP's: how close two points may lie; above its default, so that thumbnails find room."""
Layout = Callable[[np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]
"""(unit rows (N, E), neighbours' cosines (N, K), their rows (N, K), seed) -> places (N, 2)."""


def neighbours(unit_NE: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and rows (N, K) of each row's nearest others, best first and never itself; K = min(k, N - 1).

    DataError for fewer than four rows, which no map is made of.
    """
    if len(unit_NE) < 4:
        raise DataError(f"a map wants at least 4 pictures and captions together; there are {len(unit_NE)}")
    k = min(k, len(unit_NE) - 1)
    cosine_NK, row_NK = nearest(flat_index(unit_NE), unit_NE, k + 1)
    own_NK = row_NK == np.arange(len(unit_NE))[:, None]
    own_NK[~own_NK.any(axis=1), -1] = True  # among many copies of it, it is not in the list: the last one goes
    shape = len(unit_NE), k
    return cosine_NK[~own_NK].reshape(shape).clip(-1, 1), row_NK[~own_NK].reshape(shape)


def umap() -> Any:
    """The module; UsageError without umap-learn."""
    try:
        import umap as module
    except ModuleNotFoundError as problem:
        if problem.name != "umap":  # it is here, and does not load
            raise
        raise UsageError('a map needs umap-learn: pip install "alignvl[map]"') from problem
    return module


def umap_layout(unit_NE: np.ndarray, cosine_NK: np.ndarray, row_NK: np.ndarray, seed: int) -> np.ndarray:
    """(N, 2) by UMAP (McInnes, Healy and Melville, 2018) over the exact neighbours, from the two principal axes on.

    On one thread, so that the same rows and seed give the same places on the same machine.
    """
    own_N1 = np.arange(len(unit_NE))[:, None]
    row_NK = np.concatenate([own_N1, row_NK], axis=1).astype(np.int32)
    distance_NK = np.concatenate([np.zeros_like(own_N1), 1 - cosine_NK], axis=1).astype(np.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"precomputed_knn\[2\]", UserWarning)  # of new points, which nobody places
        reducer = umap().UMAP(
            n_neighbors=row_NK.shape[1],
            min_dist=MIN_DIST,
            metric="cosine",
            init=principal_axes(unit_NE),
            random_state=seed,
            n_jobs=1,
            precomputed_knn=(row_NK, distance_NK),
        )
        return reducer.fit_transform(unit_NE)


def principal_axes(unit_NE: np.ndarray) -> np.ndarray:
    """(N, 2) float32 coordinates on the two principal axes, whose signs are chosen by their largest entries."""
    centred_NE = unit_NE - unit_NE.mean(axis=0)
    _, axes_EE = np.linalg.eigh(centred_NE.T.astype(np.float64) @ centred_NE)
    axes_E2 = axes_EE[:, :-3:-1]
    largest_2 = np.abs(axes_E2).argmax(axis=0)
    return (centred_NE @ (axes_E2 * np.sign(axes_E2[largest_2, [0, 1]]))).astype(np.float32)
