"""What a study settled: values, the rule that makes a verdict of a contrast, and its words."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from alignvl_cli.ablation.records import VERDICTS_SCHEMA
from alignvl_cli.ablation.statistics import LEVEL

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
