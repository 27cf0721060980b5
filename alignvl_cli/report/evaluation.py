"""Recall tables: one run by direction, or several runs side by side.

How well images are named: the totals, and each class.

How unevenly gallery rows are found, before and after a correction.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from alignvl_cli.report.tables import FirstThatFits
from alignvl_cli.report.text import safe, visible, visible_lines

if TYPE_CHECKING:
    from alignvl_cli.retrieval.classify import Classification
    from alignvl_cli.retrieval.evaluate import Evaluation
    from alignvl_cli.retrieval.hubness import Occurrence
    from alignvl_cli.retrieval.metrics import DirectionMetrics

DIRECTIONS = {"image_to_text": "image to text", "text_to_image": "text to image"}
STACKED = {"image to text": "image\nto text\n", "text to image": "text to\nimage\n", "": ""}
"""The directions above a narrow column."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure as it is shown; what it is compared by is what is shown."""

    text: str
    best: bool = False
    difference: str = ""
    """To the first run; empty for the first, and where nothing is compared."""
    interval: str = ""
    """95 % interval, of the difference where there is one; empty where none was computed."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table before it is drawn: names on the left, figures on the right."""

    corner: str
    headers: list[tuple[str, str]]
    """(group, column) of each figure; the group is empty where there is none."""
    rows: list[tuple[str, list[Cell]]]
    """A name, which may have several lines, and its figures."""


def evaluation_table(evaluations: Sequence["Evaluation"]) -> RenderableType:
    """The recall table of one run, or of several on one evaluation set, with what was counted beneath it."""
    notes = [Text(note) for note in recall_notes(evaluations)]
    warnings = [safe(f"warning: {warning}", "yellow") for warning in _warnings(evaluations)]
    return Group(fitted(recall_grid(evaluations)), *notes, *warnings)


def beyond_table(evaluations: Sequence["Evaluation"]) -> Table:
    """COCO under verdicts wider than its pairs: a row a run, verdicts and direction."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("run", overflow="fold")
    for column in ("verdicts", "direction", "queries", "mAP@R", "R@1", "R@5", "R@10"):
        table.add_column(column, justify="left" if column in ("verdicts", "direction") else "right")
    for name, evaluation in zip(short_names([found.run for found in evaluations]), evaluations, strict=True):
        for verdicts, directions in (evaluation.beyond.verdicts if evaluation.beyond else {}).items():
            for direction, found in directions.items():
                figures = (f"{figure:.1f}" for figure in (found.map_at_r, *found.hit_rate.values()))
                table.add_row(safe(name), verdicts, DIRECTIONS[direction], f"{found.queries:,}", *figures)
    return table


def short_names(paths: Sequence[str]) -> list[str]:
    """The shortest endings of the paths, in whole parts, that tell them apart; equal paths stay equal."""
    distinct = {PurePath(path).parts for path in paths}
    taken = 1
    while len({parts[-taken:] for parts in distinct}) < len(distinct):
        taken += 1
    return [str(PurePath(*PurePath(path).parts[-taken:])) for path in paths]


def recall_grid(evaluations: Sequence["Evaluation"]) -> Grid:
    """One run by direction, or several side by side."""
    return _by_direction(evaluations[0]) if len(evaluations) == 1 else _side_by_side(evaluations)


def _by_direction(evaluation: "Evaluation") -> Grid:
    ci95 = evaluation.resampled.ci95() if evaluation.resampled else None
    rows = []
    for direction, words in DIRECTIONS.items():
        intervals = ci95[direction] if ci95 else {}
        rows.append((words, _direction_cells(getattr(evaluation.metrics, direction), intervals)))
    corrected = evaluation.hubness.corrected if evaluation.hubness else None
    if corrected:
        for direction, words in DIRECTIONS.items():
            name = f"{words}, {corrected.name}" + (" (transductive)" if corrected.transductive else "")
            rows.append((name, _direction_cells(getattr(corrected.metrics, direction), {})))
    columns = [*evaluation.metrics.image_to_text.hit_rate, "mAP@R", "median rank", "mean rank", "MRR"]
    return Grid("direction", [("", column) for column in columns], rows)


def _direction_cells(metrics: "DirectionMetrics", intervals: Mapping[str, Sequence[float]]) -> list[Cell]:
    """The figures of a row; `intervals` has [low, high] by the metric's name."""

    def cell(name: str, figure: float, form: str = ".1f") -> Cell:
        return Cell(format(figure, form), interval=_interval(intervals.get(name), form))

    return [
        *(cell(name, rate) for name, rate in metrics.hit_rate.items()),
        cell("mAP@R", metrics.map_at_r),
        cell("median_rank", metrics.median_rank, "g"),
        cell("mean_rank", metrics.mean_rank),
        cell("mrr", metrics.mrr, ".3f"),
    ]


def _interval(bounds: Sequence[float] | None, form: str = ".1f", sign: str = "") -> str:
    return "" if bounds is None else f"{bounds[0]:{sign}{form}} to {bounds[1]:{sign}{form}}"


def _side_by_side(evaluations: Sequence["Evaluation"]) -> Grid:
    """A row a run; compared as shown, so that equal figures share the bold and a difference adds up on paper."""
    recalls = list(evaluations[0].metrics.image_to_text.hit_rate)
    asked = [(direction, recall) for direction in DIRECTIONS for recall in recalls]
    figures = [
        [
            round(figure, 1)
            for figure in (
                *evaluation.metrics.image_to_text.hit_rate.values(),
                *evaluation.metrics.text_to_image.hit_rate.values(),
                evaluation.metrics.rsum,
            )
        ]
        for evaluation in evaluations
    ]
    best = [max(column) for column in zip(*figures, strict=True)]
    names = [visible(name) for name in short_names([evaluation.run for evaluation in evaluations])]
    rows = []
    for number, (name, line) in enumerate(zip(names, figures, strict=True)):
        differences = [
            f"{figure - first:+.1f}" if number else "" for figure, first in zip(line, figures[0], strict=True)
        ]
        intervals = _side_by_side_intervals(evaluations[number], evaluations[0] if number else None, asked)
        cells = [
            Cell(f"{figure:.1f}", figure == top, difference, interval)
            for figure, top, difference, interval in zip(line, best, differences, intervals, strict=True)
        ]
        rows.append((name, cells))
    headers = [(DIRECTIONS[direction], column) for direction, column in asked]
    return Grid("run", [*headers, ("", "RSUM")], rows)


def _side_by_side_intervals(
    evaluation: "Evaluation", first: "Evaluation | None", asked: Sequence[tuple[str, str]]
) -> list[str]:
    """Of the figures for the first run, of the differences to it for the others."""
    resampled = evaluation.resampled
    if resampled is None:
        return [""] * (len(asked) + 1)
    if first is not None and first.resampled is not None:
        resampled = resampled.less(first.resampled)
    ci95, sign = resampled.ci95(), "+" if first else ""
    bounds = [*(ci95[direction][column] for direction, column in asked), ci95["rsum"]]
    return [_interval(pair, sign=sign) for pair in bounds]


def fitted(grid: Grid) -> RenderableType:
    """A row a name; where the terminal is too narrow for that a column a name, two names to a table, or one."""
    folded = replace(grid, rows=[(name.replace(", ", ",\n"), cells) for name, cells in grid.rows])
    pairs = [replace(grid, rows=grid.rows[start : start + 2]) for start in range(0, len(grid.rows), 2)]
    singles = [replace(grid, rows=[row]) for row in grid.rows]
    apart = [Group(*map(_down, parts)) for parts in (pairs, singles)]
    return FirstThatFits([_across(grid), _across(folded), _down(grid), *apart])


def _across(grid: Grid) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column(grid.corner, no_wrap=True)
    for group, column in grid.headers:
        table.add_column(STACKED[group] + column, justify="right", no_wrap=True)
    for name, cells in grid.rows:
        table.add_row(Text(visible_lines(name)), *map(_drawn_cell, cells))
    return table


def _down(grid: Grid) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("")
    for name, _ in grid.rows:
        table.add_column(Text(visible_lines(name)), justify="right", overflow="fold")
    for number, (group, column) in enumerate(grid.headers):
        table.add_row(f"{group} {column}".strip(), *(_drawn_cell(cells[number]) for _, cells in grid.rows))
    return table


def _drawn_cell(cell: Cell) -> Text:
    drawn = Text(cell.text, style="bold" if cell.best else "")
    for line in (cell.difference, cell.interval):
        if line:
            drawn.append(f"\n{line}", style="not bold dim")
    return drawn


def recall_notes(evaluations: Sequence["Evaluation"]) -> list[str]:
    """What stands under every table: sums, evaluation set, protocol, and how far the FAISS index is right."""
    first = evaluations[0]
    fewest, most = first.captions_per_image
    an_image = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    selection = ", ".join(dict.fromkeys(evaluation.selection_split for evaluation in evaluations))
    agreement = min(evaluation.agreement.share for evaluation in evaluations)
    return [
        *_sums(evaluations),
        f"split {visible(first.split)} of {visible(first.store)}; epoch selected on split {visible(selection)}",
        f"{first.images:,} images, {first.captions:,} captions ({an_image} an image), "
        f"{first.repeated_captions:,} of them repeat another's text",
        first.protocol.text,
        f"FAISS Flat index: {agreement:.2%} of its first 10 are the exact ones",
    ]


def _sums(evaluations: Sequence["Evaluation"]) -> list[str]:
    """RSUM of one run, or what the further lines of several are; and what the intervals are, if there are any."""
    first, resampled = evaluations[0], evaluations[0].resampled
    ci95 = resampled.ci95() if resampled else {}
    sums = "second line: difference to the first run"
    if len(evaluations) == 1:
        figures = {"RSUM": ("rsum", first.metrics.rsum), "mean recall": ("mean_recall", first.metrics.mean_recall)}
        sums = ", ".join(
            f"{words} {figure:.1f}" + (f" ({_interval(ci95[name])})" if ci95 else "")
            for words, (name, figure) in figures.items()
        )
    if not ci95:
        return [sums]
    paired = "" if len(evaluations) == 1 else "; for the others of the difference, all runs resampled alike"
    return [
        sums,
        f"95 % intervals: {ci95['resamples']:,} resamples of images with their captions, galleries fixed{paired}",
    ]


def _warnings(evaluations: Sequence["Evaluation"]) -> list[str]:
    """Each warning once."""
    return list(dict.fromkeys(warning for evaluation in evaluations for warning in evaluation.warnings))


def classification_table(found: "Classification") -> RenderableType:
    """Top-1, top-5 and the mean over classes, then a row a class, the commonest first; what was counted beneath."""
    totals = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for column in ("top-1", "95 % interval", "top-5", "mean per class", "largest class"):
        totals.add_column(column, justify="right")
    low, high = found.top1_ci95
    figures = (found.top5, found.mean_per_class, found.largest_class)
    totals.add_row(f"{found.top1:.1f}", f"{low:.1f} to {high:.1f}", *(f"{figure:.1f}" for figure in figures))
    classes = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    classes.add_column("label", overflow="fold")
    for column in ("images", "top-1"):
        classes.add_column(column, justify="right")
    for result in sorted(found.per_class, key=lambda result: -result.images):
        classes.add_row(safe(result.label), f"{result.images:,}", f"{result.top1:.1f}")
    notes = [
        f"{found.images:,} labelled images of split {found.split} of {found.store}, {len(found.labels)} classes; "
        f"{found.unlabelled:,} without a label",
        f"each class: mean of its prompts {', '.join(found.templates)}; ties lose",
        "largest class: what always naming the commonest label would reach",
    ]
    return Group(totals, classes, *(safe(note) for note in notes))


HUBNESS_COLUMNS = ("skewness", "anti-hubs", "greatest hub")


def hubness_table(evaluations: Sequence["Evaluation"]) -> RenderableType:
    """A row a run, direction and correction: skewness, anti-hubs, the greatest hub, and recalls."""
    columns = [*HUBNESS_COLUMNS, *evaluations[0].metrics.image_to_text.hit_rate]
    several = len(evaluations) > 1
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for name in ("run", "direction", "correction")[not several :]:
        table.add_column(name)
    for column in columns:
        table.add_column(column, justify="right")
    narrow = Grid("", [("", column) for column in columns], [])
    for name, direction, correction, *figures in hubness_rows(evaluations):
        names = [*([name] if several else []), direction, correction]
        table.add_row(*map(safe, names), *figures)
        narrow.rows.append(("\n".join(map(visible, names)), [Cell(figure) for figure in figures]))
    notes = (Text(note) for note in hubness_notes(evaluations))
    return Group(FirstThatFits([table, fitted(narrow)]), *notes)


def hubness_rows(evaluations: Sequence["Evaluation"]) -> Iterator[list[str]]:
    """Run, direction, correction, the figures under `HUBNESS_COLUMNS`, and recalls."""
    names = short_names([evaluation.run for evaluation in evaluations])
    for name, evaluation in zip(names, evaluations, strict=True):
        report = evaluation.hubness
        if report is None:
            continue
        for direction, words in DIRECTIONS.items():
            plain = getattr(evaluation.metrics, direction)
            yield [name, words, "none", *_figures(report.occurrence[direction], plain)]
            if report.corrected:
                after = getattr(report.corrected.metrics, direction)
                label = _label(report.corrected.name, report.corrected.parameters[direction])
                yield [name, words, label, *_figures(report.corrected.occurrence[direction], after)]


def _figures(found: "Occurrence", metrics: "DirectionMetrics") -> list[str]:
    return [
        "-" if found.skewness is None else f"{found.skewness:.2f}",
        f"{100 * found.antihubs:.1f} %",
        f"{found.largest:,}",
        *(f"{rate:.1f}" for rate in metrics.hit_rate.values()),
    ]


def _label(name: str, parameters: dict[str, float]) -> str:
    return f"{name} ({', '.join(f'{key} {value:.3g}' for key, value in parameters.items())})"


def hubness_notes(evaluations: Sequence["Evaluation"]) -> list[str]:
    """What stands under the table."""
    reports = [evaluation.hubness for evaluation in evaluations if evaluation.hubness]
    k = reports[0].occurrence["text_to_image"].k
    notes = [
        f"skewness of how often a gallery row is among a query's first {k} (0: evenly); anti-hubs are among nobody's"
    ]
    corrected = reports[0].corrected
    if corrected and corrected.transductive:
        notes.append(
            f"{corrected.name} is TRANSDUCTIVE: it uses all test queries together, so its rows are no result of "
            "answering one query at a time"
        )
    elif corrected:
        notes.append(f"{corrected.name}: hubs told by the training split's queries, parameters chosen on validation")
    return notes
