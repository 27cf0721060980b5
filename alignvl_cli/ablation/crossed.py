"""Intervals that speak for other seeds *and* other test images, by resampling both, crossed.

One draw of images is shared by all seeds and arms, seeds are drawn apart (the pigeonhole bootstrap: Owen, *The
pigeonhole bootstrap*, Annals of Applied Statistics 2007). An image and its captions move together, and the gallery is
never resampled, as in `retrieval.bootstrap`.
"""

# R runs, S seeds, I images, B resamples, Q queries; D = 2 directions.

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from alignvl_cli.ablation.statistics import LEVEL

RESAMPLES = 2000
SEED = 0
RECALL_AT = np.array([1, 5, 10])
CHUNK_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class ImageHits:
    """Hits of one run's queries summed by image: what mean recall is made of, whatever images are drawn."""

    sum_DI: np.ndarray
    """Percentages: 100 for each of R@1, R@5 and R@10 that a query of this image hits, over 6."""
    queries_DI: np.ndarray

    @classmethod
    def of(cls, image_DQ: Sequence[np.ndarray], rank_DQ: Sequence[np.ndarray], images: int) -> "ImageHits":
        """Per direction, the number of each query's image (0 to `images` - 1) and its rank, from 0."""
        hits_DQ = [(rank_Q[:, None] < RECALL_AT).sum(axis=1) * 100 / 6 for rank_Q in rank_DQ]
        return cls(
            sum_DI=np.stack(
                [np.bincount(image_Q, hit_Q, images) for image_Q, hit_Q in zip(image_DQ, hits_DQ, strict=True)]
            ),
            queries_DI=np.stack([np.bincount(image_Q, minlength=images) for image_Q in image_DQ]),
        )

    @property
    def mean_recall(self) -> float:
        return float((self.sum_DI.sum(axis=1) / self.queries_DI.sum(axis=1)).sum())


def image_resamples(runs: Sequence[ImageHits]) -> np.ndarray:
    """Mean recall (R, B) of every run on each of B draws of images, the same draws for all.

    A draw is a row of multinomial counts, so a resample of all runs is one matrix product. ValueError unless all runs
    were asked the same queries.
    """
    queries_DI = runs[0].queries_DI
    images = queries_DI.shape[1]
    if any(not np.array_equal(run.queries_DI, queries_DI) for run in runs):
        raise ValueError("the runs were asked different queries")
    sum_DIR = np.stack([run.sum_DI for run in runs], axis=-1)
    draw = np.random.default_rng(SEED)
    recall_BR = np.empty((RESAMPLES, len(runs)))
    size = max(1, CHUNK_ELEMENTS // images)
    for start in range(0, RESAMPLES, size):
        rows = slice(start, min(start + size, RESAMPLES))
        times_BI = draw.multinomial(images, np.full(images, 1 / images), rows.stop - rows.start).astype(float)
        recall_BR[rows] = sum(
            times_BI @ sum_IR / np.maximum(times_BI @ queries_I, 1)[:, None]
            for sum_IR, queries_I in zip(sum_DIR, queries_DI, strict=True)
        )
    return recall_BR.T


def crossed_interval(mean: float, seed_S: np.ndarray, resampled_SB: np.ndarray, images: int) -> tuple[float, float]:
    """95 % interval of a contrast's mean over seeds and images, from its value by seed (S,) and by seed and draw of
    images (S, B).

    The variance of the crossed resamples holds that of images and of seeds once, but what a seed does to single
    images three times (Owen 2007, theorem 2), and would give intervals that cover 98 to 100 % here. As V(images) and
    V(seeds), resampled alone, hold it once each, 2 (V(images) + V(seeds)) - V(crossed) counts everything once. That
    difference of estimates may come out near nothing where few seeds agree by chance, so it is held to be no less than
    either part, as the truth is. The quantile is Student's with Satterthwaite's (1946) degrees of freedom, which are
    no fewer than those of the scarcer: a percentile of ten seeds is too narrow. `benchmarks/study_statistics.py`
    measures the coverage. Needs S >= 2.
    """
    seeds, resamples = resampled_SB.shape
    draw = np.random.default_rng(SEED + 1)
    times_BS = draw.multinomial(seeds - 1, np.full(seeds, 1 / seeds), resamples)  # S - 1: unbiased variance
    crossed_B = np.einsum("bs,sb->b", times_BS, resampled_SB) / (seeds - 1)
    of_seeds = float(seed_S.var(ddof=1) / seeds)
    of_images = float(resampled_SB.mean(axis=0).var(ddof=1))
    variance = max(2 * (of_images + of_seeds) - float(crossed_B.var(ddof=1)), of_seeds, of_images)
    if variance == 0:
        return mean, mean
    freedom = variance**2 / (of_seeds**2 / (seeds - 1) + of_images**2 / (images - 1))
    freedom = max(freedom, min(seeds, images) - 1)
    half = max(  # never surer of all images than of these
        float(stats.t.ppf(1 - LEVEL / 2, freedom)) * variance**0.5,
        float(stats.t.ppf(1 - LEVEL / 2, seeds - 1)) * of_seeds**0.5,
    )
    return mean - half, mean + half
