"""Paired statistics over the seeds of a study. Every function takes whole stacks of studies at once.

Differences are paired by seed: the two runs of one seed share initialisation, batches and every other random draw
that they have in common, so the seed's own luck cancels.
"""

# S seeds, F sign flips, M contrasts, X any leading axes (several studies at once), N numbers of seeds.

import numpy as np
from scipy import stats

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
    half_X = stats.t.ppf(1 - level / 2, seeds - 1) * value_XS.std(axis=-1, ddof=1) / np.sqrt(seeds)
    mean_X = value_XS.mean(axis=-1)
    return np.stack([mean_X - half_X, mean_X + half_X], axis=-1)


def sign_flip_p(delta_XS: np.ndarray) -> np.ndarray:
    """Two-sided p of "the differences are symmetric around 0", by flipping their signs (Fisher 1935, section 21).

    Exact up to 20 seeds, where p is never below `sign_flip_floor(S)`; beyond, from 100,000 random flips and the
    observed one (Phipson and Smyth 2010). Assumes nothing but that a seed's difference is as likely negative.
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


def equivalence_p(delta_XS: np.ndarray, margin: float) -> np.ndarray:
    """Two one-sided t tests (Schuirmann 1987): p of "the mean lies outside (-margin, margin)". Needs S >= 2."""
    delta_XS = np.asarray(delta_XS, dtype=float)
    seeds = delta_XS.shape[-1]
    mean_X, error_X = delta_XS.mean(axis=-1), delta_XS.std(axis=-1, ddof=1) / np.sqrt(seeds)
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
