"""Recall tables: one run by direction, or several runs side by side; for the terminal and as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from alignvl_cli.report.text import markdown, safe, visible

if TYPE_CHECKING:
    from alignvl_cli.retrieval.evaluation import Evaluation

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


@dataclass(frozen=True, slots=True)
class Grid:
    """A table before it is drawn: names on the left, figures on the right."""

    corner: str
    headers: list[tuple[str, str]]
    """(group, column) of each figure; the group is empty where there is none."""
    rows: list[tuple[str, list[Cell]]]


def evaluation_table(evaluations: Sequence["Evaluation"]) -> RenderableType:
    """The recall table of one run, or of several on one evaluation set, with what was counted beneath it."""
    notes = [Text(note) for note in _notes(evaluations)]
    warnings = [safe(f"warning: {warning}", "yellow") for warning in _warnings(evaluations)]
    return Group(_draw(_grid(evaluations)), *notes, *warnings)


def evaluation_markdown(evaluations: Sequence["Evaluation"]) -> str:
    """The same table in Markdown, the best in bold, the notes as a paragraph."""
    grid = _grid(evaluations)
    header = [grid.corner, *(f"{group} {column}".strip() for group, column in grid.headers)]
    lines = [header, ["---", *("---:" for _ in grid.headers)]]
    lines += [[markdown(name), *(_markdown_cell(cell) for cell in cells)] for name, cells in grid.rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    warnings = [f"warning: {visible(warning)}" for warning in _warnings(evaluations)]
    return table + "\n\n" + "  \n".join([*_notes(evaluations), *warnings]) + "\n"


def short_names(paths: Sequence[str]) -> list[str]:
    """The shortest endings of the paths, in whole parts, that tell them apart; equal paths stay equal."""
    distinct = {PurePath(path).parts for path in paths}
    taken = 1
    while len({parts[-taken:] for parts in distinct}) < len(distinct):
        taken += 1
    return [str(PurePath(*PurePath(path).parts[-taken:])) for path in paths]


def _grid(evaluations: Sequence["Evaluation"]) -> Grid:
    return _by_direction(evaluations[0]) if len(evaluations) == 1 else _side_by_side(evaluations)


def _by_direction(evaluation: "Evaluation") -> Grid:
    rows = []
    for direction, words in DIRECTIONS.items():
        metrics = getattr(evaluation.metrics, direction)
        cells = [Cell(f"{rate:.1f}") for rate in metrics.hit_rate.values()]
        rows.append((words, [*cells, Cell(f"{metrics.median_rank:g}"), Cell(f"{metrics.mrr:.3f}")]))
    columns = [*evaluation.metrics.image_to_text.hit_rate, "median rank", "MRR"]
    return Grid("direction", [("", column) for column in columns], rows)


def _side_by_side(evaluations: Sequence["Evaluation"]) -> Grid:
    """A row a run; compared as shown, so that equal figures share the bold and a difference adds up on paper."""
    headers = [
        (words, column)
        for direction, words in DIRECTIONS.items()
        for column in getattr(evaluations[0].metrics, direction).hit_rate
    ]
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
    names = short_names([evaluation.run for evaluation in evaluations])
    rows = []
    for number, (name, line) in enumerate(zip(names, figures, strict=True)):
        differences = [
            f"{figure - first:+.1f}" if number else "" for figure, first in zip(line, figures[0], strict=True)
        ]
        cells = [
            Cell(f"{figure:.1f}", figure == top, difference)
            for figure, top, difference in zip(line, best, differences, strict=True)
        ]
        rows.append((name, cells))
    return Grid("run", [*headers, ("", "RSUM")], rows)


def _draw(grid: Grid) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column(grid.corner, overflow="fold")
    for group, column in grid.headers:
        table.add_column(STACKED[group] + column, justify="right", no_wrap=True)
    for name, cells in grid.rows:
        table.add_row(safe(name), *map(_drawn_cell, cells))
    return table


def _drawn_cell(cell: Cell) -> Text:
    drawn = Text(cell.text, style="bold" if cell.best else "")
    return drawn.append(f"\n{cell.difference}", style="not bold dim") if cell.difference else drawn


def _markdown_cell(cell: Cell) -> str:
    figure = f"**{cell.text}**" if cell.best else cell.text
    return f"{figure} ({cell.difference})" if cell.difference else figure


def _notes(evaluations: Sequence["Evaluation"]) -> list[str]:
    """What stands under every table: sums, evaluation set, protocol, and how far the FAISS index is right."""
    first = evaluations[0]
    fewest, most = first.captions_per_image
    an_image = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    selection = ", ".join(dict.fromkeys(evaluation.selection_split for evaluation in evaluations))
    agreement = min(evaluation.agreement.share for evaluation in evaluations)
    sums = (
        [f"RSUM {first.metrics.rsum:.1f}, mean recall {first.metrics.mean_recall:.1f}"]
        if len(evaluations) == 1
        else ["second line: difference to the first run"]
    )
    return [
        *sums,
        f"split {visible(first.split)} of {visible(first.store)}; epoch selected on split {visible(selection)}",
        f"{first.images:,} images, {first.captions:,} captions ({an_image} an image), "
        f"{first.repeated_captions:,} of them repeat another's text",
        first.protocol,
        f"FAISS Flat index: {agreement:.2%} of its first 10 are the exact ones",
    ]


def _warnings(evaluations: Sequence["Evaluation"]) -> list[str]:
    """Each warning once."""
    return list(dict.fromkeys(warning for evaluation in evaluations for warning in evaluation.warnings))
