"""How unevenly gallery rows are found, before and after a correction."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from alignvl_cli.report.retrieval import DIRECTIONS, Cell, Grid, fitted, short_names
from alignvl_cli.report.tables import FirstThatFits
from alignvl_cli.report.text import safe, visible

if TYPE_CHECKING:
    from alignvl_cli.retrieval.evaluation import Evaluation
    from alignvl_cli.retrieval.hubness import Occurrence
    from alignvl_cli.retrieval.metrics import DirectionMetrics

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
