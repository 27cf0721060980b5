"""Retrieval metrics from per-query ranks.

A rank is the number of wrong candidates that score at least as well as the match: 0 is a hit at 1.
What papers on image-text retrieval call R@K is the hit rate: the share of queries with any relevant item among the
first K. It is called so in code and R@K where it is shown. (Information retrieval's recall, found over total,
could not exceed 20 % at K = 1 with five captions per image.)
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from alignvl_cli.align.ranks import recalls


@dataclass(frozen=True, slots=True)
class DirectionMetrics:
    """One direction of retrieval, averaged over its queries."""

    hit_rate: dict[str, float]
    """`R@K` -> percentage of queries with a relevant item among the first K."""
    median_rank: float
    """Counted from 1, as the field reports it: 1.0 means that half of the queries or more are hits at 1."""
    mrr: float
    """Mean of 1 / (rank counted from 1), from 0 to 1."""

    def to_json(self) -> dict[str, float]:
        return {**self.hit_rate, "median_rank": self.median_rank, "mrr": self.mrr}


@dataclass(frozen=True, slots=True)
class RetrievalMetrics:
    """Both directions, with the same K in each."""

    image_to_text: DirectionMetrics
    text_to_image: DirectionMetrics

    @property
    def rsum(self) -> float:
        """Sum of the recalls at 1, 5 and 10 of both directions; 600 is perfect."""
        return sum(self.image_to_text.hit_rate.values()) + sum(self.text_to_image.hit_rate.values())

    @property
    def mean_recall(self) -> float:
        """RSUM over the number of recalls in it: a percentage."""
        return self.rsum / (len(self.image_to_text.hit_rate) + len(self.text_to_image.hit_rate))

    def to_json(self) -> dict[str, Any]:
        return {
            "image_to_text": self.image_to_text.to_json(),
            "text_to_image": self.text_to_image.to_json(),
            "rsum": self.rsum,
            "mean_recall": self.mean_recall,
        }


def direction_metrics(rank_Q: np.ndarray) -> DirectionMetrics:
    """Average the ranks (from 0) of Q >= 1 queries; ValueError without queries or with a negative rank."""
    if len(rank_Q) == 0 or rank_Q.min() < 0:
        raise ValueError("metrics need at least one query, and ranks that count from 0")
    return DirectionMetrics(
        hit_rate=recalls(torch.from_numpy(rank_Q)),
        median_rank=float(np.median(rank_Q) + 1),
        mrr=float(np.mean(1 / (rank_Q + 1.0))),
    )
