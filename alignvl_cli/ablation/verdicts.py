"""What a study settled: from the outcomes of all runs to statistics, and to a verdict in words for every arm.

Differences are in points of the primary metric on the evaluated split, paired by seed. The exact sign-flip test, with
Holm over the contrasts of one table, decides whether two arms differ, for these test images; two one-sided tests, with
Holm too, whether they are equivalent within the margin; the crossed interval says what other test images may show. In a
study of several cells their contrasts are one family, and `contrasts.over_sets` pools them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from alignvl_cli.ablation.contrasts import Contrast, Interval, Measured, OverSets, Values, less, over_sets, tested
from alignvl_cli.ablation.records import VERDICTS_SCHEMA, Outcome, verdicts_frame
from alignvl_cli.ablation.statistics import LEVEL, Effect, effects, seeds_for_any_verdict, t_interval
from alignvl_cli.ablation.study import PRIMARIES, Study

if TYPE_CHECKING:
    import pandas


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
class CellVerdicts:
    """What a study settled on one store with one subset and share of wrong pairs."""

    cell: str
    set: str
    """What its store is called."""
    condition: str
    pairs: int
    arms: tuple[ArmVerdict, ...]
    effects: tuple[EffectVerdict, ...]
    evaluation: dict[str, Any]
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SummaryVerdict:
    """An arm, or an effect, over the sets of a study."""

    kind: str
    """`arm` or `effect`."""
    name: str
    condition: str | None
    """Of the cells it is over; None: of all."""
    difference: OverSets | None
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
    cells: tuple[CellVerdicts, ...] = ()
    """Of a study with [data], which has no `arms` and `effects` besides."""
    over_sets: tuple[SummaryVerdict, ...] = ()
    """Likewise: each arm and effect over all cells, and over those of each condition where there are several."""
    partial: dict[str, int] | None = None
    """{"runs", "finished"} while a study is not; None once it is."""

    def to_json(self) -> dict[str, Any]:
        return {"schema": VERDICTS_SCHEMA, **asdict(self)}

    def to_frame(self) -> "pandas.DataFrame":
        """A row an arm and metric, and a row an effect; columns as `ablation.records.verdicts_frame` has them."""
        return verdicts_frame(self.to_json())


Tested = Contrast | OverSets


def settle(contrast: Tested | None, *, lower_is_better: bool = False) -> Verdict:
    """Different by the test of a difference, equivalent by the two one-sided ones, both corrected for their family."""
    if contrast is None:
        return Verdict.untested
    joint = contrast.p_max_t if isinstance(contrast, Contrast) else None
    is_different = (contrast.p_holm if joint is None else joint) <= LEVEL
    is_small = contrast.equivalence_p_holm <= LEVEL
    if is_different and is_small:
        return Verdict.small
    if is_different:
        return Verdict.better if (contrast.mean > 0) != lower_is_better else Verdict.worse
    return Verdict.equivalent if is_small else Verdict.undecided


def in_words(verdict: Verdict, contrast: Tested | None, study: Study, *, of_effect: bool = False) -> str:
    """The verdict in a sentence; an effect is positive or negative where an arm is better or worse."""
    if contrast is None:
        return "not tested: fewer than two seeds are finished on both sides"
    within = f"{study.margin:g} " + ("point" if study.margin == 1 else "points")
    within += f" of {PRIMARIES[study.primary].words}"
    if verdict in (Verdict.better, Verdict.worse):
        found = verdict.value if not of_effect else "positive" if contrast.mean > 0 else "negative"
        return f"{found} by {abs(contrast.mean):.1f} points{_how_far(contrast)}"
    if verdict is Verdict.small:
        return f"different by {contrast.mean:+.1f} points, but within {within}"
    if verdict is Verdict.equivalent:
        return f"none, within {within}" if of_effect else f"equivalent within {within}"
    return f"not distinguishable yet{_how_many(contrast)}"


def _how_far(contrast: Tested) -> str:
    """Beyond what was seen."""
    if isinstance(contrast, OverSets):
        return "" if len(contrast.sets) > 1 else "; one set says nothing of others"
    if contrast.crossed_ci95 is None:
        return ""
    low, high = contrast.crossed_ci95
    return "; on other test images too" if low * high > 0 else "; other test images may not show it"


def _how_many(contrast: Tested) -> str:
    if isinstance(contrast, OverSets):
        return ""
    if contrast.seeds_to_settle is None:
        return "; more than 1,000 seeds would be needed"
    return f"; about {contrast.seeds_to_settle:,} seeds would settle it"


@dataclass(frozen=True, kw_only=True, slots=True)
class CellFacts:
    """Of a cell: what it is called, and what its runs were evaluated on."""

    cell: str
    set: str
    condition: str
    pairs: int
    """Training pairs of the store, before a subset is drawn."""
    evaluation: dict[str, Any]


ONE_CELL = CellFacts(cell="", set="", condition="", pairs=0, evaluation={})


def judge(
    study: Study,
    outcomes: Sequence[Outcome],
    split: str,
    evaluation: Mapping[str, Any],
    cells: Sequence[CellFacts] = (),
) -> StudyVerdicts:
    """The verdicts on `outcomes`, one for each arm and seed of `study`, and each of `cells` where it has [data]."""
    names = [arm.name for arm in study.arms]
    reference = names.index(study.reference)
    others = [number for number in range(len(names)) if number != reference]
    found = effects(study.factors) if study.factors else []
    done_in, arm_values, effect_values = {}, {}, {}
    for cell in cells or [ONE_CELL]:
        done = {
            (outcome.arm, outcome.seed): outcome
            for outcome in outcomes
            if outcome.cell == cell.cell and outcome.failure is None
        }
        measured = Measured(study, done, split)
        done_in[cell.cell] = done
        arm_values[cell.cell] = [measured.contrast(less(number, reference, len(names))) for number in others]
        effect_values[cell.cell] = [measured.contrast(effect.weight_A) for effect in found]
    arm_contrasts = _by_cell(arm_values, study, of_cells=bool(cells))
    effect_contrasts = _by_cell(effect_values, study, of_cells=bool(cells))
    judged = []
    for cell in cells or [ONE_CELL]:
        mine = [outcome for outcome in outcomes if outcome.cell == cell.cell]
        differences = dict(zip(others, arm_contrasts[cell.cell], strict=True))
        arms = tuple(
            _arm_verdict(study, number, mine, done_in[cell.cell], split, differences.get(number))
            for number in range(len(names))
        )
        judged.append(
            CellVerdicts(
                cell=cell.cell,
                set=cell.set,
                condition=cell.condition,
                pairs=cell.pairs,
                arms=arms,
                effects=tuple(
                    _effect_verdict(effect, contrast, study)
                    for effect, contrast in zip(found, effect_contrasts[cell.cell], strict=True)
                ),
                evaluation=dict(cell.evaluation),
                warnings=(*_failures(study, arms), *_untrained(arms, done_in[cell.cell])),
            )
        )
    over = [name for number, name in enumerate(names) if number != reference]
    summaries = (
        ()
        if not cells
        else (
            *_summaries_over(study, cells, "arm", over, arm_values),
            *_summaries_over(study, cells, "effect", [effect.name for effect in found], effect_values),
        )
    )
    needed = seeds_for_any_verdict(1 if cells else len(others))
    return StudyVerdicts(
        name=study.name,
        question=study.question,
        reference=study.reference,
        primary=study.primary,
        margin=study.margin,
        level=LEVEL,
        seeds=study.seeds,
        seeds_needed=needed,
        arms=() if cells else judged[0].arms,
        effects=() if cells else judged[0].effects,
        evaluation=dict(evaluation),
        warnings=(
            *_too_few(study, needed, 0 if cells else len(others)),
            *(f"{cell.cell}: {text}" if cells else text for cell in judged for text in cell.warnings),
        ),
        cells=tuple(judged) if cells else (),
        over_sets=summaries,
    )


def _by_cell(
    values: Mapping[str, Sequence[Values]], study: Study, *, of_cells: bool
) -> dict[str, list[Contrast | None]]:
    """The contrasts of all cells, tested as one family."""
    contrasts = iter(tested([value for mine in values.values() for value in mine], study, of_cells=of_cells))
    return {cell: [next(contrasts) for _ in mine] for cell, mine in values.items()}


def _summaries_over(
    study: Study,
    cells: Sequence[CellFacts],
    kind: str,
    names: Sequence[str],
    values: Mapping[str, Sequence[Values]],
) -> Iterator[SummaryVerdict]:
    """Over all cells, a family; then over those of each condition, if there are several, another one."""
    conditions = list(dict.fromkeys(cell.condition for cell in cells))
    families: list[Sequence[str | None]] = [[None], conditions] if len(conditions) > 1 else [[None]]
    for family in families:
        rows = [(condition, number) for condition in family for number in range(len(names))]
        pooled = over_sets([_cells_of(cells, condition, number, values) for condition, number in rows], study)
        for (condition, number), found in zip(rows, pooled, strict=True):
            verdict = settle(found, lower_is_better=PRIMARIES[study.primary].lower_is_better)
            yield SummaryVerdict(
                kind=kind,
                name=names[number],
                condition=condition,
                difference=found,
                verdict=verdict,
                words=in_words(verdict, found, study, of_effect=kind == "effect"),
            )


def _cells_of(
    cells: Sequence[CellFacts], condition: str | None, number: int, values: Mapping[str, Sequence[Values]]
) -> dict[str, list[Values]]:
    """Set -> one contrast in each of its cells of a condition."""
    by_set: dict[str, list[Values]] = {}
    for cell in cells:
        if condition is None or cell.condition == condition:
            by_set.setdefault(cell.set, []).append(values[cell.cell][number])
    return by_set


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
    lower = PRIMARIES[study.primary].lower_is_better
    verdict = None if is_reference else settle(contrast, lower_is_better=lower)
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
        words="the reference" if verdict is None else in_words(verdict, contrast, study),
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
    verdict = settle(contrast, lower_is_better=PRIMARIES[study.primary].lower_is_better)
    return EffectVerdict(
        effect=effect.name,
        factors=effect.factors,
        meaning=effect.meaning,
        difference=contrast,
        verdict=verdict,
        words=in_words(verdict, contrast, study, of_effect=True),
    )


def _failures(study: Study, arms: Sequence[ArmVerdict]) -> list[str]:
    warnings = []
    for arm in arms:
        if arm.failed:
            seeds = ", ".join(str(failed["seed"]) for failed in arm.failed)
            warnings.append(
                f"arm {arm.arm}: {len(arm.failed)} of {len(study.seeds)} runs failed (seed {seeds}) and are in no "
                f"figure, which flatters the arm: {arm.failed[0]['reason']}"
            )
    return warnings


def _too_few(study: Study, needed: int, contrasts: int) -> list[str]:
    if len(study.seeds) >= needed:
        return []
    test = f"the exact test with Holm over {contrasts}" if contrasts else "the exact test"
    return [
        f"{len(study.seeds)} seeds cannot find any difference to the reference, whatever it is: {test} needs {needed} "
        f"seeds (--seeds 0-{needed - 1})"
    ]


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
