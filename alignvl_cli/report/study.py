"""A study's verdicts as tables: one of arms, one of effects if it is factorial, one of recalls; and what they say.

A table is made once, as text, and drawn by `report.tables` for the terminal or as Markdown, LaTeX or CSV. `verdicts`
is what `verdicts.json` holds (`ablation.verdicts.StudyVerdicts`).

What a study would take, in words.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType

from alignvl_cli.report.evaluation import DIRECTIONS
from alignvl_cli.report.tables import Cell, Table
from alignvl_cli.report.text import as_size, counted, roughly, safe

if TYPE_CHECKING:
    from alignvl_cli.ablation.plan import StudyPlan

RECALLS = {
    f"{direction}.{recall}": f"{words} {recall}"
    for direction, words in DIRECTIONS.items()
    for recall in ("R@1", "R@5", "R@10")
}
MARKS = {
    "better": "+",
    "worse": "-",
    "equivalent within the margin": "=",
    "different, within the margin": "=",
    "not distinguishable yet": "?",
    "not tested": "x",
}
"""Before the words of a verdict: seen at a glance, and without colours."""

Verdicts = Mapping[str, Any]


def study_tables(verdicts: Verdicts) -> list[Table]:
    """All tables of a study, the verdicts first."""
    tables = [_arms(verdicts)]
    if verdicts["effects"]:
        tables.append(_effects(verdicts))
    return [*tables, _recalls(verdicts)]


def study_notes(verdicts: Verdicts) -> list[str]:
    """What stands under the tables: what was measured, and how it was tested."""
    evaluation, margin = verdicts["evaluation"], verdicts["margin"]
    seeds = verdicts["seeds"]
    return [
        f"split {evaluation['split']} of {evaluation['store']}; epoch selected on split "
        f"{evaluation['selection_split']}; {evaluation['images']:,} images, {evaluation['captions']:,} captions, "
        f"{evaluation['repeated_captions']:,} of them repeat another's text",
        evaluation["protocol"],
        f"{len(seeds)} seeds ({_seeds(seeds)}), the same in all arms; a difference needs {verdicts['seeds_needed']} "
        "or more",
        "mean recall: mean of R@1, R@5 and R@10 both ways, with its standard deviation over seeds",
        "difference to the reference, paired by seed: mean and 95 % t interval, for these test images; "
        "other images: 95 % interval over seeds and test images (crossed bootstrap)",
        "p: exact sign-flip test, after Holm over the rows of its table; a verdict needs 0.05 or less. "
        f"Equivalent: two one-sided tests within {counted(margin, 'point')}, after Holm too",
    ]


def _arms(verdicts: Verdicts) -> Table:
    best = _best(verdicts, verdicts["primary"])
    rows = []
    for arm in verdicts["arms"]:
        summary = arm["metrics"].get(verdicts["primary"])
        runs = str(len(arm["seeds"])) + (f" ({len(arm['failed'])} failed)" if arm["failed"] else "")
        rows.append(
            [
                Cell(arm["arm"]),
                Cell(runs),
                Cell(_mean_sd(summary), bold=arm["arm"] == best),
                *_contrast_cells(arm["difference"]),
                _verdict_cell(arm),
            ]
        )
    return Table(
        title=f"{verdicts['name']}: {verdicts['question']}" if verdicts["question"] else verdicts["name"],
        headers=("arm", "runs", "mean recall", "difference", "other images", "p", f"against {verdicts['reference']}"),
        left=(0, 6),
        rows=tuple(tuple(row) for row in rows),
    )


def _effects(verdicts: Verdicts) -> Table:
    return Table(
        title="Main effects and interactions, in points of mean recall",
        headers=("effect", "difference", "other images", "p", "verdict", "meaning"),
        left=(0, 4, 5),
        rows=tuple(
            (
                Cell(effect["effect"]),
                *_contrast_cells(effect["difference"]),
                _verdict_cell(effect),
                Cell(effect["meaning"]),
            )
            for effect in verdicts["effects"]
        ),
    )


def _recalls(verdicts: Verdicts) -> Table:
    rows = []
    metrics = {**RECALLS, "rsum": "RSUM"}
    best = {metric: _best(verdicts, metric) for metric in metrics}
    for arm in verdicts["arms"]:
        cells = [Cell(arm["arm"])]
        for metric in metrics:
            summary, difference = arm["metrics"].get(metric), arm["differences"].get(metric)
            cells.append(
                Cell(
                    "-" if summary is None else f"{summary['mean']:.1f}",
                    bold=arm["arm"] == best[metric],
                    below="" if difference is None else _signed(difference["mean"], 1),
                )
            )
        rows.append(tuple(cells))
    return Table(
        title="Means over seeds, and differences to the reference (descriptive: not tested)",
        headers=("arm", *metrics.values()),
        left=(0,),
        rows=tuple(rows),
    )


def _contrast_cells(contrast: Mapping[str, Any] | None) -> list[Cell]:
    if contrast is None:
        return [Cell(""), Cell(""), Cell("")]
    return [
        Cell(_signed(contrast["mean"], 2), below=_interval(contrast["ci95"])),
        Cell(_interval(contrast["crossed_ci95"])),
        Cell(_p(contrast["p_holm"])),
    ]


def _verdict_cell(judged: Mapping[str, Any]) -> Cell:
    mark = MARKS.get(judged["verdict"] or "", "")
    return Cell(f"{mark} {judged['words']}".strip())


def _best(verdicts: Verdicts, metric: str) -> str | None:
    """The arm of the highest mean, which is shown in bold; that says nothing of a difference."""
    means = {arm["arm"]: arm["metrics"][metric]["mean"] for arm in verdicts["arms"] if metric in arm["metrics"]}
    return max(means, key=lambda name: means[name]) if means else None


def _mean_sd(summary: Mapping[str, Any] | None) -> str:
    if summary is None:
        return "-"
    return f"{summary['mean']:.2f}" + ("" if summary["sd"] is None else f" ± {summary['sd']:.2f}")


def _interval(bounds: tuple[float, float] | list[float]) -> str:
    return f"{_signed(bounds[0], 2)} to {_signed(bounds[1], 2)}"


def _signed(value: float, digits: int) -> str:
    """With its sign, and none for what rounds to nothing."""
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _seeds(seeds: list[int]) -> str:
    is_range = list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))) and len(seeds) > 2
    return f"{seeds[0]} to {seeds[-1]}" if is_range else ", ".join(map(str, seeds))


CSV_COLUMNS = (
    "kind", "name", "metric", "seeds", "mean", "sd", "ci95_low", "ci95_high",
    "difference", "difference_sd", "difference_ci95_low", "difference_ci95_high", "crossed_ci95_low",
    "crossed_ci95_high", "p", "p_holm", "equivalence_p_holm", "verdict",
)  # fmt: skip


def study_rows(verdicts: Verdicts) -> list[list[Any]]:
    """Every figure at full precision, under `CSV_COLUMNS`: a row an arm and metric, and a row an effect."""
    rows: list[list[Any]] = []
    for arm in verdicts["arms"]:
        for metric, summary in arm["metrics"].items():
            is_primary = metric == verdicts["primary"]
            tested = _tested(arm["difference"] if is_primary else None)
            difference = _moments(arm["differences"].get(metric))
            verdict = arm["verdict"] if is_primary else None
            rows.append(
                ["arm", arm["arm"], metric, summary["seeds"], *_moments(summary), *difference, *tested, verdict]
            )
    for effect in verdicts["effects"]:
        contrast = effect["difference"]
        seeds = contrast and contrast["seeds"]
        figures = [*_moments(None), *_moments(contrast), *_tested(contrast)]
        rows.append(["effect", effect["effect"], verdicts["primary"], seeds, *figures, effect["verdict"]])
    return rows


def _moments(summary: Mapping[str, Any] | None) -> list[Any]:
    if summary is None:
        return [None] * 4
    return [summary["mean"], summary["sd"], *(summary["ci95"] or (None, None))]


def _tested(contrast: Mapping[str, Any] | None) -> list[Any]:
    if contrast is None:
        return [None] * 5
    return [*contrast["crossed_ci95"], contrast["p"], contrast["p_holm"], contrast["equivalence_p_holm"]]


def plan_text(plan: "StudyPlan") -> RenderableType:
    """What it takes, what is there, and whether the seeds can settle it."""
    times = sorted(plan.seconds_by_arm.items(), key=lambda entry: entry[1])
    fastest, slowest = times[0], times[-1]
    a_run = f"{roughly(fastest[1])} ({fastest[0]}) to {roughly(slowest[1])} ({slowest[0]})"
    lines = [
        f"{plan.name}: {plan.question}",
        f"{plan.runs:,} runs: {plan.arms} arms x {plan.seeds} seeds; {plan.finished:,} of them finished",
        f"a run takes about {a_run}, by {plan.measured}",
        f"what is left takes about {roughly(plan.seconds)}, {plan.processes} at a time on {plan.device} with "
        f"{counted(plan.threads, 'thread')} each",
        f"disk: about {as_size(plan.disk_bytes)} more, {as_size(plan.free_bytes)} free, in {plan.folder}",
    ]
    if plan.disk_bytes > plan.free_bytes:
        lines.append("that is more than there is")
    contrasts = plan.arms - 1
    if plan.can_settle:
        lines.append(
            f"{plan.seeds} seeds can settle it: {plan.seeds_needed} or more are needed "
            f"(exact sign-flip test, Holm over {contrasts})"
        )
    else:
        lines.append(
            f"{counted(plan.seeds, 'seed')} cannot find any difference: "
            f"{plan.seeds_needed} are needed (exact sign-flip test, Holm over {contrasts}), "
            f"e.g. --seeds 0-{plan.seeds_needed - 1}"
        )
    return Group(*map(safe, lines))
