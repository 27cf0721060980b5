"""The nearest rows of a gallery by inner product: with FAISS, and exactly with torch to hold FAISS to account.

FAISS is imported on first use and nowhere else: its OpenMP runtime and torch's are two on macOS wheels, where
several FAISS threads beside torch can crash the process, so there it gets one thread; elsewhere as many as torch.
"""

# Q queries, G gallery rows, E shared width, K nearest.

import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from alignvl_cli.align.ranks import TIE, score_blocks
from alignvl_cli.errors import DataError
from alignvl_cli.retrieval.metrics import predicted

FLAT = "Flat"
"""Exact search; every vector is kept as it is."""
AGREEMENT_K = 10
AGREEMENT_QUERIES = 1000
"""The comparison with exact search takes at most this many queries of a direction, evenly spaced."""
BLOCK_SCORES = 1 << 24
"""Scores held at a time by exact search: 64 MiB of float32."""


@cache
def faiss() -> Any:
    """The FAISS module, with as many threads as torch; one where two OpenMP runtimes meet."""
    import faiss as module

    module.omp_set_num_threads(1 if sys.platform == "darwin" else torch.get_num_threads())
    return module


def flat_index(gallery_GE: np.ndarray) -> Any:
    """An inner-product FAISS index of unit rows, which makes the product the cosine; DataError on a non-finite row."""
    require_finite(gallery_GE, "gallery")
    index = faiss().index_factory(gallery_GE.shape[1], FLAT, faiss().METRIC_INNER_PRODUCT)
    index.add(np.ascontiguousarray(gallery_GE, dtype=np.float32))
    return index


def nearest(index: Any, query_QE: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows (Q, K) of the nearest gallery rows, best first; K = min(k, rows of the index).

    An approximate index may find fewer than K: the rest of its line is row -1, which a caller drops. From an exact
    index that is a DataError, never a result.
    """
    require_finite(query_QE, "query")
    score_QK, row_QK = index.search(np.ascontiguousarray(query_QE, dtype=np.float32), min(k, index.ntotal))
    if (row_QK < 0).any() and isinstance(index, faiss().IndexFlat):
        raise DataError("the index returned fewer results than it holds: it is damaged; make it again: alignvl index")
    return score_QK, row_QK


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far an index's nearest rows are the exact ones."""

    k: int
    queries: int
    share: float
    """Share of the exact first k that the index finds, ties with the k-th counting: recall against exact search."""
    interval: tuple[float, float]
    """Where 95 % of new measurements fall, each on as many other queries of the same kind."""

    @classmethod
    def measured(cls, share_Q: np.ndarray, k: int) -> "Agreement":
        """Average the shares that Q >= 1 queries found of their first k.

        The rows of one query are found or missed together, so Q k looks are worth only as many independent trials as
        have the variance seen between queries, from Q to Q k (Kish's effective sample size). One query more that finds
        all and one that finds nothing are imagined for that variance: few misses do not tell how they cluster.
        """
        share, imagined = float(share_Q.mean()), np.append(share_Q, [0.0, 1.0])
        variance = np.square(imagined - share).sum() / len(share_Q)
        worth = share * (1 - share) / variance
        return cls(k, len(share_Q), share, predicted(share, len(share_Q) * min(max(worth, 1.0), k)))


def agreement(index: Any, query_QE: np.ndarray, gallery_GE: np.ndarray) -> Agreement:
    """Compare the index's first 10 with the exact first 10, on at most `AGREEMENT_QUERIES` of the queries."""
    return Agreement.measured(*found_shares(index, query_QE, gallery_GE))


def found_shares(index: Any, query_QE: np.ndarray, gallery_GE: np.ndarray) -> tuple[np.ndarray, int]:
    """What each query that `agreement` asks finds of its exact first k: shares (Q,) and k."""
    asked_QE = np.ascontiguousarray(query_QE[spaced(len(query_QE), AGREEMENT_QUERIES)], dtype=np.float32)
    _, row_QK = nearest(index, asked_QE, AGREEMENT_K)
    k = row_QK.shape[1]
    gallery = torch.from_numpy(np.ascontiguousarray(gallery_GE, dtype=np.float32))
    shares = []
    for taken, sim_QG in score_blocks(torch.from_numpy(asked_QE), gallery, block_elements=BLOCK_SCORES):
        row = torch.from_numpy(row_QK[taken])
        kth_Q1 = sim_QG.topk(k, dim=1).values[:, -1:]
        found_QK = sim_QG.gather(1, row.clamp(min=0)) >= kth_Q1 - TIE
        shares.append((found_QK & (row >= 0)).double().mean(dim=1))
    return torch.cat(shares).numpy(), k


def spaced(total: int, most: int) -> np.ndarray:
    """At most `most` positions below `total`, evenly spaced."""
    return np.linspace(0, total - 1, min(total, most)).round().astype(np.int64)


def require_finite(rows_NE: np.ndarray, what: str) -> None:
    """DataError that names the first row that is not finite."""
    finite_N = np.isfinite(rows_NE).all(axis=1)
    if not finite_N.all():
        raise DataError(
            f"{what} embedding {int(np.argmin(finite_N))} is not finite: the run or the store is damaged; "
            "check both: alignvl inspect PATH --check"
        )
