"""Contrasts of a study's arms in its primary metric: measured run by run, tested as one family, and pooled over sets.

Letters: R runs, A arms, S seeds, B draws of test images, D directions, Q queries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from alignvl_cli.ablation.records import Outcome
from alignvl_cli.ablation.statistics import (
    RESAMPLES,
    ImageHits,
    crossed_interval,
    crossed_variance,
    equivalence_p,
    holm,
    image_resamples,
    max_t,
    random_effects,
    seeds_to_settle,
    sign_flip_floor,
    sign_flip_p,
    t_interval,
)
from alignvl_cli.ablation.study import PRIMARIES, Study

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Contrast:
    """A difference in the primary metric, tested. All p are two-sided or of two one-sided tests, never adjusted
    twice."""

    seeds: int
    """That all arms concerned have."""
    mean: float
    """Points."""
    sd: float
    ci95: Interval
    """Student's t over seeds: these test images."""
    crossed_ci95: Interval | None
    """Over seeds and test images; None for a metric that is no mean over queries' recalls."""
    p: float
    p_holm: float
    p_max_t: float | None
    """Of a study of several cells, and decisive there: as `statistics.max_t` over all cells."""
    p_floor: float
    """No p of this many seeds can be lower."""
    equivalence_p: float
    equivalence_p_holm: float
    seeds_to_settle: int | None
    """None: more than 1,000. About, and only of use while nothing is settled."""


@dataclass(frozen=True)
class Values:
    """A contrast before it is tested."""

    seed_S: np.ndarray
    """Seeds that all its arms have, as places in the study's list."""
    value_S: np.ndarray
    value_SB: np.ndarray | None
    """On each draw of test images; None where that cannot be known."""
    images: int

    @classmethod
    def mean(cls, values: Sequence["Values"]) -> "Values":
        """Over the cells of one store, by seed, as far as all of them have it: they share their test images."""
        shared_S = values[0].seed_S
        for other in values[1:]:
            shared_S = np.intersect1d(shared_S, other.seed_S)
        rows = [np.searchsorted(value.seed_S, shared_S) for value in values]
        drawn = [value.value_SB[row_S] for value, row_S in zip(values, rows, strict=True) if value.value_SB is not None]
        return cls(
            shared_S,
            np.mean([value.value_S[row_S] for value, row_S in zip(values, rows, strict=True)], axis=0),
            np.mean(drawn, axis=0) if len(drawn) == len(values) else None,
            values[0].images,
        )


class Measured:
    """The primary metric by arm and seed in one cell, as measured and on each draw of test images."""

    def __init__(self, study: Study, done: Mapping[tuple[str, int], Outcome], split: str) -> None:
        self.position = {key: number for number, key in enumerate(done)}
        self.names = [arm.name for arm in study.arms]
        self.seeds = study.seeds
        primary = PRIMARIES[study.primary]
        self.value_RB: np.ndarray | None = None
        self.images = 0
        if primary.recall is None:
            found = [outcome.metrics[split].get(primary.name) for outcome in done.values()]
            self.value_R = primary.scale * np.array([np.nan if value is None else value for value in found])
        else:
            hits = _image_hits(list(done.values()), primary.recall, primary.divisor)
            self.images = hits[0].queries_DI.shape[1] if hits else 0
            self.value_R = np.array([run.value for run in hits])
            self.value_RB = image_resamples(hits) if hits else np.empty((0, RESAMPLES))

    def contrast(self, weight_A: np.ndarray) -> Values:
        """Over the seeds that all its arms have."""
        arms = np.flatnonzero(weight_A)
        weight_A = weight_A[arms]
        seed_S = [
            number
            for number, seed in enumerate(self.seeds)
            if all((self.names[arm], seed) in self.position for arm in arms)
        ]
        rows = [[self.position[self.names[arm], self.seeds[number]] for arm in arms] for number in seed_S]
        row_SA = np.array(rows, dtype=np.int64).reshape(-1, len(arms))
        value_S = self.value_R[row_SA] @ weight_A
        is_known_S = ~np.isnan(value_S)  # a metric that is not defined for a run
        value_SB = None if self.value_RB is None else np.einsum("sab,a->sb", self.value_RB[row_SA], weight_A)
        return Values(
            np.array(seed_S, dtype=np.int64)[is_known_S],
            value_S[is_known_S],
            None if value_SB is None else value_SB[is_known_S],
            self.images,
        )


def _image_hits(
    outcomes: Sequence[Outcome], recall: tuple[tuple[int, ...], tuple[int, ...]], divisor: int
) -> list[ImageHits]:
    """Queries of all runs are the same ones in the same order: the evaluation sets are equal."""
    if not outcomes:
        return []
    directions = list(outcomes[0].ranks)
    ids = {direction: outcomes[0].ranks[direction].query_id_Q for direction in directions}
    images = np.unique(np.concatenate([np.array(queries) for queries in ids.values()]))
    image_DQ = [np.searchsorted(images, np.array(ids[direction])) for direction in directions]
    recall_DK = [recall[place] for place in map(("image_to_text", "text_to_image").index, directions)]
    return [
        ImageHits.of(
            image_DQ, [outcome.ranks[direction].rank_Q for direction in directions], len(images), recall_DK, divisor
        )
        for outcome in outcomes
    ]


def less(arm: int, reference: int, arms: int) -> np.ndarray:
    """Weights (A,) of an arm less the reference."""
    weight_A = np.zeros(arms)
    weight_A[arm], weight_A[reference] = 1.0, -1.0
    return weight_A


def tested(values: Sequence[Values], study: Study, *, of_cells: bool) -> list[Contrast | None]:
    """Test one family; None where fewer than two seeds are common. `of_cells`: that of all cells of a study."""
    enough = [number for number, value in enumerate(values) if len(value.value_S) >= 2]
    if not enough:
        return [None] * len(values)
    p_C = np.array([float(sign_flip_p(values[number].value_S)) for number in enough])
    same_C = np.array([float(equivalence_p(values[number].value_S, study.margin)) for number in enough])
    joint_C: Sequence[float | None] = [None] * len(enough)
    if of_cells:
        delta_CS = np.full((len(enough), len(study.seeds)), np.nan)
        for row, number in enumerate(enough):
            delta_CS[row, values[number].seed_S] = values[number].value_S
        joint_C = max_t(delta_CS).tolist()
    made: list[Contrast | None] = [None] * len(values)
    adjusted = zip(enough, p_C, holm(p_C), joint_C, same_C, holm(same_C), strict=True)
    for number, p, p_holm, p_max_t, same, same_holm in adjusted:
        found = values[number]
        mean = float(found.value_S.mean())
        low, high = t_interval(found.value_S)
        made[number] = Contrast(
            seeds=len(found.value_S),
            mean=mean,
            sd=float(found.value_S.std(ddof=1)),
            ci95=(float(low), float(high)),
            crossed_ci95=None
            if found.value_SB is None
            else crossed_interval(mean, found.value_S, found.value_SB, found.images),
            p=float(p),
            p_holm=float(p_holm),
            p_max_t=p_max_t,
            p_floor=sign_flip_floor(len(found.value_S)),
            equivalence_p=float(same),
            equivalence_p_holm=float(same_holm),
            seeds_to_settle=seeds_to_settle(found.value_S, study.margin, 1 if of_cells else len(enough)),
        )
    return made


@dataclass(frozen=True, kw_only=True, slots=True)
class SetEffect:
    """A contrast in one set: the mean of its cells."""

    set: str
    cells: int
    mean: float
    ci95: Interval
    """Over seeds and test images; over seeds alone where the metric has no draws of images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OverSets:
    """A contrast over the sets of a study, of which they are taken for a sample; with one set, over its seeds."""

    mean: float
    """Points; of a random-effects model, where there are several sets."""
    ci95: Interval
    """Hartung and Knapp's: sets of this kind. Of one set Student's t over seeds, for this set."""
    p: float
    p_holm: float
    equivalence_p: float
    equivalence_p_holm: float
    tau: float | None
    """Standard deviation of the true effects of sets; None for one set, as is `i2`."""
    i2: float | None
    sets: tuple[SetEffect, ...]


def over_sets(values: Sequence[Mapping[str, Sequence[Values]]], study: Study) -> list[OverSets | None]:
    """Pool each contrast, {set: [its cells]}, and test all of them as one family. None where a set is left without two
    common seeds in a cell, as the mean would be of other sets than its neighbours'."""
    made = [_pooled(by_set, study.margin) for by_set in values]
    there = [number for number, found in enumerate(made) if found is not None]
    p_C = holm(np.array([made[number].p for number in there]))  # type: ignore[union-attr]
    same_C = holm(np.array([made[number].equivalence_p for number in there]))  # type: ignore[union-attr]
    for number, p, same in zip(there, p_C, same_C, strict=True):
        found = made[number]
        assert found is not None
        made[number] = replace(found, p_holm=float(p), equivalence_p_holm=float(same))
    return made


def _pooled(by_set: Mapping[str, Sequence[Values]], margin: float) -> OverSets | None:
    means = {name: Values.mean(cells) for name, cells in by_set.items()}
    if any(len(found.value_S) < 2 for found in means.values()):
        return None
    sets, variances = [], []
    for name, found in means.items():
        mean = float(found.value_S.mean())
        low, high = map(float, t_interval(found.value_S))
        variance = float(found.value_S.var(ddof=1)) / len(found.value_S)
        if found.value_SB is not None:
            low, high = crossed_interval(mean, found.value_S, found.value_SB, found.images)
            variance, _, _ = crossed_variance(found.value_S, found.value_SB)
        sets.append(SetEffect(set=name, cells=len(by_set[name]), mean=mean, ci95=(low, high)))
        variances.append(variance)
    if len(sets) > 1:
        pooled = random_effects(np.array([effect.mean for effect in sets]), np.array(variances))
        p, same = pooled.p, pooled.equivalence_p(margin)
        mean, ci95, tau, i2 = pooled.mean, pooled.ci95, pooled.tau, pooled.i2
    else:
        (only,) = means.values()
        p, same = float(sign_flip_p(only.value_S)), float(equivalence_p(only.value_S, margin))
        low, high = map(float, t_interval(only.value_S))
        mean, ci95, tau, i2 = sets[0].mean, (low, high), None, None
    return OverSets(
        mean=mean, ci95=ci95, p=p, p_holm=p, equivalence_p=same, equivalence_p_holm=same, tau=tau, i2=i2,
        sets=tuple(sets),
    )  # fmt: skip
