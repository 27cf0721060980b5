"""What a study settled: from the outcomes of all runs to statistics, and to a verdict in words for every arm.

Differences are in points of mean recall on the evaluated split, paired by seed. The exact sign-flip test, with Holm
over the contrasts of one table, decides whether two arms differ, for these test images; two one-sided tests, with Holm
too, whether they are equivalent within the margin; the crossed interval says what other test images may show.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from alignvl_cli.ablation.records import PRIMARY, VERDICTS_SCHEMA, Outcome, verdicts_frame
from alignvl_cli.ablation.statistics import (
    LEVEL,
    Effect,
    ImageHits,
    crossed_interval,
    effects,
    equivalence_p,
    holm,
    image_resamples,
    seeds_for_any_verdict,
    seeds_to_settle,
    sign_flip_floor,
    sign_flip_p,
    t_interval,
)
from alignvl_cli.ablation.study import Study

if TYPE_CHECKING:
    import pandas

Interval = tuple[float, float]


class Verdict(StrEnum):
    better = "better"
    worse = "worse"
    small = "different, within the margin"
    equivalent = "equivalent within the margin"
    undecided = "not distinguishable yet"
    untested = "not tested"


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """A metric over the seeds of an arm, or its differences to the reference."""

    mean: float
    sd: float | None
    """Over seeds; None for one seed, as is the interval."""
    ci95: Interval | None
    """Student's t, over seeds."""
    seeds: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Contrast:
    """A difference in mean recall, tested. All p are two-sided or of two one-sided tests, never adjusted twice."""

    seeds: int
    """That all arms concerned have."""
    mean: float
    """Points."""
    sd: float
    ci95: Interval
    """Student's t over seeds: these test images."""
    crossed_ci95: Interval
    """Over seeds and test images."""
    p: float
    p_holm: float
    p_floor: float
    """No p of this many seeds can be lower."""
    equivalence_p: float
    equivalence_p_holm: float
    seeds_to_settle: int | None
    """None: more than 1,000. About, and only of use while nothing is settled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmVerdict:
    arm: str
    levels: tuple[str, ...]
    seeds: tuple[int, ...]
    """Of its finished runs."""
    failed: tuple[dict[str, Any], ...]
    """{"seed", "reason"} of each run that failed; it is in no figure."""
    metrics: dict[str, Summary]
    """Of the evaluated split, as in `results.parquet`."""
    differences: dict[str, Summary]
    """To the reference, paired by seed, descriptive; empty for the reference."""
    difference: Contrast | None
    """None for the reference, and with fewer than two common seeds."""
    verdict: Verdict | None
    """None for the reference."""
    words: str


@dataclass(frozen=True, kw_only=True, slots=True)
class EffectVerdict:
    """A main effect or an interaction of a factorial study."""

    effect: str
    """`mixing`, or `mixing x smoothing`; of a factor with more than two levels, `factor level`."""
    factors: tuple[str, ...]
    meaning: str
    difference: Contrast | None
    verdict: Verdict
    words: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyVerdicts:
    """What a study settled, and what it did not."""

    name: str
    question: str
    reference: str
    primary: str
    margin: float
    level: float
    seeds: tuple[int, ...]
    seeds_needed: int
    """The fewest with which any difference could be found (Holm over the larger table, exact test)."""
    arms: tuple[ArmVerdict, ...]
    effects: tuple[EffectVerdict, ...]
    """Empty unless factorial."""
    evaluation: dict[str, Any]
    """store, split, selection_split, images, captions, repeated_captions, protocol."""
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"schema": VERDICTS_SCHEMA, **asdict(self)}

    def to_frame(self) -> "pandas.DataFrame":
        """A row an arm and metric, and a row an effect; columns as `ablation.records.verdicts_frame` has them."""
        return verdicts_frame(self.to_json())


def settle(contrast: Contrast | None) -> Verdict:
    """Different by the sign-flip test, equivalent by the two one-sided ones, both after Holm."""
    if contrast is None:
        return Verdict.untested
    is_different, is_small = contrast.p_holm <= LEVEL, contrast.equivalence_p_holm <= LEVEL
    if is_different and is_small:
        return Verdict.small
    if is_different:
        return Verdict.better if contrast.mean > 0 else Verdict.worse
    return Verdict.equivalent if is_small else Verdict.undecided


def in_words(verdict: Verdict, contrast: Contrast | None, margin: float, *, of_effect: bool = False) -> str:
    """The verdict in a sentence; an effect is positive or negative where an arm is better or worse."""
    if contrast is None:
        return "not tested: fewer than two seeds are finished on both sides"
    low, high = contrast.crossed_ci95
    within = f"{margin:g} " + ("point" if margin == 1 else "points") + " of mean recall"
    if verdict in (Verdict.better, Verdict.worse):
        beyond = "on other test images too" if low * high > 0 else "other test images may not show it"
        found = verdict.value if not of_effect else "positive" if verdict is Verdict.better else "negative"
        return f"{found} by {abs(contrast.mean):.1f} points; {beyond}"
    if verdict is Verdict.small:
        return f"different by {contrast.mean:+.1f} points, but within {within}"
    if verdict is Verdict.equivalent:
        return f"none, within {within}" if of_effect else f"equivalent within {within}"
    return f"not distinguishable yet; {_how_many(contrast)}"


def _how_many(contrast: Contrast) -> str:
    if contrast.seeds_to_settle is None:
        return "more than 1,000 seeds would be needed"
    return f"about {contrast.seeds_to_settle:,} seeds would settle it"


def judge(study: Study, outcomes: Sequence[Outcome], split: str, evaluation: Mapping[str, Any]) -> StudyVerdicts:
    """The verdicts on `outcomes`, one for each arm and seed of `study`."""
    done = {(outcome.arm, outcome.seed): outcome for outcome in outcomes if outcome.failure is None}
    measured = _Measured(study, done)
    names = [arm.name for arm in study.arms]
    reference = names.index(study.reference)
    others = [number for number in range(len(names)) if number != reference]
    differences = dict(
        zip(
            others,
            _contrasts(measured, [_less(number, reference, len(names)) for number in others], study),
            strict=True,
        )
    )
    found = effects(study.factors) if study.factors else []
    contrasts = _contrasts(measured, [effect.weight_A for effect in found], study)
    arms = tuple(
        _arm_verdict(study, number, outcomes, done, split, differences.get(number)) for number in range(len(names))
    )
    return StudyVerdicts(
        name=study.name,
        question=study.question,
        reference=study.reference,
        primary=PRIMARY,
        margin=study.margin,
        level=LEVEL,
        seeds=study.seeds,
        seeds_needed=seeds_for_any_verdict(len(names) - 1),
        arms=arms,
        effects=tuple(
            _effect_verdict(effect, contrast, study) for effect, contrast in zip(found, contrasts, strict=True)
        ),
        evaluation=dict(evaluation),
        warnings=(*_warnings(study, arms), *_untrained(arms, done)),
    )


class _Measured:
    """Mean recall by arm and seed, as measured and on each draw of test images."""

    def __init__(self, study: Study, done: Mapping[tuple[str, int], Outcome]) -> None:
        self.position = {key: number for number, key in enumerate(done)}
        self.names = [arm.name for arm in study.arms]
        self.seeds = study.seeds
        hits = _image_hits(list(done.values()))
        self.images = hits[0].queries_DI.shape[1] if hits else 0
        self.recall_R = np.array([run.mean_recall for run in hits])
        self.recall_RB = image_resamples(hits) if hits else np.empty((0, 0))

    def contrast(self, weight_A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Its value by seed (S,), and by seed and draw (S, B), over the seeds that all its arms have."""
        arms = np.flatnonzero(weight_A)
        rows = [
            [self.position[self.names[arm], seed] for arm in arms]
            for seed in self.seeds
            if all((self.names[arm], seed) in self.position for arm in arms)
        ]
        row_SA = np.array(rows, dtype=np.int64).reshape(-1, len(arms))
        weight_A = weight_A[arms]
        return self.recall_R[row_SA] @ weight_A, np.einsum("sab,a->sb", self.recall_RB[row_SA], weight_A)


def _image_hits(outcomes: Sequence[Outcome]) -> list[ImageHits]:
    """Queries of all runs are the same ones in the same order: the evaluation sets are equal."""
    if not outcomes:
        return []
    directions = list(outcomes[0].ranks)
    ids = {direction: outcomes[0].ranks[direction].query_id_Q for direction in directions}
    images = np.unique(np.concatenate([np.array(queries) for queries in ids.values()]))
    image_DQ = [np.searchsorted(images, np.array(ids[direction])) for direction in directions]
    return [
        ImageHits.of(image_DQ, [outcome.ranks[direction].rank_Q for direction in directions], len(images))
        for outcome in outcomes
    ]


def _less(arm: int, reference: int, arms: int) -> np.ndarray:
    weight_A = np.zeros(arms)
    weight_A[arm], weight_A[reference] = 1.0, -1.0
    return weight_A


def _contrasts(measured: _Measured, weights: Sequence[np.ndarray], study: Study) -> list[Contrast | None]:
    """Test one family; None where fewer than two seeds are common."""
    values = [measured.contrast(weight_A) for weight_A in weights]
    tested = [number for number, (value_S, _) in enumerate(values) if len(value_S) >= 2]
    if not tested:
        return [None] * len(values)
    p_C = np.array([float(sign_flip_p(values[number][0])) for number in tested])
    same_C = np.array([float(equivalence_p(values[number][0], study.margin)) for number in tested])
    made: list[Contrast | None] = [None] * len(values)
    for number, p, p_holm, same, same_holm in zip(tested, p_C, holm(p_C), same_C, holm(same_C), strict=True):
        value_S, value_SB = values[number]
        mean = float(value_S.mean())
        low, high = t_interval(value_S)
        made[number] = Contrast(
            seeds=len(value_S),
            mean=mean,
            sd=float(value_S.std(ddof=1)),
            ci95=(float(low), float(high)),
            crossed_ci95=crossed_interval(mean, value_S, value_SB, measured.images),
            p=float(p),
            p_holm=float(p_holm),
            p_floor=sign_flip_floor(len(value_S)),
            equivalence_p=float(same),
            equivalence_p_holm=float(same_holm),
            seeds_to_settle=seeds_to_settle(value_S, study.margin, len(tested)),
        )
    return made


def _arm_verdict(
    study: Study,
    number: int,
    outcomes: Sequence[Outcome],
    done: Mapping[tuple[str, int], Outcome],
    split: str,
    contrast: Contrast | None,
) -> ArmVerdict:
    arm = study.arms[number]
    seeds = tuple(seed for seed in study.seeds if (arm.name, seed) in done)
    mine = {seed: done[arm.name, seed].metrics[split] for seed in seeds}
    theirs = {seed: done[study.reference, seed].metrics[split] for seed in seeds if (study.reference, seed) in done}
    is_reference = arm.name == study.reference
    names = list(mine[seeds[0]]) if seeds else []
    verdict = None if is_reference else settle(contrast)
    return ArmVerdict(
        arm=arm.name,
        levels=arm.levels,
        seeds=seeds,
        failed=tuple(
            {"seed": outcome.seed, "reason": outcome.failure}
            for outcome in outcomes
            if outcome.arm == arm.name and outcome.failure is not None
        ),
        metrics=_summaries({name: [mine[seed][name] for seed in seeds] for name in names}),
        differences={}
        if is_reference
        else _summaries({name: [_minus(mine[seed][name], theirs[seed][name]) for seed in theirs] for name in names}),
        difference=contrast,
        verdict=verdict,
        words="the reference" if verdict is None else in_words(verdict, contrast, study.margin),
    )


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _summaries(values: Mapping[str, Sequence[float | None]]) -> dict[str, Summary]:
    """Of each metric that at least one seed has."""
    made = {}
    for name, given in values.items():
        value_S = np.array([value for value in given if value is not None], dtype=float)
        if len(value_S) == 0:
            continue
        several = len(value_S) > 1
        low, high = t_interval(value_S) if several else (0.0, 0.0)
        made[name] = Summary(
            mean=float(value_S.mean()),
            sd=float(value_S.std(ddof=1)) if several else None,
            ci95=(float(low), float(high)) if several else None,
            seeds=len(value_S),
        )
    return made


def _effect_verdict(effect: Effect, contrast: Contrast | None, study: Study) -> EffectVerdict:
    verdict = settle(contrast)
    return EffectVerdict(
        effect=effect.name,
        factors=effect.factors,
        meaning=effect.meaning,
        difference=contrast,
        verdict=verdict,
        words=in_words(verdict, contrast, study.margin, of_effect=True),
    )


def _warnings(study: Study, arms: Sequence[ArmVerdict]) -> list[str]:
    warnings = []
    for arm in arms:
        if arm.failed:
            seeds = ", ".join(str(failed["seed"]) for failed in arm.failed)
            warnings.append(
                f"arm {arm.arm}: {len(arm.failed)} of {len(study.seeds)} runs failed (seed {seeds}) and are in no "
                f"figure, which flatters the arm: {arm.failed[0]['reason']}"
            )
    needed = seeds_for_any_verdict(len(arms) - 1)
    if len(study.seeds) < needed:
        warnings.append(
            f"{len(study.seeds)} seeds cannot find any difference to the reference, whatever it is: the exact test "
            f"with Holm over {len(arms) - 1} needs {needed} seeds (--seeds 0-{needed - 1})"
        )
    return warnings


def _untrained(arms: Sequence[ArmVerdict], done: Mapping[tuple[str, int], Outcome]) -> list[str]:
    """A warning of runs whose training changed nothing: arms that kept one start are equal whatever their settings."""
    kept = {arm.arm: sum(done[arm.arm, seed].kept_start for seed in arm.seeds) for arm in arms}
    told = [f"{kept[arm.arm]} of {len(arm.seeds)} runs of arm {arm.arm}" for arm in arms if kept[arm.arm]]
    if not told:
        return []
    return [
        f"{', '.join(told)} kept their start at CCA, as no epoch was better: in them nothing that was trained is "
        'compared; train for more epochs, or from drawn weights (init = "random")'
    ]
