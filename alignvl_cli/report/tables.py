"""Plain tables of text, drawn for the terminal, as Markdown, as LaTeX (booktabs) or as CSV."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from alignvl_cli.report.text import markdown, safe, visible

LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    '"': r"\textquotedbl{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
}
LEAST_WORDS = 28
"""Letters to a line that words at the end of a row are given beside its figures, if they are as many."""
UNBOUNDED = 10_000
"""Columns that nothing is folded in."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet computes a cell that begins like this, unless it is a number."""


@dataclass(frozen=True, slots=True)
class Cell:
    text: str
    bold: bool = False
    below: str = ""
    """A second line; beside the first where there is but one."""

    @property
    def line(self) -> str:
        return f"{self.text} ({self.below})" if self.below else self.text


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    headers: tuple[str, ...]
    left: tuple[int, ...]
    """Columns of words; the others are figures, set to the right."""
    rows: tuple[tuple[Cell, ...], ...]


def terminal(tables: Sequence[Table], notes: Sequence[str] = (), warnings: Sequence[str] = ()) -> RenderableType:
    """All of them, one below the other."""
    return Group(
        *(part for table in tables for part in (_Fitted(table), Text(""))),
        *(safe(note, "dim") for note in notes),
        *(safe(f"warning: {warning}", "yellow") for warning in warnings),
    )


def as_markdown(tables: Sequence[Table], notes: Sequence[str] = (), warnings: Sequence[str] = ()) -> str:
    parts = []
    for table in tables:
        rules = ["---" if number in table.left else "---:" for number in range(len(table.headers))]
        lines = [[markdown(header) for header in table.headers], rules]
        lines += [
            [f"**{markdown(cell.line)}**" if cell.bold else markdown(cell.line) for cell in row] for row in table.rows
        ]
        parts.append(f"**{markdown(table.title)}**\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
    ends = [*notes, *(f"warning: {warning}" for warning in warnings)]
    if ends:
        parts.append("  \n".join(markdown(end) for end in ends))
    return "\n\n".join(parts) + "\n"


def as_latex(tables: Sequence[Table], notes: Sequence[str] = (), warnings: Sequence[str] = ()) -> str:
    """A `tabular` each, for the package booktabs; notes as comments."""
    parts = []
    for table in tables:
        columns = "".join("l" if number in table.left else "r" for number in range(len(table.headers)))
        lines = [f"% {visible(table.title)}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
        lines += [" & ".join(latex(header) for header in table.headers) + r" \\", r"\midrule"]
        for row in table.rows:
            cells = (rf"\textbf{{{latex(cell.line)}}}" if cell.bold else latex(cell.line) for cell in row)
            lines.append(" & ".join(cells) + r" \\")
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]))
    ends = [*notes, *(f"warning: {warning}" for warning in warnings)]
    return (
        "\n\n".join(["% needs \\usepackage{booktabs} and \\usepackage[T1]{fontenc}", *parts])
        + "".join(f"\n% {visible(end)}" for end in ends)
        + "\n"
    )


def latex(text: str) -> str:
    """`text` as LaTeX shows it to the letter."""
    return "".join(LATEX.get(letter, letter) for letter in visible(text))


def as_csv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """One table of whole figures; text that a spreadsheet would take for a formula gets an apostrophe before it."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_harmless(value) for value in row])
    return stream.getvalue()


def _harmless(value: object) -> object:
    if isinstance(value, str):
        return f"'{visible(value)}" if value.startswith(FORMULA) else visible(value)
    return "" if value is None else value


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A table for a terminal of any width: where the words at the end of its rows would be squeezed, they are a table
    of their own below the figures."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        figures = max((number for number in range(len(self.table.headers)) if number not in self.table.left), default=0)
        words = range(figures + 1, len(self.table.headers))
        taken = self._width(range(figures + 1), console, options)
        taken += sum(min(self._width([number], console, options), LEAST_WORDS) for number in words)
        if not figures or not words or taken <= options.max_width:
            yield _drawn(self.table)
        else:
            yield _drawn(self._part(range(figures + 1)))
            yield _drawn(replace(self._part([0, *words]), title=""))

    def _width(self, numbers: Sequence[int], console: Console, options: ConsoleOptions) -> int:
        """Of these columns, unfolded."""
        return Measurement.get(console, options, _drawn(self._part(numbers))).maximum

    def _part(self, numbers: Sequence[int]) -> Table:
        """The same rows with these columns alone."""
        return replace(
            self.table,
            headers=tuple(self.table.headers[number] for number in numbers),
            left=tuple(place for place, number in enumerate(numbers) if number in self.table.left),
            rows=tuple(tuple(row[number] for number in numbers) for row in self.table.rows),
        )


@dataclass(frozen=True, slots=True)
class FirstThatFits:
    """The first of several shapes of one table that a terminal is wide enough for, unfolded; else the last."""

    shapes: Sequence[RenderableType]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        unbounded = options.update(max_width=UNBOUNDED)
        for shape in self.shapes[:-1]:
            if Measurement.get(console, unbounded, shape).maximum <= options.max_width:
                yield shape
                return
        yield self.shapes[-1]


def _drawn(table: Table) -> RichTable:
    drawn = RichTable(
        title=safe(table.title, "bold") if table.title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        header_style="bold",
        pad_edge=False,
    )
    for number, header in enumerate(table.headers):
        is_left = number in table.left
        # The names in front are folded last: they are what a row is known by.
        drawn.add_column(safe(header), justify="left" if is_left else "right", overflow="fold", no_wrap=number == 0)
    for row in table.rows:
        drawn.add_row(*map(_drawn_cell, row))
    return drawn


def _drawn_cell(cell: Cell) -> Text:
    drawn = safe(cell.text, "bold" if cell.bold else "")
    if cell.below:
        drawn.append(f"\n{visible(cell.below)}", style="not bold dim")
    return drawn
