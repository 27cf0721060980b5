"""Whether the statistics of `alignvl ablate` keep what they promise: python benchmarks/study_statistics.py [STUDIES]

Simulates studies whose truth is known, and prints docs/statistics.md: false positives of a family, power, equivalence,
coverage of the intervals, and the same of studies over several sets. With the default of 2,000 studies it takes a few
minutes.
"""

import sys
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, ttest_1samp

from alignvl_cli.ablation.statistics import (
    LEVEL,
    ImageHits,
    crossed_interval,
    difference_power,
    equivalence_p,
    holm,
    image_resamples,
    max_t,
    random_effects,
    sign_flip_floor,
    sign_flip_p,
    t_interval,
)

ARMS, SEEDS = 5, 10
IMAGES = 400
SURFACE_ARMS, SURFACE_SEEDS, CONDITIONS = 9, 8, 3
"""Of a study over several sets: arms besides the reference, seeds, subsets of each set."""
IMAGES_SD = 0.3
CROSSED_SHARE = 5
"""A study with test images takes longer: one for so many of the others."""

Rng = np.random.Generator
HEAD = """# The statistics of studies, measured

`python benchmarks/study_statistics.py` prints this page. It simulates studies whose truth is known and counts how often
the statistics of `alignvl ablate` are right. "±" is the Monte-Carlo error: 1.96 standard errors of the share. What the
statistics are, and how to read them: [studies/README.md](studies/README.md).
"""


@dataclass(frozen=True)
class Model:
    """How images, seeds and single queries move a score, in standard deviations of the images' difficulty."""

    name: str
    of_image: float
    """How differently an arm treats different images."""
    of_seed: float
    of_query: float
    """What a seed does to a single query."""


MODELS = (
    Model("images matter most", of_image=1.0, of_seed=0.02, of_query=0.3),
    Model("seeds matter most", of_image=0.1, of_seed=0.3, of_query=0.3),
    Model("single queries matter most", of_image=0.1, of_seed=0.02, of_query=1.0),
    Model("all of them", of_image=0.4, of_seed=0.1, of_query=0.6),
)
THRESHOLDS = {0: norm.ppf(0.2), 1: norm.ppf(0.4), 5: norm.ppf(0.5)}
"""Rank -> the score below which a query has it or a better one: about 20, 40 and 50 % at K = 1, 5, 10."""
EFFECT = 0.1


def share(found: np.ndarray) -> str:
    rate = float(np.mean(found))
    return f"{rate:.1%} ± {1.96 * (rate * (1 - rate) / found.size) ** 0.5:.1%}"


def differences(rng: Rng, draw: str, studies: int, shift: float, arms: int = ARMS, seeds: int = SEEDS) -> np.ndarray:
    """(studies, arms, seeds) differences to one reference, whose own luck all arms share; unit standard deviation."""
    shape = (studies, arms + 1, seeds)
    luck = {
        "normal": lambda: rng.standard_normal(shape),
        "heavy tails (t3)": lambda: rng.standard_t(3, shape) / 3**0.5,
        "skewed (exponential)": lambda: rng.exponential(1, shape) - 1,
        "steps of 0.5": lambda: np.round(rng.standard_normal(shape) * 2) / 2,
    }[draw]()
    return (luck[:, 1:] - luck[:, :1]) / 2**0.5 + shift


def false_positives(rng: Rng, studies: int) -> list[str]:
    lines = [
        f"## False positives: {ARMS} arms against a reference, {SEEDS} seeds, no arm differs",
        "",
        "| luck of a run | studies that find any difference | without Holm |",
        "|---|---:|---:|",
    ]
    for draw in ("normal", "heavy tails (t3)", "skewed (exponential)", "steps of 0.5"):
        p_XM = sign_flip_p(differences(rng, draw, studies, 0.0))
        family, single = (holm(p_XM) <= LEVEL).any(axis=1), (p_XM <= LEVEL).any(axis=1)
        lines.append(f"| {draw} | {share(family)} | {share(single)} |")
    return [*lines, "", f"Promised: at most {LEVEL:.0%}.", ""]


def power(rng: Rng, studies: int) -> list[str]:
    lines = [
        f"## Power: a planted difference of 2 points in one of {ARMS} arms, {SEEDS} seeds",
        "",
        f"The other arms do not differ. The floor of p is {sign_flip_floor(SEEDS):.4f}, {ARMS} times that "
        f"{sign_flip_floor(SEEDS) * ARMS:.4f}.",
        "",
        "| sd of a difference over seeds | found | stated (`difference_power`) |",
        "|---:|---:|---:|",
    ]
    for sd in (0.5, 1.0, 1.5, 2.0, 3.0):
        delta = differences(rng, "normal", studies, 0.0) * sd
        delta[:, 0] += 2.0
        found = holm(sign_flip_p(delta))[:, 0] <= LEVEL
        stated = difference_power(2.0, sd, np.array([SEEDS]), ARMS)[0]
        lines.append(f"| {sd:g} points | {share(found)} | {stated:.1%} |")
    return [
        *lines,
        "",
        "Stated is the t test's power at Holm's hardest step, from which a number of seeds is suggested.",
        "",
    ]


def of_cells(rng: Rng, draw: str, studies: int, sets: int) -> np.ndarray:
    """(studies, arms, sets, conditions, seeds) differences, each cell with a reference and a spread of its own."""
    cells = sets * CONDITIONS
    delta = differences(rng, draw, studies * cells, 0.0, SURFACE_ARMS, SURFACE_SEEDS)
    delta = delta.reshape(studies, sets, CONDITIONS, SURFACE_ARMS, SURFACE_SEEDS)
    spread = rng.uniform(0.5, 2.0, (studies, sets, CONDITIONS, 1, 1))
    return np.moveaxis(delta * spread, 3, 1)


def cells_of_a_study(rng: Rng, studies: int) -> list[str]:
    sets = 4
    contrasts, floor = SURFACE_ARMS * sets * CONDITIONS, sign_flip_floor(SURFACE_SEEDS)
    lines = [
        f"## Verdicts of cells: {SURFACE_ARMS} arms against a reference in {sets * CONDITIONS} cells, "
        f"{SURFACE_SEEDS} seeds, no arm differs",
        "",
        f"{contrasts} contrasts are one family. The sign-flip test's floor, {floor:.4f}, times {contrasts} is "
        f"{floor * contrasts:.2f}: Holm over them could find nothing. The maximum of |t| over flips that all contrasts "
        "share (Westfall and Young) keeps the floor.",
        "",
        "| luck of a run | studies that find any difference | Holm of t tests |",
        "|---|---:|---:|",
    ]
    for draw in ("normal", "heavy tails (t3)", "skewed (exponential)", "steps of 0.5"):
        delta = of_cells(rng, draw, studies, sets).reshape(studies, contrasts, SURFACE_SEEDS)
        found = [(max_t(delta_CS) <= LEVEL).any() for delta_CS in delta]
        with np.errstate(divide="ignore", invalid="ignore"):
            p_XC = np.nan_to_num(ttest_1samp(delta, 0, axis=-1).pvalue, nan=1.0)
        lines.append(f"| {draw} | {share(np.array(found))} | {share((holm(p_XC) <= LEVEL).any(axis=1))} |")
    lines += [
        "",
        f"Promised: at most {LEVEL:.0%}. Found of one planted difference, of so many standard deviations over seeds:",
        "",
        "| sd | found | Holm of t tests |",
        "|---:|---:|---:|",
    ]
    for size in (1, 2, 3, 4):
        delta = of_cells(rng, "normal", studies, sets).reshape(studies, contrasts, SURFACE_SEEDS)
        delta[:, 0] += size * delta[:, 0].std(axis=1, ddof=1, keepdims=True)
        found = [max_t(delta_CS)[0] <= LEVEL for delta_CS in delta]
        p_XC = ttest_1samp(delta, 0, axis=-1).pvalue
        lines.append(f"| {size} | {share(np.array(found))} | {share(holm(p_XC)[:, 0] <= LEVEL)} |")
    return [*lines, ""]


def over_sets(rng: Rng, studies: int) -> list[str]:
    lines = [
        f"## Over sets: {CONDITIONS} cells a set, {SURFACE_SEEDS} seeds; the true mean over sets is 0",
        "",
        "tau: standard deviation of the true effects of sets, in points; a difference's is 0.5 to 2 points over seeds, "
        "and 0.3 over test images, which all cells of a set share.",
        "",
        "| sets | tau | the 95 % interval holds 0 | its width, points | with a normal quantile | studies that find any "
        f"of {SURFACE_ARMS} arms |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for sets in (2, 3, 4, 8):
        for tau in (0.0, 1.0, 3.0):
            delta = of_cells(rng, "normal", studies, sets)
            delta += tau * rng.standard_normal((studies, SURFACE_ARMS, sets, 1, 1))
            delta += IMAGES_SD * rng.standard_normal((studies, SURFACE_ARMS, sets, 1, 1))
            value_XAKS = delta.mean(axis=3)
            effect_XAK = value_XAKS.mean(axis=-1)
            measured = IMAGES_SD**2 * rng.chisquare(IMAGES - 1, effect_XAK.shape) / (IMAGES - 1)
            variance_XAK = value_XAKS.var(axis=-1, ddof=1) / SURFACE_SEEDS + measured
            pooled = [
                [
                    random_effects(effect_K, variance_K)
                    for effect_K, variance_K in zip(effect_AK, variance_AK, strict=True)
                ]
                for effect_AK, variance_AK in zip(effect_XAK, variance_XAK, strict=True)
            ]
            first = [arms[0] for arms in pooled]
            held = np.array([one.ci95[0] <= 0 <= one.ci95[1] for one in first])
            width = np.median([one.ci95[1] - one.ci95[0] for one in first])
            normal = np.array([abs(one.mean) <= norm.ppf(0.975) * one.error for one in first])
            found = (holm(np.array([[one.p for one in arms] for arms in pooled])) <= LEVEL).any(axis=1)
            lines.append(f"| {sets} | {tau:g} | {share(held)} | {width:.1f} | {share(normal)} | {share(found)} |")
    return [
        *lines,
        "",
        "Promised: 95 % or more of the intervals, and at most 5 % of the studies. Of few sets that are alike the",
        "interval is wider than it need be, as Hartung and Knapp's factor may not make it narrower.",
    ]


def equivalence(rng: Rng, studies: int) -> list[str]:
    lines = [
        f"## Equivalence within 1 point, {SEEDS} seeds",
        "",
        "| true difference | sd over seeds | called equivalent |",
        "|---:|---:|---:|",
    ]
    for mean, sd in ((0.0, 0.5), (0.0, 1.0), (0.5, 0.5), (1.0, 0.5), (1.0, 1.0), (1.5, 1.0)):
        delta = differences(rng, "normal", studies, 0.0, arms=1)[:, 0] * sd + mean
        lines.append(f"| {mean:g} points | {sd:g} points | {share(equivalence_p(delta, 1.0) <= LEVEL)} |")
    return [*lines, "", "Promised: at most 5 % where the true difference is the margin or more.", ""]


def coverage(rng: Rng, studies: int) -> list[str]:
    lines = [
        f"## Coverage of the 95 % intervals: {SEEDS} seeds, {IMAGES} test images, 1 to 5 captions each",
        "",
        "Recalls of two arms from simulated ranks. The t interval is for these test images, the crossed for others.",
        "",
        "| what moves a score | t interval over seeds | crossed bootstrap | its percentiles instead | width, points |",
        "|---|---:|---:|---:|---:|",
    ]
    for model in MODELS:
        results = np.array([one_study(rng, model) for _ in range(studies)])
        these, others, percentile = (share(results[:, column].astype(bool)) for column in range(3))
        lines.append(f"| {model.name} | {these} | {others} | {percentile} | {results[:, 3].mean():.1f} |")
    return [
        *lines,
        "",
        "Promised: 93 to 97 %. The percentiles of the same resamples count what a seed does to a single query three",
        "times (Owen 2007), which the interval that is reported does not.",
    ]


def one_study(rng: Rng, model: Model) -> tuple[bool, bool, bool, float]:
    """Whether the t interval holds the truth for these images, the crossed one and its percentiles that for all
    images; and the crossed one's width."""
    captions = np.repeat(np.arange(IMAGES), rng.integers(1, 6, IMAGES))
    image_DQ = [np.arange(IMAGES), captions]
    difficulty_I = rng.standard_normal(IMAGES)
    effect_AI = np.stack([np.zeros(IMAGES), -EFFECT + model.of_image * rng.standard_normal(IMAGES)])
    runs, here_A = [], []
    spread = (model.of_seed**2 + model.of_query**2) ** 0.5
    for effect_I in effect_AI:
        mean_I = difficulty_I + effect_I
        here_A.append(expected_recall([mean_I[image_Q] for image_Q in image_DQ], spread))
        for _ in range(SEEDS):
            luck = model.of_seed * rng.standard_normal()
            rank_DQ = [
                ranks(mean_I[image_Q] + luck + model.of_query * rng.standard_normal(len(image_Q)))
                for image_Q in image_DQ
            ]
            runs.append(ImageHits.of(image_DQ, rank_DQ, IMAGES))
    recall_AS = np.array([run.value for run in runs]).reshape(2, SEEDS)
    resampled_SB = np.subtract(*image_resamples(runs).reshape(2, SEEDS, -1)[::-1])
    delta_S = recall_AS[1] - recall_AS[0]
    low, high = t_interval(delta_S)
    crossed = crossed_interval(delta_S.mean(), delta_S, resampled_SB, IMAGES)
    times_BS = rng.multinomial(SEEDS, np.full(SEEDS, 1 / SEEDS), resampled_SB.shape[1]) / SEEDS
    percentile = np.percentile(np.einsum("bs,sb->b", times_BS, resampled_SB), [2.5, 97.5])
    everywhere = expected_recall([np.array([-EFFECT])] * 2, (1 + model.of_image**2 + spread**2) ** 0.5)
    everywhere -= expected_recall([np.array([0.0])] * 2, (1 + spread**2) ** 0.5)
    here = here_A[1] - here_A[0]
    return (
        low <= here <= high,
        crossed[0] <= everywhere <= crossed[1],
        percentile[0] <= everywhere <= percentile[1],
        crossed[1] - crossed[0],
    )


def ranks(score_Q: np.ndarray) -> np.ndarray:
    rank_Q = np.full(len(score_Q), 99)
    for rank, threshold in sorted(THRESHOLDS.items(), reverse=True):
        rank_Q[score_Q < threshold] = rank
    return rank_Q


def expected_recall(mean_DQ: list[np.ndarray], spread: float) -> float:
    """Mean recall in percent when a query's score is normal around its mean."""
    hits = [norm.cdf((threshold - mean_Q) / spread).mean() for mean_Q in mean_DQ for threshold in THRESHOLDS.values()]
    return 100 * float(np.mean(hits))


def main() -> None:
    studies = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    rng = np.random.default_rng(0)
    page = [HEAD]
    page += false_positives(rng, studies) + power(rng, studies) + equivalence(rng, studies)
    page += coverage(rng, max(20, studies // CROSSED_SHARE))
    page += ["", *cells_of_a_study(rng, max(20, studies // 2)), *over_sets(rng, max(20, studies // 2))]
    print("\n".join(page))


if __name__ == "__main__":
    main()
