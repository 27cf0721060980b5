"""The nearest rows of a gallery by cosine: with FAISS, and exactly with torch to hold FAISS to account.

FAISS is imported on first use and nowhere else: its OpenMP runtime and torch's are two on macOS wheels, where
several FAISS threads beside torch can crash the process, so there it gets one thread.
"""

# Q queries, G gallery rows, E shared width, K nearest.

import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from alignvl_cli.align.ranks import TIE
from alignvl_cli.errors import DataError

FLAT = "Flat"
"""Exact search; every vector is kept as it is."""
AGREEMENT_K = 10
AGREEMENT_QUERIES = 1000
"""The comparison with exact search takes at most this many queries of a direction, evenly spaced."""
BLOCK_SCORES = 1 << 24
"""Scores held at a time by exact search: 64 MiB of float32."""


@cache
def faiss() -> Any:
    """The FAISS module, with one thread where two OpenMP runtimes meet."""
    import faiss as module

    if sys.platform == "darwin":
        module.omp_set_num_threads(1)
    return module


def flat_index(gallery_GE: np.ndarray) -> Any:
    """An inner-product FAISS index of unit rows, which makes the product the cosine; DataError on a non-finite row."""
    _require_finite(gallery_GE, "gallery")
    index = faiss().index_factory(gallery_GE.shape[1], FLAT, faiss().METRIC_INNER_PRODUCT)
    index.add(np.ascontiguousarray(gallery_GE, dtype=np.float32))
    return index


def nearest(index: Any, query_QE: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and rows (Q, K) of the nearest gallery rows, best first; K = min(k, rows of the index).

    FAISS answers a query that it cannot place with row -1: that is a DataError here, never a result.
    """
    _require_finite(query_QE, "query")
    score_QK, row_QK = index.search(np.ascontiguousarray(query_QE, dtype=np.float32), min(k, index.ntotal))
    if (row_QK < 0).any():
        raise DataError("the index returned fewer results than it holds: it is damaged; make it again: alignvl index")
    return score_QK, row_QK


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far an index's nearest rows are the exact ones."""

    k: int
    queries: int
    share: float
    """Share of the index's first k that are among the exact first k, ties with the k-th included."""


def agreement(index: Any, query_QE: np.ndarray, gallery_GE: np.ndarray) -> Agreement:
    """Compare the index's first 10 with the exact first 10, on at most `AGREEMENT_QUERIES` of the queries."""
    spaced = np.linspace(0, len(query_QE) - 1, min(len(query_QE), AGREEMENT_QUERIES)).round().astype(np.int64)
    asked_QE = np.ascontiguousarray(query_QE[spaced], dtype=np.float32)
    _, row_QK = nearest(index, asked_QE, AGREEMENT_K)
    k = row_QK.shape[1]

    gallery = torch.from_numpy(np.ascontiguousarray(gallery_GE, dtype=np.float32))
    size = max(1, BLOCK_SCORES // len(gallery))
    agreed = 0
    for start in range(0, len(asked_QE), size):
        sim_QG = torch.from_numpy(asked_QE[start : start + size]) @ gallery.T
        kth_Q1 = sim_QG.topk(k, dim=1).values[:, -1:]
        found_QK = sim_QG.gather(1, torch.from_numpy(row_QK[start : start + size]))
        agreed += int((found_QK >= kth_Q1 - TIE).sum())
    return Agreement(k=k, queries=len(asked_QE), share=agreed / row_QK.size)


def _require_finite(rows_NE: np.ndarray, what: str) -> None:
    finite_N = np.isfinite(rows_NE).all(axis=1)
    if not finite_N.all():
        raise DataError(
            f"{what} embedding {int(np.argmin(finite_N))} is not finite: the run or the store is damaged; "
            "check both: alignvl inspect PATH --check"
        )
