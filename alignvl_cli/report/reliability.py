"""The modesty report: a table of confidence against accuracy, and reliability diagrams as PNG and SVG."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from alignvl_cli.report.evaluation import DIRECTIONS, short_names
from alignvl_cli.report.figures import COLOURS, INK, SOFT, new_figure, save_figure, styled
from alignvl_cli.report.text import safe, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from alignvl_cli.retrieval.calibration import AtTemperature, Calibration, Modesty
    from alignvl_cli.retrieval.evaluate import Evaluation

MODESTY_COLUMNS = (
    "tau", "accuracy", "confidence", "overconfidence", "ECE", "ECE equal mass", "NLL", "Brier", "AUROC", "AURC",
)  # fmt: skip
STATES = {"raw": "as trained", "fitted": "tau fitted"}
FIGURE_INCHES = (8.0, 7.4)


def modesty_table(evaluations: Sequence["Evaluation"]) -> RenderableType:
    """A row each measure and run, a column each direction as trained and after the temperature fitted on validation:
    ten measures side by side do not fit a terminal of 80 columns. Notes beneath."""
    rows = list(modesty_rows(evaluations))
    columns = list(dict.fromkeys((direction, state) for _, direction, state, _ in rows))
    figures_at = {(run, direction, state): figures for run, direction, state, figures in rows}
    runs = list(dict.fromkeys(run for run, *_ in rows))
    several = len(evaluations) > 1
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for name in ("measure", "run")[: 1 + several]:
        table.add_column(name, overflow="fold", no_wrap=name == "measure")
    for direction, state in columns:
        table.add_column(f"{direction}\n{state}", justify="right")
    for number, measure in enumerate(MODESTY_COLUMNS):
        for run in runs:
            name = measure if run == runs[0] else ""
            found = [figures_at.get((run, *column)) for column in columns]
            table.add_row(name, *([safe(run)] if several else []), *(f[number] if f else "" for f in found))
    return Group(table, *(Text(note) for note in modesty_notes(evaluations)))


def save_reliability(modesty: "Modesty", title: str, stem: Path) -> list[Path]:
    """Draw both directions, as trained and fitted, to `stem`.png and `stem`.svg; UsageError without matplotlib."""
    with styled():
        states = [state for state in STATES if getattr(modesty, state) is not None]
        figure = reliability_figure(modesty, states)
        figure.suptitle(f"{visible(title)}\n{modesty.gallery_images:,} images in the gallery", fontsize=10)
        return save_figure(figure, stem)


def reliability_figure(modesty: "Modesty", states: Sequence[str]) -> "Figure":
    """A column a state (`raw`, `fitted`). Bars are accuracies of 15 equal bins of confidence, the line is perfect
    calibration; below, how many queries each bin has."""
    figure = new_figure(FIGURE_INCHES[0] / 2 * len(states), FIGURE_INCHES[1])
    axes = figure.subplots(4, len(states), squeeze=False, height_ratios=[3, 1, 3, 1], sharex=True)
    for column, state in enumerate(states):
        at: AtTemperature = getattr(modesty, state)
        for number, (direction, words) in enumerate(DIRECTIONS.items()):
            found: Calibration = getattr(at, direction)
            _draw_bars(axes[2 * number, column], found, f"{words}, {STATES[state]} (tau {at.temperature:.3f})")
            _draw_counts(axes[2 * number + 1, column], found)
    return figure


def modesty_rows(evaluations: Sequence["Evaluation"]) -> Iterator[tuple[str, str, str, list[str]]]:
    """Run, direction, temperature, and the figures under `MODESTY_COLUMNS`."""
    names = short_names([evaluation.run for evaluation in evaluations])
    for name, evaluation in zip(names, evaluations, strict=True):
        for direction, words in DIRECTIONS.items():
            for state, state_words in STATES.items():
                at = getattr(evaluation.modesty, state)
                if at is not None:
                    yield name, words, state_words, _figures(at.temperature, getattr(at, direction))


def _figures(temperature: float, found: "Calibration") -> list[str]:
    shares = (found.accuracy, found.confidence)
    return [
        f"{temperature:.3f}",
        *(f"{100 * share:.1f}" for share in shares),
        f"{100 * found.overconfidence:+.1f}",
        f"{100 * found.ece:.1f}",
        f"{100 * found.ece_equal_mass:.1f}",
        f"{found.nll:.3f}",
        f"{found.brier:.3f}",
        "-" if found.auroc is None else f"{found.auroc:.3f}",
        f"{found.aurc:.3f}",
    ]


def modesty_notes(evaluations: Sequence["Evaluation"]) -> list[str]:
    """What stands under the table."""
    reports = [evaluation.modesty for evaluation in evaluations if evaluation.modesty]
    fitted = {(report.fitted_on, report.fitted_gallery_images) for report in reports if report.fitted}
    notes = [
        f"confidence: softmax(cosine / tau) over the gallery's {reports[0].gallery_images:,} images, captions of one "
        "image summed; accuracy, confidence, overconfidence and ECE in %, NLL in nats; compare on one gallery alone"
    ]
    if fitted:
        split, images = min(fitted, key=str)
        notes.append(
            f"tau fitted: the one temperature, for both directions, of least NLL on split {split} ({images:,} images)"
        )
    return notes


def _draw_bars(axes: "Axes", found: "Calibration", title: str) -> None:
    shown = [part for part in found.diagram if part.accuracy is not None]
    lows, widths = [part.low for part in shown], [part.high - part.low for part in shown]
    accuracies = [part.accuracy or 0.0 for part in shown]
    axes.bar(lows, accuracies, widths, align="edge", color=COLOURS[0], alpha=0.75)
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle="--")
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    axes.set_title(title, fontsize=9)
    note = (
        f"ECE {100 * found.ece:.1f} %\nconfidence {100 * found.confidence:.1f} %\naccuracy {100 * found.accuracy:.1f} %"
    )
    axes.text(0.03, 0.95, note, transform=axes.transAxes, va="top", fontsize=8)


def _draw_counts(axes: "Axes", found: "Calibration") -> None:
    lows, widths = [part.low for part in found.diagram], [part.high - part.low for part in found.diagram]
    axes.bar(lows, [part.queries for part in found.diagram], widths, align="edge", color=SOFT, alpha=0.6)
    axes.set(xlabel="confidence", ylabel="queries")
