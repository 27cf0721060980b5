"""Paired statistics over the seeds of a study, numbers in and out. Most functions take whole stacks of studies at once.

Differences are paired by seed: the two runs of one seed share initialisation, batches and every other random draw
that they have in common, so the seed's own luck cancels. Distributions are scipy's; the tests are written out here
where scipy's would lose ties (`sign_flip_p`) or has none (Holm, crossed intervals, effects).
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from scipy import optimize, stats

LEVEL = 0.05
"""Of every test, and 1 less that of every interval."""
EXACT_SEEDS = 20
"""Up to here all sign flips are enumerated: half a million of them."""
RANDOM_FLIPS = 100_000
"""Beyond it, this many random ones."""
FLIP_ELEMENTS = 1 << 22
"""Sums held at a time."""
POWER = 0.8
"""With which a number of seeds is said to settle a difference."""
MOST_SEEDS = 1000
"""Beyond this many seeds nobody is sent."""


def t_interval(value_XS: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """Student's interval of the mean over seeds, (..., 2) low and high; needs S >= 2."""
    value_XS = np.asarray(value_XS, dtype=float)
    seeds = value_XS.shape[-1]
    half_X = stats.t.ppf(1 - level / 2, seeds - 1) * stats.sem(value_XS, axis=-1)
    mean_X = value_XS.mean(axis=-1)
    return np.stack([mean_X - half_X, mean_X + half_X], axis=-1)


def sign_flip_p(delta_XS: np.ndarray) -> np.ndarray:
    """Two-sided p of "the differences are symmetric around 0", by flipping their signs (Fisher 1935, section 21).

    Exact up to 20 seeds, where p is never below `sign_flip_floor(S)`; beyond, from 100,000 random flips and the
    observed one (Phipson and Smyth 2010). Assumes nothing but that a seed's difference is as likely negative.

    `scipy.stats.permutation_test` gives the same up to ties, which it tells apart by their rounding, and takes thirty
    times as long: half a minute at 20 seeds.
    """
    delta_XS = np.asarray(delta_XS, dtype=float)
    *leading, seeds = delta_XS.shape
    flat_XS = delta_XS.reshape(-1, seeds)
    sign_SF = _signs(seeds)
    tolerance_X = 1e-9 * np.abs(flat_XS).sum(axis=1, keepdims=True)  # a tie is an extreme case, whatever the rounding
    wanted_X = np.abs(flat_XS.sum(axis=1, keepdims=True)) - tolerance_X
    extreme_X = np.zeros(len(flat_XS))
    size = max(1, FLIP_ELEMENTS // len(flat_XS))
    for start in range(0, sign_SF.shape[1], size):
        extreme_X += (np.abs(flat_XS @ sign_SF[:, start : start + size]) >= wanted_X).sum(axis=1)
    observed = 0 if seeds <= EXACT_SEEDS else 1
    return ((extreme_X + observed) / (sign_SF.shape[1] + observed)).reshape(leading)


def _signs(seeds: int) -> np.ndarray:
    """(S, F): every flip with the first sign kept, as flipping all changes no absolute value; or random ones."""
    if seeds > EXACT_SEEDS:
        return np.random.default_rng(0).choice([-1.0, 1.0], size=(seeds, RANDOM_FLIPS))
    bit_SF = (np.arange(2 ** (seeds - 1)) >> np.arange(seeds)[:, None]) & 1
    return np.where(bit_SF[::-1], -1.0, 1.0)


def sign_flip_floor(seeds: int) -> float:
    """The smallest p that `sign_flip_p` can give: 2^(1-S) while it is exact."""
    return 2.0 ** (1 - seeds) if seeds <= EXACT_SEEDS else 1 / (RANDOM_FLIPS + 1)


def holm(p_XM: np.ndarray) -> np.ndarray:
    """Holm's (1979) adjusted p of M contrasts: any of them below the level keeps the family's error below it."""
    p_XM = np.asarray(p_XM, dtype=float)
    order_XM = np.argsort(p_XM, axis=-1, kind="stable")
    count = p_XM.shape[-1]
    stepped_XM = np.take_along_axis(p_XM, order_XM, axis=-1) * np.arange(count, 0, -1)
    adjusted_XM = np.empty_like(p_XM)
    np.put_along_axis(adjusted_XM, order_XM, np.minimum(np.maximum.accumulate(stepped_XM, axis=-1), 1.0), axis=-1)
    return adjusted_XM


def max_t(delta_CS: np.ndarray) -> np.ndarray:
    """Adjusted p (C,) of contrasts that share their seeds (C, S; NaN where a run is missing): the step-down maximum of
    |t| (Westfall and Young 1993, algorithm 2.8), with the signs of a seed's differences flipped in all contrasts at
    once.

    Holm multiplies the floor of p, 2^(1-S), by the number of contrasts, so that a hundred of them, of several stores
    and sizes, need thirteen seeds; here the floor stays what it is for one, as what contrasts share (seeds, reference,
    test images) is kept. Assumes that a seed's differences are jointly as likely all negative.
    """
    is_there_CS = ~np.isnan(delta_CS)
    value_CS = np.where(is_there_CS, delta_CS, 0.0)
    seeds_C = is_there_CS.sum(axis=1)
    scale_C = np.sqrt((value_CS**2).sum(axis=1) * seeds_C)
    scale_C[scale_C == 0] = 1.0  # all differences are 0, and so is every sum
    sign_SF = _signs(value_CS.shape[1])
    largest = np.nextafter(1.0, 0.0)

    def t_of(sum_C: np.ndarray) -> np.ndarray:  # |t| from |sum| / scale, which rises with it and is 1 at most
        share_C = np.minimum(np.round(np.abs(sum_C), 9), largest)  # a tie is an extreme case, whatever the rounding
        return share_C * np.sqrt((seeds_C[:, None] - 1) / (1 - share_C**2))

    observed_C = t_of((value_CS.sum(axis=1) / scale_C)[:, None])[:, 0]
    order_C = np.argsort(-observed_C, kind="stable")
    extreme_C = np.zeros(len(delta_CS))
    size = max(1, FLIP_ELEMENTS // len(delta_CS))
    for start in range(0, sign_SF.shape[1], size):
        t_CF = t_of(value_CS @ sign_SF[:, start : start + size] / scale_C[:, None])
        highest_CF = np.maximum.accumulate(t_CF[order_C][::-1], axis=0)[::-1]  # of a contrast and all weaker ones
        extreme_C += (highest_CF >= observed_C[order_C][:, None]).sum(axis=1)
    added = 0 if value_CS.shape[1] <= EXACT_SEEDS else 1
    stepped_C = np.maximum.accumulate((extreme_C + added) / (sign_SF.shape[1] + added))
    adjusted_C = np.empty(len(delta_CS))
    adjusted_C[order_C] = stepped_C
    return adjusted_C


@dataclass(frozen=True)
class Pooled:
    """A mean over sets, as a random-effects model has it."""

    mean: float
    error: float
    """Standard error of the mean."""
    freedom: int
    tau: float
    """Standard deviation of the true effects of sets."""
    i2: float
    """Share of the variance between the sets' estimates that is no error of theirs, 0 to 1."""

    @property
    def ci95(self) -> tuple[float, float]:
        half = float(stats.t.ppf(1 - LEVEL / 2, self.freedom)) * self.error
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float:
        """Two-sided."""
        return float(2 * stats.t.sf(abs(self.mean) / self.error, self.freedom))

    def equivalence_p(self, margin: float) -> float:
        """Two one-sided tests, as `equivalence_p`."""
        return float(stats.t.sf((margin - abs(self.mean)) / self.error, self.freedom))


LEAST_VARIANCE = 1e-12
"""Of a set's estimate: arms without any luck have none."""


def random_effects(effect_K: np.ndarray, variance_K: np.ndarray) -> Pooled:
    """The mean effect over sets of which these K are a sample, from each one's estimate and its variance. Needs K >= 2.

    tau by Paule and Mandel (1982); the interval is Hartung and Knapp's (2001), never narrower than without their
    factor (Rover, Knapp and Friede 2015), as there are few sets.
    """
    effect_K, variance_K = np.asarray(effect_K, float), np.maximum(variance_K, LEAST_VARIANCE)
    freedom = len(effect_K) - 1

    def spread(tau2: float) -> tuple[float, float, float]:
        weight_K = 1 / (variance_K + tau2)
        mean = float((weight_K * effect_K).sum() / weight_K.sum())
        return float((weight_K * (effect_K - mean) ** 2).sum()), mean, float(weight_K.sum())

    tau2, between = 0.0, spread(0.0)[0]
    if between > freedom:
        highest = float(effect_K.var(ddof=1)) * len(effect_K) + LEAST_VARIANCE
        tau2 = float(optimize.brentq(lambda guess: spread(guess)[0] - freedom, 0.0, highest))
    found, mean, weight = spread(tau2)
    return Pooled(
        mean=mean,
        error=(max(1.0, found / freedom) / weight) ** 0.5,
        freedom=freedom,
        tau=tau2**0.5,
        i2=max(0.0, 1 - freedom / between) if between else 0.0,
    )


def equivalence_p(delta_XS: np.ndarray, margin: float) -> np.ndarray:
    """Two one-sided t tests (Schuirmann 1987): p of "the mean lies outside (-margin, margin)". Needs S >= 2."""
    delta_XS = np.asarray(delta_XS, dtype=float)
    seeds = delta_XS.shape[-1]
    mean_X, error_X = delta_XS.mean(axis=-1), stats.sem(delta_XS, axis=-1)
    slack_X = margin - np.abs(mean_X)  # to the nearer end: the larger of the two p
    with np.errstate(divide="ignore", invalid="ignore"):
        t_X = np.where(error_X > 0, slack_X / error_X, np.copysign(np.inf, slack_X))
    return stats.t.sf(t_X, seeds - 1)


def seeds_for_any_verdict(contrasts: int, level: float = LEVEL) -> int:
    """The fewest seeds with which Holm over `contrasts` can find a difference: 2^(1-S) * M <= level."""
    return next(seeds for seeds in range(2, EXACT_SEEDS + 1) if sign_flip_floor(seeds) * contrasts <= level)


def difference_power(mean: float, sd: float, seeds_N: np.ndarray, contrasts: int, level: float = LEVEL) -> np.ndarray:
    """Chance (N,) that a true difference of `mean`, with `sd` over seeds, is found: the t test's, at level / contrasts
    (Holm's hardest step), and none where the exact test cannot reach that."""
    seeds_N = np.asarray(seeds_N)
    alpha = level / contrasts
    bound_N = stats.t.ppf(1 - alpha / 2, seeds_N - 1)
    shift_N = abs(mean) / sd * np.sqrt(seeds_N)
    with np.errstate(all="ignore"):
        found_N = stats.nct.sf(bound_N, seeds_N - 1, shift_N) + stats.nct.cdf(-bound_N, seeds_N - 1, shift_N)
    found_N = np.where(np.isfinite(found_N), found_N, 1.0)  # so far out that scipy gives up
    floor_N = np.array([sign_flip_floor(int(seeds)) for seeds in seeds_N])
    return np.where(floor_N <= alpha, found_N, 0.0)


def equivalence_power(
    mean: float, sd: float, seeds_N: np.ndarray, margin: float, contrasts: int, level: float = LEVEL
) -> np.ndarray:
    """Chance (N,), at least, that `equivalence_p` falls below level / contrasts (Bonferroni's bound on the two)."""
    seeds_N = np.asarray(seeds_N)
    bound_N = stats.t.ppf(1 - level / contrasts, seeds_N - 1)
    with np.errstate(all="ignore"):
        one_sided = [
            stats.nct.sf(bound_N, seeds_N - 1, (margin + sign * mean) / sd * np.sqrt(seeds_N)) for sign in (1, -1)
        ]
    found = [np.where(np.isfinite(found_N), found_N, 1.0) for found_N in one_sided]
    return np.maximum(0.0, found[0] + found[1] - 1)


def seeds_to_settle(delta_S: np.ndarray, margin: float, contrasts: int) -> int | None:
    """How many seeds would, in 4 of 5 studies, tell a difference or an equivalence, were the true mean and spread
    those observed; None beyond 1,000. A guess from few seeds, to plan the next study with."""
    delta_S = np.asarray(delta_S, dtype=float)
    mean, sd = float(delta_S.mean()), float(delta_S.std(ddof=1))
    if sd == 0:
        return seeds_for_any_verdict(contrasts)
    seeds_N = np.arange(len(delta_S) + 1, MOST_SEEDS + 1)
    power_N = np.maximum(
        difference_power(mean, sd, seeds_N, contrasts), equivalence_power(mean, sd, seeds_N, margin, contrasts)
    )
    enough = np.flatnonzero(power_N >= POWER)
    return int(seeds_N[enough[0]]) if len(enough) else None


RESAMPLES = 2000
SEED = 0
RECALL_AT = (1, 5, 10)
CHUNK_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class ImageHits:
    """Hits of one run's queries summed by image: what mean recall is made of, whatever images are drawn."""

    sum_DI: np.ndarray
    """Percentages: 100 for each R@K that a query of this image hits, over the number of recalls that are averaged."""
    queries_DI: np.ndarray

    @classmethod
    def of(
        cls,
        image_DQ: Sequence[np.ndarray],
        rank_DQ: Sequence[np.ndarray],
        images: int,
        recall_DK: Sequence[Sequence[int]] = (RECALL_AT, RECALL_AT),
        divisor: int = 6,
    ) -> "ImageHits":
        """Per direction, the number of each query's image (0 to `images` - 1), its rank, from 0, and the K of the
        recalls whose sum over `divisor` is wanted: by default mean recall."""
        hits_DQ = [
            (rank_Q[:, None] < np.array(recall_K, dtype=int)).sum(axis=1) * 100 / divisor
            for rank_Q, recall_K in zip(rank_DQ, recall_DK, strict=True)
        ]
        return cls(
            sum_DI=np.stack(
                [np.bincount(image_Q, hit_Q, images) for image_Q, hit_Q in zip(image_DQ, hits_DQ, strict=True)]
            ),
            queries_DI=np.stack([np.bincount(image_Q, minlength=images) for image_Q in image_DQ]),
        )

    @property
    def value(self) -> float:
        return float((self.sum_DI.sum(axis=1) / self.queries_DI.sum(axis=1)).sum())


def image_resamples(runs: Sequence[ImageHits]) -> np.ndarray:
    """Value (R, B) of every run on each of B draws of images, the same draws for all.

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


def crossed_variance(seed_S: np.ndarray, resampled_SB: np.ndarray) -> tuple[float, float, float]:
    """Variance of a contrast's mean over other seeds *and* other test images, and that of each alone (seeds, images),
    from its value by seed (S,) and by seed and draw of images (S, B): both are resampled, crossed.

    One draw of images is shared by all seeds and arms, seeds are drawn apart (the pigeonhole bootstrap: Owen, *The
    pigeonhole bootstrap*, Annals of Applied Statistics 2007). An image and its captions move together, and the gallery
    is never resampled, as in `retrieval.metrics.resample`.

    The variance of the crossed resamples holds that of images and of seeds once, but what a seed does to single
    images three times (Owen 2007, theorem 2), and would give intervals that cover 98 to 100 % here. As V(images) and
    V(seeds), resampled alone, hold it once each, 2 (V(images) + V(seeds)) - V(crossed) counts everything once. That
    difference of estimates may come out near nothing where few seeds agree by chance, so it is held to be no less than
    either part, as the truth is. `benchmarks/study_statistics.py` measures the coverage. Needs S >= 2.
    """
    seeds, resamples = resampled_SB.shape
    draw = np.random.default_rng(SEED + 1)
    times_BS = draw.multinomial(seeds - 1, np.full(seeds, 1 / seeds), resamples)  # S - 1: unbiased variance
    crossed_B = np.einsum("bs,sb->b", times_BS, resampled_SB) / (seeds - 1)
    of_seeds = float(seed_S.var(ddof=1) / seeds)
    of_images = float(resampled_SB.mean(axis=0).var(ddof=1))
    return max(2 * (of_images + of_seeds) - float(crossed_B.var(ddof=1)), of_seeds, of_images), of_seeds, of_images


def crossed_interval(mean: float, seed_S: np.ndarray, resampled_SB: np.ndarray, images: int) -> tuple[float, float]:
    """95 % interval of a contrast's mean for other seeds and other test images; arguments as of `crossed_variance`.

    The quantile is Student's with Satterthwaite's (1946) degrees of freedom, which are no fewer than those of the
    scarcer: a percentile of ten seeds is too narrow.
    """
    seeds = len(seed_S)
    variance, of_seeds, of_images = crossed_variance(seed_S, resampled_SB)
    if variance == 0:
        return mean, mean
    freedom = variance**2 / (of_seeds**2 / (seeds - 1) + of_images**2 / (images - 1))
    freedom = max(freedom, min(seeds, images) - 1)
    half = max(  # never surer of all images than of these
        float(stats.t.ppf(1 - LEVEL / 2, freedom)) * variance**0.5,
        float(stats.t.ppf(1 - LEVEL / 2, seeds - 1)) * of_seeds**0.5,
    )
    return mean - half, mean + half


@dataclass(frozen=True)
class Effect:
    """A main effect or an interaction of a study whose arms are every combination of some factors' levels.

    A main effect is the mean difference between a level and the factor's first, over all combinations of the others.
    An interaction of two is a difference of differences: by how much the one's effect is larger with the other than
    without. As there are as many effects as arms less one, they are the arms' differences told in another way, and a
    family of their own.
    """

    name: str
    factors: tuple[str, ...]
    meaning: str
    weight_A: np.ndarray
    """The effect is the weighted sum of the arms' means."""


def effects(factors: Mapping[str, Sequence[str]]) -> list[Effect]:
    """All of them, main effects first. `factors` has the levels of each, the first being the one compared with."""
    return [
        _effect(factors, dict(zip(crossed, levels, strict=True)))
        for order in range(1, len(factors) + 1)
        for crossed in itertools.combinations(factors, order)
        for levels in itertools.product(*(factors[factor][1:] for factor in crossed))
    ]


def _effect(factors: Mapping[str, Sequence[str]], level_of: Mapping[str, str]) -> Effect:
    weights = []
    for factor, levels in factors.items():
        if factor in level_of:
            weight_L = np.zeros(len(levels))
            weight_L[levels.index(level_of[factor])], weight_L[0] = 1.0, -1.0
        else:
            weight_L = np.full(len(levels), 1 / len(levels))
        weights.append(weight_L)
    names = [factor if len(factors[factor]) == 2 else f"{factor} {level}" for factor, level in level_of.items()]
    steps = [f"{level} against {factors[factor][0]}" for factor, level in level_of.items()]
    return Effect(
        name=" x ".join(names),
        factors=tuple(level_of),
        meaning=steps[0] if len(steps) == 1 else "how much " + " changes with ".join(steps),
        weight_A=reduce(np.kron, weights),
    )
