"""Plots: a study's differences to its reference, curves over a setting, learning curves; reliability of arms and runs.

`verdicts` and `study` are what `verdicts.json` and `study.json` hold.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignvl_cli.ablation.study import PRIMARIES
from alignvl_cli.artifacts import canonical_json
from alignvl_cli.report.evaluation import DIRECTIONS
from alignvl_cli.report.figures import COLOURS, INK, SOFT, Plot, label, line_style, new_figure, save_figure, styled
from alignvl_cli.report.text import counted, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from alignvl_cli.ablation.analysis import LearningCurve, Reliability
    from alignvl_cli.retrieval.calibration import AtTemperature, Calibration, Modesty

Json = Mapping[str, Any]

VERDICT_STYLE = {
    "better": (COLOURS[0], "^"),
    "worse": (COLOURS[1], "v"),
    "different, within the margin": (COLOURS[2], "D"),
    "equivalent within the margin": (COLOURS[2], "s"),
}
"""Colour and mark of a difference by its verdict; all others are grey dots."""
UNDECIDED = (SOFT, "o")
WIDTH = 5.6
LOG_FROM = 8
"""Greatest over smallest value of a sweep from which its axis is logarithmic."""
SWEEP_VALUES = 3
HALF_WIDTH = 4.0
ENOUGH_QUERIES = 20
"""In a bin, over all seeds, for its accuracy to be drawn."""
MARKS = 8
"""That a learning curve has, about."""
RELIABILITY = "reliability-"
"""Names of the plots by direction begin so."""


def study_plots(
    verdicts: Json,
    study: Json,
    curves: Mapping[str, "LearningCurve"],
    reliability: Mapping[str, Mapping[str, "Reliability"]],
) -> Iterator[Plot]:
    """Every plot that there is something to draw of; learning curves by arm, reliability by direction and arm."""
    explained = (
        "Thick: 95 % interval over seeds, for these test images. Thin: over seeds and test images. Grey: the margin "
        f"of {counted(verdicts['margin'], 'point')} within which arms count as equivalent."
    )
    arms = [arm for arm in verdicts["arms"] if arm["verdict"] is not None]
    unit = PRIMARIES[verdicts["primary"]].words
    yield Plot(
        name="differences",
        title=f"Differences to {verdicts['reference']}.",
        caption=explained,
        draw=partial(forest, verdicts["margin"], arms, [arm["arm"] for arm in arms], verdicts["reference"], unit),
    )
    if effects := verdicts["effects"]:
        yield Plot(
            name="effects",
            title="Main effects and interactions.",
            caption=explained,
            draw=partial(forest, verdicts["margin"], effects, [effect["effect"] for effect in effects], "", unit),
        )
    for sweep in find_sweeps(study):
        yield Plot(
            name=f"sweep-{sweep.key}",
            title=f"{unit[0].upper()}{unit[1:]} over {sweep.key}.",
            caption="Means over seeds; the band is the 95 % t interval over seeds.",
            draw=partial(sweep_plot, verdicts, sweep),
        )
    if curves:
        chosen = verdicts["evaluation"]["selection_split"]
        yield Plot(
            name="learning",
            title="Learning curves.",
            caption=f"Mean recall on split {chosen}, which selects the epoch, as a mean over seeds with its 95 % t "
            "interval, as far as all seeds were trained.",
            draw=partial(learning_plot, curves, chosen),
        )
    for direction, arms_of in reliability.items():
        yield Plot(
            name=f"{RELIABILITY}{direction.replace('_', '-')}",
            title=f"Reliability, {DIRECTIONS[direction]}.",
            caption="Accuracy by confidence, as trained, all seeds together; below the dashed line an arm is surer "
            f"than it is right. Points of {ENOUGH_QUERIES} queries or more.",
            draw=partial(reliability_plot, arms_of),
        )


def forest(
    margin: float, rows: Sequence[Json], names: Sequence[str], against: str = "", unit: str = "mean recall"
) -> "Figure":
    """Mean difference of each row (an arm or an effect) in points of `unit`, its interval over seeds, and, where it is
    known, over seeds and test images."""
    figure = new_figure(WIDTH, 1.15 + 0.42 * len(rows))
    axes = figure.subplots()
    axes.axvspan(-margin, margin, color=SOFT, alpha=0.14, linewidth=0)
    axes.axvline(0, color=INK, linewidth=0.8)
    for place, row in enumerate(rows):
        difference = row["difference"]
        if difference is None:
            axes.text(0, place, "not tested", va="center", ha="center", color=SOFT)
            continue
        colour, marker = VERDICT_STYLE.get(row["verdict"], UNDECIDED)
        if difference.get("crossed_ci95"):
            axes.plot(difference["crossed_ci95"], [place, place], color=colour, linewidth=1)
        axes.plot(difference["ci95"], [place, place], color=colour, linewidth=4, solid_capstyle="butt", alpha=0.6)
        axes.plot(difference["mean"], place, marker=marker, color=colour, markersize=7)
    axes.set_yticks(range(len(rows)), [label(name) for name in names])
    axes.set(
        ylim=(len(rows) - 0.4, -0.6),
        xlabel=f"points of {unit}" + (f", against {label(against)}" if against else ""),
    )
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    _widen(axes, margin)
    return figure


def _widen(axes: "Axes", margin: float) -> None:
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, -1.25 * margin), max(high, 1.25 * margin))


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """Arms that are alike but for one number: a line for each way that the others are alike."""

    key: str
    lines: tuple[tuple[str, tuple[tuple[float, str], ...]], ...]
    """(what sets the line apart from the others, ((value, arm), ascending))."""


def find_sweeps(study: Json) -> list[Sweep]:
    """Every setting with a number that three arms or more vary, all their other settings being equal."""
    settings = {arm: dict(facts["settings"]) for arm, facts in study["arms"].items()}
    sweeps = []
    for key in next(iter(settings.values())):
        groups: dict[str, dict[float, str]] = {}
        for arm, values in settings.items():
            if _is_number(values[key]):
                rest = canonical_json({name: value for name, value in values.items() if name != key})
                groups.setdefault(rest, {})[values[key]] = arm
        found = [group for group in groups.values() if len(group) >= SWEEP_VALUES]
        if found:
            first = [settings[next(iter(group.values()))] for group in found]
            lines = tuple(
                (_apart(key, values, first), tuple(sorted(group.items())))
                for values, group in zip(first, found, strict=True)
            )
            sweeps.append(Sweep(key=key.replace("_", "-"), lines=lines))
    return sweeps


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _apart(key: str, values: Json, all_values: Sequence[Json]) -> str:
    """The settings besides `key` that not all lines share."""
    differing = [
        name for name in values if name != key and len({canonical_json(other[name]) for other in all_values}) > 1
    ]
    return ", ".join(f"{name.replace('_', '-')} {values[name]}" for name in differing)


def sweep_plot(verdicts: Json, sweep: Sweep) -> "Figure":
    """Mean recall over the setting's values, with 95 % t intervals over seeds as a band."""
    figure = new_figure(WIDTH, 3.4)
    axes = figure.subplots()
    summaries = {arm["arm"]: arm["metrics"].get(verdicts["primary"]) for arm in verdicts["arms"]}
    reference = summaries[verdicts["reference"]]
    on_a_line = {arm for _, points in sweep.lines for _, arm in points}
    if reference is not None and verdicts["reference"] not in on_a_line:
        axes.axhline(reference["mean"], color=INK, linestyle="--", linewidth=1, label=label(verdicts["reference"]))
        if reference["ci95"]:
            axes.axhspan(*reference["ci95"], color=INK, alpha=0.1, linewidth=0)
    for number, (name, points) in enumerate(sweep.lines):
        there = [(value, summaries[arm]) for value, arm in points if summaries[arm] is not None]
        style = line_style(number)
        axes.plot([value for value, _ in there], [found["mean"] for _, found in there], label=label(name), **style)
        banded = [(value, *found["ci95"]) for value, found in there if found["ci95"]]
        if banded:
            value_N, low_N, high_N = zip(*banded, strict=True)
            axes.fill_between(value_N, low_N, high_N, color=style["color"], alpha=0.18, linewidth=0)
    _value_axis(axes, sorted({value for _, points in sweep.lines for value, _ in points}))
    axes.set(xlabel=sweep.key, ylabel=PRIMARIES[verdicts["primary"]].words)
    _legend(axes)
    return figure


def _value_axis(axes: "Axes", values: Sequence[float]) -> None:
    """Logarithmic where the values span much, 0 then standing apart; every value has its tick."""
    above = [value for value in values if value > 0]
    if above and max(above) >= LOG_FROM * min(above) and values[0] >= 0:
        if values[0] > 0:
            axes.set_xscale("log")
        else:
            axes.set_xscale("symlog", linthresh=min(above), linscale=0.6)
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.minorticks_off()


def learning_plot(curves: Mapping[str, "LearningCurve"], chosen: str) -> "Figure":
    """Mean recall on the split `chosen`, by epoch and arm, with 95 % t intervals over seeds as a band."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(WIDTH, 3.6)
    axes = figure.subplots()
    for number, (arm, curve) in enumerate(curves.items()):
        style = line_style(number)
        apart = max(1, len(curve.epoch_V) // MARKS)
        axes.plot(curve.epoch_V, curve.mean_V, label=label(arm), markevery=apart, **style)
        if curve.ci95_V2 is not None:
            axes.fill_between(curve.epoch_V, *curve.ci95_V2.T, color=style["color"], alpha=0.15, linewidth=0)
    axes.set(xlabel="epoch", ylabel=f"mean recall on {chosen}, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes)
    return figure


def reliability_plot(arms: Mapping[str, "Reliability"]) -> "Figure":
    """Accuracy over confidence, an arm a line, in the bins that hold enough queries to tell."""
    figure = new_figure(HALF_WIDTH, HALF_WIDTH)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle="--")
    for number, (arm, found) in enumerate(arms.items()):
        enough_B = found.queries_B >= ENOUGH_QUERIES
        axes.plot(found.confidence_B[enough_B], found.accuracy_B[enough_B], label=label(arm), **line_style(number))
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", aspect="equal")
    _legend(axes, columns=2)
    return figure


def _legend(axes: "Axes", columns: int = 3) -> None:
    """Below the plot, where it hides nothing; none for a line without a name."""
    handles, names = axes.get_legend_handles_labels()
    if any(names) and len(names) > 1:
        axes.figure.legend(handles, names, loc="outside lower center", ncols=min(columns, len(names)), fontsize=9)


AT = {"raw": "as trained", "fitted": "tau fitted"}
"""Temperatures of a modesty report, in words."""
FIGURE_INCHES = (8.0, 7.4)


def save_reliability(modesty: "Modesty", title: str, stem: Path) -> list[Path]:
    """Draw both directions, as trained and fitted, to `stem`.png and `stem`.svg; UsageError without matplotlib."""
    with styled():
        states = [state for state in AT if getattr(modesty, state) is not None]
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
            _draw_bars(axes[2 * number, column], found, f"{words}, {AT[state]} (tau {at.temperature:.3f})")
            _draw_counts(axes[2 * number + 1, column], found)
    return figure


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
