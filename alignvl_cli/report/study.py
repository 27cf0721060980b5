"""A study as tables: its arms, effects if it is factorial, recalls, and what they say; and a plan of one in words.

`verdicts` is what `verdicts.json` holds (`ablation.verdicts.StudyVerdicts`); every figure of it at full precision is in
`ablation.records.verdicts_frame`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType

from alignvl_cli.ablation.study import DEFAULT_PRIMARY, PRIMARIES, Primary
from alignvl_cli.report.evaluation import DIRECTIONS
from alignvl_cli.report.tables import Cell, Table, best_of
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


def verdicts_of(folder: Path) -> dict[str, Any]:
    """`verdicts.json` of a finished study, or what it would hold of the runs that are there, marked `partial`."""
    from alignvl_cli.ablation.records import STUDY, is_complete_study, read_verdicts

    if (folder / STUDY).is_file() and not is_complete_study(folder):
        from alignvl_cli.ablation.run import partial_verdicts

        return dict(json.loads(json.dumps(partial_verdicts(folder).to_json())))
    return read_verdicts(folder)


def study_tables(verdicts: Verdicts) -> list[Table]:
    """All tables of a study, the verdicts first."""
    if verdicts.get("cells"):
        from alignvl_cli.report.surface import surface_tables

        return surface_tables(verdicts)
    tables = [_arms(verdicts)]
    if verdicts["effects"]:
        tables.append(_effects(verdicts))
    return [*tables, _recalls(verdicts)]


def study_notes(verdicts: Verdicts) -> list[str]:
    """What stands under the tables: what was measured, and how it was tested."""
    if verdicts.get("cells"):
        from alignvl_cli.report.surface import surface_notes

        return surface_notes(verdicts)
    primary = PRIMARIES[verdicts["primary"]]
    evaluation, margin = verdicts["evaluation"], verdicts["margin"]
    seeds = verdicts["seeds"]
    return [
        f"split {evaluation['split']} of {evaluation['store']}; epoch selected on split "
        f"{evaluation['selection_split']}; {evaluation['images']:,} images, {evaluation['captions']:,} captions, "
        f"{evaluation['repeated_captions']:,} of them repeat another's text",
        evaluation["protocol"],
        f"{len(seeds)} seeds ({_seeds(seeds)}), the same in all arms; a difference needs {verdicts['seeds_needed']} "
        "or more",
        _measured(primary) + ", with its standard deviation over seeds",
        "difference to the reference, paired by seed: mean and 95 % t interval, for these test images; "
        "other images: 95 % interval over seeds and test images (crossed bootstrap)",
        "p: exact sign-flip test, after Holm over the rows of its table; a verdict needs 0.05 or less. "
        f"Equivalent: two one-sided tests within {counted(margin, 'point')}, after Holm too",
    ]


def _measured(primary: Primary) -> str:
    if primary.name == DEFAULT_PRIMARY:
        return "mean recall: mean of R@1, R@5 and R@10 both ways"
    return primary.words + ("; lower is better" if primary.lower_is_better else "")


def headed(verdicts: Verdicts) -> str:
    """Name and question; and how much of a study that is not finished is there."""
    partial = verdicts.get("partial")
    name = verdicts["name"]
    if partial:
        name += f" (partial: {partial['finished']:,} of {partial['runs']:,} runs)"
    return f"{name}: {verdicts['question']}" if verdicts["question"] else name


def _arms(verdicts: Verdicts) -> Table:
    primary = PRIMARIES[verdicts["primary"]]
    summaries = [arm["metrics"].get(verdicts["primary"]) for arm in verdicts["arms"]]
    rows = [
        [
            arm["arm"],
            str(len(arm["seeds"])) + (f" ({len(arm['failed'])} failed)" if arm["failed"] else ""),
            Cell(_mean_sd(summary, primary.scale), bold=is_best),
            *_contrast_cells(arm["difference"]),
            _verdict(arm),
        ]
        for arm, summary, is_best in zip(verdicts["arms"], summaries, _best(summaries, 2, primary), strict=True)
    ]
    return Table.of(
        headed(verdicts),
        ("arm", "runs", primary.words, "difference", "other images", "p", f"against {verdicts['reference']}"),
        rows,
        (0, 6),
    )


def _effects(verdicts: Verdicts) -> Table:
    rows = [
        [effect["effect"], *_contrast_cells(effect["difference"]), _verdict(effect), effect["meaning"]]
        for effect in verdicts["effects"]
    ]
    headers = ("effect", "difference", "other images", "p", "verdict", "meaning")
    unit = PRIMARIES[verdicts["primary"]].words
    return Table.of(f"Main effects and interactions, in points of {unit}", headers, rows, (0, 4, 5))


def _recalls(verdicts: Verdicts) -> Table:
    columns = []
    for metric in (*RECALLS, "rsum"):
        summaries = [arm["metrics"].get(metric) for arm in verdicts["arms"]]
        differences = [arm["differences"].get(metric) for arm in verdicts["arms"]]
        columns.append(
            [
                Cell(
                    "-" if summary is None else f"{summary['mean']:.1f}",
                    bold=is_best,
                    below="" if difference is None else signed(difference["mean"], 1),
                )
                for summary, difference, is_best in zip(summaries, differences, _best(summaries, 1), strict=True)
            ]
        )
    rows = [[arm["arm"], *cells] for arm, cells in zip(verdicts["arms"], zip(*columns, strict=True), strict=True)]
    title = "Means over seeds, and differences to the reference (descriptive: not tested)"
    return Table.of(title, ("arm", *RECALLS.values(), "RSUM"), rows)


def _contrast_cells(contrast: Mapping[str, Any] | None) -> list[Cell]:
    if contrast is None:
        return [Cell("")] * 3
    return [
        Cell(signed(contrast["mean"], 2), below=interval(contrast["ci95"])),
        Cell(interval(contrast["crossed_ci95"]) if contrast["crossed_ci95"] else "-"),
        Cell(p_value(contrast["p_holm"])),
    ]


def _verdict(judged: Mapping[str, Any]) -> str:
    return f"{MARKS.get(judged['verdict'] or '', '')} {judged['words']}".strip()


def _best(
    summaries: Sequence[Mapping[str, Any] | None], digits: int, primary: Primary = PRIMARIES[DEFAULT_PRIMARY]
) -> list[bool]:
    """The arms of the best mean, which is shown in bold; that says nothing of a difference."""
    scale = -primary.scale if primary.lower_is_better else primary.scale
    return best_of([None if summary is None else scale * summary["mean"] for summary in summaries], digits)


def _mean_sd(summary: Mapping[str, Any] | None, scale: float) -> str:
    if summary is None:
        return "-"
    return f"{scale * summary['mean']:.2f}" + ("" if summary["sd"] is None else f" ± {scale * summary['sd']:.2f}")


def interval(bounds: tuple[float, float] | list[float]) -> str:
    return f"{signed(bounds[0], 2)} to {signed(bounds[1], 2)}"


def signed(value: float, digits: int) -> str:
    """With its sign, and none for what rounds to nothing."""
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"


def p_value(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _seeds(seeds: list[int]) -> str:
    is_range = list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))) and len(seeds) > 2
    return f"{seeds[0]} to {seeds[-1]}" if is_range else ", ".join(map(str, seeds))


def plan_text(plan: "StudyPlan") -> RenderableType:
    """What it takes, what is there, and whether the seeds can settle it."""
    times = sorted(plan.seconds_by_arm.items(), key=lambda entry: entry[1])
    fastest, slowest = times[0], times[-1]
    a_run = f"{roughly(fastest[1])} ({fastest[0]}) to {roughly(slowest[1])} ({slowest[0]})"
    cells = f"{plan.cells} cells x " if plan.cells > 1 else ""
    lines = [
        f"{plan.name}: {plan.question}",
        f"{plan.runs:,} runs: {cells}{plan.arms} arms x {plan.seeds} seeds; {plan.finished:,} of them finished",
        *plan.notes,
        f"a run takes about {a_run}, by {plan.measured}",
        f"what is left takes about {roughly(plan.seconds)}, {plan.processes} at a time on {plan.device} with "
        f"{counted(plan.threads, 'thread')} each",
        f"disk: about {as_size(plan.disk_bytes)} more, {as_size(plan.free_bytes)} free, in {plan.folder}",
    ]
    if plan.disk_bytes > plan.free_bytes:
        lines.append("that is more than there is")
    test = "exact sign-flip test" + ("" if plan.cells > 1 else f", Holm over {plan.arms - 1}")
    if plan.can_settle:
        lines.append(f"{plan.seeds} seeds can settle it: {plan.seeds_needed} or more are needed ({test})")
    else:
        lines.append(
            f"{counted(plan.seeds, 'seed')} cannot find any difference: "
            f"{plan.seeds_needed} are needed ({test}), "
            f"e.g. --seeds 0-{plan.seeds_needed - 1}"
        )
    return Group(*map(safe, lines))
