"""Retrieval metrics from per-query ranks.

A rank is the number of wrong candidates that score at least as well as the match: 0 is a hit at 1.
What papers on image-text retrieval call R@K is the hit rate: the share of queries with any relevant item among the
first K. It is called so in code and R@K where it is shown. (Information retrieval's recall, found over total,
could not exceed 20 % at K = 1 with five captions per image.)
"""

# Q queries, F folds, M metrics.

from dataclasses import dataclass
from typing import Any

import numpy as np

from alignvl_cli.retrieval.protocol import RECALL_AT

DIRECTIONS = ("image_to_text", "text_to_image")
RECALL_SUM = "recall_sum"
NORMAL_95 = 1.959964


@dataclass(frozen=True)
class QueryRanks:
    """One direction, query by query."""

    rank_Q: np.ndarray
    """int64, from 0: a hit at 1."""
    precision_Q: np.ndarray
    """Average precision at R, from 0 to 1."""
    row_Q: np.ndarray
    """The query's row in the store's `/image` or `/text`."""
    id_Q: list[str]
    """The query's image id; of a caption, the id of its image."""
    fold_Q: np.ndarray
    """The gallery that it was asked of; all 0 without folds."""


@dataclass(frozen=True, slots=True)
class DirectionMetrics:
    """One direction of retrieval, averaged over its queries; with folds, the mean over them."""

    hit_rate: dict[str, float]
    """`R@K` -> percentage of queries with a relevant item among the first K."""
    recall_sum: float
    """R@1 + R@5 + R@10, whatever other K are reported."""
    median_rank: float
    """Counted from 1, as the field reports it: 1.0 means that half of the queries or more are hits at 1."""
    mean_rank: float
    """Counted from 1."""
    mrr: float
    """Mean of 1 / (rank counted from 1), from 0 to 1."""
    map_at_r: float
    """Mean of the average precision among the first R, R being the number of matches: a percentage. With one match
    it is R@1."""

    def to_json(self) -> dict[str, float]:
        return {
            **self.hit_rate,
            "median_rank": self.median_rank,
            "mean_rank": self.mean_rank,
            "mrr": self.mrr,
            "mAP@R": self.map_at_r,
        }


@dataclass(frozen=True, slots=True)
class RetrievalMetrics:
    """Both directions, with the same K in each."""

    image_to_text: DirectionMetrics
    text_to_image: DirectionMetrics

    @property
    def rsum(self) -> float:
        """Sum of the recalls at 1, 5 and 10 of both directions; 600 is perfect."""
        return self.image_to_text.recall_sum + self.text_to_image.recall_sum

    @property
    def mean_recall(self) -> float:
        """RSUM / 6: a percentage."""
        return self.rsum / (2 * len(RECALL_AT))

    def to_json(self) -> dict[str, Any]:
        return {
            "image_to_text": self.image_to_text.to_json(),
            "text_to_image": self.text_to_image.to_json(),
            "rsum": self.rsum,
            "mean_recall": self.mean_recall,
        }


def query_values(ranks: QueryRanks, recall_at: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Each metric that is a mean over queries -> its value (Q,) for each of them."""
    hits = {f"R@{k}": 100.0 * (ranks.rank_Q < k) for k in recall_at}
    return {
        **hits,
        RECALL_SUM: np.sum([100.0 * (ranks.rank_Q < k) for k in RECALL_AT], axis=0),
        "mean_rank": ranks.rank_Q + 1.0,
        "mrr": 1 / (ranks.rank_Q + 1.0),
        "mAP@R": 100.0 * ranks.precision_Q,
    }


def direction_metrics(ranks: QueryRanks, recall_at: tuple[int, ...] = RECALL_AT) -> DirectionMetrics:
    """Average Q >= 1 queries within each fold, and the folds; ValueError without queries or with a negative rank."""
    if len(ranks.rank_Q) == 0 or ranks.rank_Q.min() < 0:
        raise ValueError("metrics need at least one query, and ranks that count from 0")
    folds = [ranks.fold_Q == fold for fold in np.unique(ranks.fold_Q)]
    mean = {
        name: float(np.mean([value_Q[fold_Q].mean() for fold_Q in folds]))
        for name, value_Q in query_values(ranks, recall_at).items()
    }
    return DirectionMetrics(
        hit_rate={f"R@{k}": mean[f"R@{k}"] for k in recall_at},
        recall_sum=mean[RECALL_SUM],
        median_rank=float(np.mean([np.median(ranks.rank_Q[fold_Q]) + 1 for fold_Q in folds])),
        mean_rank=mean["mean_rank"],
        mrr=mean["mrr"],
        map_at_r=mean["mAP@R"],
    )


def wilson(share: float, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval (1927) of a share of independent trials, from 0 to 1; never of width 0."""
    square = NORMAL_95 * NORMAL_95 / trials
    centre = (share + square / 2) / (1 + square)
    half = np.sqrt(square * share * (1 - share) + square * square / 4) / (1 + square)
    return float(max(0.0, min(share, centre - half))), float(min(1.0, max(share, centre + half)))


def predicted(share: float, trials: float) -> tuple[float, float]:
    """Where 95 % of the shares of as many new trials fall, from 0 to 1; never of width 0.

    Both shares vary, and near 0 and 1 the variance depends on the new one too: the interval holds the shares that
    differ from `share` by at most 1.96 standard deviations at the mean of the two (Krishnamoorthy and Peng, "Improved
    closed-form prediction intervals for binomial and Poisson distributions", J. Statistical Planning and Inference
    2011, joint sampling).
    """
    square = 2 * NORMAL_95 * NORMAL_95 / trials
    tilt, scale = square * (1 - 2 * share) / 2, 1 + square / 4
    half = np.sqrt(tilt * tilt + 4 * scale * square * share * (1 - share))
    low, high = share + (tilt - half) / (2 * scale), share + (tilt + half) / (2 * scale)
    return float(max(0.0, low)), float(min(1.0, high))
