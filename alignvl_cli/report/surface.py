"""A study of several cells as tables and a heat map: arms over sets, by condition, and cell by cell.

`verdicts` is what `verdicts.json` holds of a study with [data].
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from alignvl_cli.ablation.study import PRIMARIES
from alignvl_cli.report.figures import COLOURS, SOFT, Plot, label, new_figure
from alignvl_cli.report.plots import forest
from alignvl_cli.report.study import MARKS, headed, interval, p_value, signed
from alignvl_cli.report.tables import Cell, Table
from alignvl_cli.report.text import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Verdicts = Mapping[str, Any]
LEGEND = "+ better, - worse, = equivalent or within the margin, ? not distinguishable yet, x not tested"
STYLES = {"+": "green", "-": "red"}
PRINTED = "#111111"
"""On the light colours of a heat map, which are the same on a dark page."""
SHADES = 41
"""Of colour; a bar of more would be drawn as a picture."""
DARK = 0.6
"""Share of the largest difference from which a cell's colour is dark."""
PANELS = 3
"""Heat maps beside each other."""


def surface_tables(verdicts: Verdicts) -> list[Table]:
    """Over all sets, by condition where there are several, and each cell; then the same of effects."""
    tables: list[Table] = []
    for kind in ("arm", "effect"):
        over = [found for found in verdicts["over_sets"] if found["kind"] == kind]
        if not over:
            continue
        tables.append(_over_sets(verdicts, kind, [found for found in over if found["condition"] is None]))
        if any(found["condition"] is not None for found in over):
            tables.append(_by_condition(verdicts, kind, over))
        tables.append(_heat(verdicts, kind))
    return tables


def surface_notes(verdicts: Verdicts) -> list[str]:
    """What stands under the tables: what was measured, and how it was tested."""
    evaluation, primary, seeds = verdicts["evaluation"], PRIMARIES[verdicts["primary"]], verdicts["seeds"]
    stores = dict.fromkeys(cell["evaluation"].get("store", "?") for cell in verdicts["cells"])
    several, margin = len(_sets(verdicts)) > 1, counted(verdicts["margin"], "point")
    return [
        f"split {evaluation['split']} of {', '.join(stores)}; epoch selected on split {evaluation['selection_split']}; "
        f"{counted(len(verdicts['cells']), 'cell')}, {counted(len(seeds), 'seed')} each",
        f"differences to {verdicts['reference']} in points of {primary.words}, paired by seed"
        + ("; lower is better" if primary.lower_is_better else ""),
        "over sets: "
        + (
            "random-effects mean (tau by Paule and Mandel, interval by Hartung and Knapp) of each set's mean over its "
            "cells; tau: standard deviation of the true effects of sets; I2: share of their variance that is no error; "
            "p after Holm over the rows of its table"
            if several
            else "one set alone, so the mean of its cells by seed, with a t interval over seeds; p: exact sign-flip "
            "test, after Holm over the rows of its table. It says nothing of other sets"
        ),
        "cells: 95 % t interval over seeds; the verdict by sign flips of all contrasts of all cells at once (step-down "
        f"maximum of |t|), equivalence by two one-sided tests within {margin}, after Holm over all cells: {LEGEND}",
    ]


def surface_plots(verdicts: Verdicts) -> Iterator[Plot]:
    """The means over sets, and the heat map; the same of effects."""
    unit, margin = PRIMARIES[verdicts["primary"]].words, counted(verdicts["margin"], "point")
    for kind, name in (("arm", ""), ("effect", "-effects")):
        over = [found for found in verdicts["over_sets"] if found["kind"] == kind]
        rows = [found for found in over if found["condition"] is None]
        if not rows:
            continue
        against = verdicts["reference"] if kind == "arm" else ""
        yield Plot(
            name=f"over-sets{name}",
            title="Over all sets.",
            caption=f"Mean difference and its 95 % interval. Grey: the margin of {margin}.",
            draw=partial(forest, verdicts["margin"], rows, [row["name"] for row in rows], against, unit),
        )
        yield Plot(
            name=f"heat-map{name}",
            title="Cell by cell.",
            caption=f"Difference in points of {unit}, and its verdict: {LEGEND}.",
            draw=partial(heat_map, verdicts, kind),
        )


def _sets(verdicts: Verdicts) -> list[str]:
    return list(dict.fromkeys(cell["set"] for cell in verdicts["cells"]))


def _conditions(verdicts: Verdicts) -> list[str]:
    return list(dict.fromkeys(cell["condition"] for cell in verdicts["cells"]))


def _over_sets(verdicts: Verdicts, kind: str, found: Sequence[Verdicts]) -> Table:
    rows: list[list[str | Cell]] = []
    for row in found:
        pooled = row["difference"]
        verdict = f"{MARKS[row['verdict']]} {row['words']}"
        if pooled is None:
            rows.append([row["name"], *[""] * 5, verdict])
            continue
        above = sum(effect["mean"] > 0 for effect in pooled["sets"])
        rows.append(
            [
                row["name"],
                Cell(signed(pooled["mean"], 2), below=interval(pooled["ci95"])),
                "-" if pooled["tau"] is None else f"{pooled['tau']:.2f}",
                "-" if pooled["i2"] is None else f"{pooled['i2']:.0%}",
                f"{above} of {len(pooled['sets'])}",
                p_value(pooled["p_holm"]),
                verdict,
            ]
        )
    against = f"against {verdicts['reference']}" if kind == "arm" else "verdict"
    title = headed(verdicts) if kind == "arm" else "Main effects and interactions, over all sets"
    return Table.of(title, (kind, "over sets", "tau", "I2", "positive in", "p", against), rows, (0, 6))


def _by_condition(verdicts: Verdicts, kind: str, over: Sequence[Verdicts]) -> Table:
    conditions = _conditions(verdicts)
    by_name: dict[str, dict[str, Verdicts]] = {}
    for found in over:
        by_name.setdefault(found["name"], {})[found["condition"]] = found
    rows: list[list[str | Cell]] = [
        [name, *(_effect(found[condition]) for condition in conditions)] for name, found in by_name.items()
    ]
    return Table.of("Over sets, by subset and share of wrong pairs", (kind, *conditions), rows)


def _heat(verdicts: Verdicts, kind: str) -> Table:
    conditions, found = _conditions(verdicts), _of_cells(verdicts, kind)
    rows: list[list[str | Cell]] = [
        [name, set_, *(_effect(cells.get((set_, condition))) for condition in conditions)]
        for name, cells in found.items()
        for set_ in _sets(verdicts)
    ]
    return Table.of("Each cell", (kind, "set", *(condition or "all" for condition in conditions)), rows, (0, 1))


def _effect(judged: Verdicts | None) -> Cell:
    """Difference and mark, above its interval; empty for a cell that there is not."""
    if judged is None:
        return Cell("")
    mark = MARKS[judged["verdict"]]
    if judged["difference"] is None:
        return Cell(mark)
    found = judged["difference"]
    return Cell(f"{signed(found['mean'], 2)} {mark}", below=interval(found["ci95"]), style=STYLES.get(mark, ""))


def _of_cells(verdicts: Verdicts, kind: str) -> dict[str, dict[tuple[str, str], Verdicts]]:
    """Arm or effect -> (set, condition) -> its verdict there."""
    found: dict[str, dict[tuple[str, str], Verdicts]] = {}
    for cell in verdicts["cells"]:
        for judged in cell[f"{kind}s"]:
            if judged["verdict"] is not None:
                found.setdefault(judged[kind], {})[cell["set"], cell["condition"]] = judged
    return found


def heat_map(verdicts: Verdicts, kind: str) -> "Figure":
    """A panel an arm: sets down, conditions across; colour and figure are the difference, the mark its verdict."""
    from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm

    sets, conditions, found = _sets(verdicts), _conditions(verdicts), _of_cells(verdicts, kind)
    columns = min(PANELS, len(found))
    lines = -(-len(found) // columns)
    width = max(2.3, 1.2 + 0.75 * len(conditions))
    figure = new_figure(width * columns + 0.6, (0.75 + 0.42 * len(sets)) * lines + 0.4)
    axes = figure.subplots(lines, columns, squeeze=False)
    means = [
        judged["difference"]["mean"] for cells in found.values() for judged in cells.values() if judged["difference"]
    ]
    largest = max([verdicts["margin"], *map(abs, means)])
    ends = COLOURS[1], "#f4f5f6", COLOURS[0]
    if PRIMARIES[verdicts["primary"]].lower_is_better:
        ends = ends[::-1]
    colours = LinearSegmentedColormap.from_list("effect", ends, N=SHADES).with_extremes(bad="none")
    norm = TwoSlopeNorm(0, -largest, largest)
    image = None
    for place, axis in enumerate(axes.flat):
        if place >= len(found):
            axis.set_axis_off()
            continue
        name, cells = list(found.items())[place]
        value_SC = [[_mean(cells.get((set_, condition))) for condition in conditions] for set_ in sets]
        image = axis.pcolormesh(value_SC, cmap=colours, norm=norm)
        axis.invert_yaxis()
        for row, set_ in enumerate(sets):
            for column, condition in enumerate(conditions):
                ink = "white" if abs(value_SC[row][column]) > DARK * largest else PRINTED
                text = _printed(cells.get((set_, condition)))
                axis.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7.5, color=ink)
        axis.set_title(label(name), fontsize=9)
        axis.set_xticks(
            np.arange(len(conditions)) + 0.5, [label(condition or "all") for condition in conditions], fontsize=8
        )
        named = [label(set_) if place % columns == 0 else "" for set_ in sets]
        axis.set_yticks(np.arange(len(sets)) + 0.5, named, fontsize=8)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    if image is not None:
        bar = figure.colorbar(image, ax=axes, shrink=0.8)
        bar.set_label(f"points of {PRIMARIES[verdicts['primary']].words}", fontsize=8, color=SOFT)
        bar.outline.set_visible(False)
    return figure


def _mean(judged: Verdicts | None) -> float:
    return judged["difference"]["mean"] if judged and judged["difference"] else float("nan")


def _printed(judged: Verdicts | None) -> str:
    if judged is None:
        return ""
    mark = MARKS[judged["verdict"]]
    return f"{signed(judged['difference']['mean'], 1)} {mark}" if judged["difference"] else mark
