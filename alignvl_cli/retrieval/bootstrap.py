"""Intervals of one run's figures, and of the difference between two, by resampling images.

An image and its captions move together, in both directions at once; the gallery is never resampled, so every resample
asks queries whose ranks are known. Percentile intervals; within folds, each fold's images are resampled.
"""

# S resamples, Q queries, I images, M metrics.

from dataclasses import dataclass
from typing import Any

import numpy as np

from alignvl_cli.retrieval.metrics import DIRECTIONS, RECALL_AT, RECALL_SUM, QueryRanks, query_values

RESAMPLES = 2000
SEED = 0
"""Fixed: the same ranks, the same interval; and runs on one evaluation set are resampled alike, which pairs them."""
LEVEL = (2.5, 97.5)
CHUNK_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Resampled:
    """Direction -> metric -> its value in each resample, (S,)."""

    directions: dict[str, dict[str, np.ndarray]]

    @property
    def rsum_S(self) -> np.ndarray:
        return self.directions[DIRECTIONS[0]][RECALL_SUM] + self.directions[DIRECTIONS[1]][RECALL_SUM]

    def less(self, other: "Resampled") -> "Resampled":
        """The differences to another run, resample by resample."""
        return Resampled(
            {
                direction: {name: value_S - other.directions[direction][name] for name, value_S in metrics.items()}
                for direction, metrics in self.directions.items()
            }
        )

    def ci95(self) -> dict[str, Any]:
        """[low, high] of every metric that is a mean, in the shape of `metrics`; the median rank has none."""
        by_direction = {
            direction: {name: _interval(value_S) for name, value_S in metrics.items() if name != RECALL_SUM}
            for direction, metrics in self.directions.items()
        }
        rsum_S = self.rsum_S
        return {
            **by_direction,
            "rsum": _interval(rsum_S),
            "mean_recall": _interval(rsum_S / (2 * len(RECALL_AT))),
            "method": "percentile bootstrap over images, galleries fixed",
            "resamples": len(rsum_S),
        }


def resample(by_image: QueryRanks, by_text: QueryRanks, recall_at: tuple[int, ...]) -> Resampled:
    """Resample the images of both directions' queries `RESAMPLES` times."""
    ranks = dict(zip(DIRECTIONS, (by_image, by_text), strict=True))
    values = {direction: query_values(found, recall_at) for direction, found in ranks.items()}
    totals = {direction: np.zeros((RESAMPLES, len(metrics))) for direction, metrics in values.items()}
    draw = np.random.default_rng(SEED)
    folds = np.unique(by_text.fold_Q)
    for fold in folds:
        mine = {direction: np.flatnonzero(found.fold_Q == fold) for direction, found in ranks.items()}
        ids = {direction: np.array([ranks[direction].id_Q[q] for q in mine[direction]]) for direction in DIRECTIONS}
        image_I = np.unique(np.concatenate(list(ids.values())))
        sums = {}
        for direction in DIRECTIONS:
            image_Q = np.searchsorted(image_I, ids[direction])
            columns = [value_Q[mine[direction]] for value_Q in values[direction].values()]
            weights = [np.ones(len(image_Q)), *columns]
            sums[direction] = np.stack([np.bincount(image_Q, weight, len(image_I)) for weight in weights], axis=1)
        size = max(1, CHUNK_ELEMENTS // len(image_I))
        for start in range(0, RESAMPLES, size):
            rows = slice(start, min(start + size, RESAMPLES))
            times_SI = draw.multinomial(len(image_I), np.full(len(image_I), 1 / len(image_I)), rows.stop - rows.start)
            for direction in DIRECTIONS:
                sum_SM = times_SI @ sums[direction]
                totals[direction][rows] += sum_SM[:, 1:] / sum_SM[:, :1] / len(folds)
    return Resampled(
        {
            direction: {name: totals[direction][:, column] for column, name in enumerate(values[direction])}
            for direction in DIRECTIONS
        }
    )


def _interval(value_S: np.ndarray) -> list[float]:
    return [float(bound) for bound in np.percentile(value_S, LEVEL)]
