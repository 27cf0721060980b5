"""From the outcomes of all runs to statistics, and to a verdict in words for every arm.

Differences are in points of mean recall on the evaluated split, paired by seed. The exact sign-flip test, with Holm
over the contrasts of one table, decides whether two arms differ, for these test images; two one-sided tests, with Holm
too, whether they are equivalent within the margin; the crossed interval says what other test images may show.
"""

# A arms, S seeds, C contrasts, R runs, B resamples.

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignvl_cli.ablation.crossed import ImageHits, crossed_interval, image_resamples
from alignvl_cli.ablation.factorial import Effect, effects
from alignvl_cli.ablation.records import PRIMARY, Outcome
from alignvl_cli.ablation.statistics import (
    LEVEL,
    equivalence_p,
    holm,
    seeds_for_any_verdict,
    seeds_to_settle,
    sign_flip_floor,
    sign_flip_p,
    t_interval,
)
from alignvl_cli.ablation.study import Study
from alignvl_cli.ablation.verdicts import ArmVerdict, Contrast, EffectVerdict, StudyVerdicts, Summary, in_words, settle


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
