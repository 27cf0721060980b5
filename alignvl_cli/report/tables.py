"""One table, drawn for the terminal, as Markdown, as LaTeX (booktabs) or on a page; frames as CSV."""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from alignvl_cli.report.text import markdown, safe, visible

if TYPE_CHECKING:
    import pandas

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
    """Further lines; beside the first, in parentheses, where there is but one."""
    style: str = ""
    """Colour in the terminal, of the further lines where there are any; it says no more than the text does."""

    @property
    def line(self) -> str:
        return f"{self.text} ({self.below.replace(chr(10), ', ')})" if self.below else self.text


@dataclass(frozen=True, slots=True)
class Table:
    """Text in rows; rich draws it for a terminal of any width.

    Where the words at the end of its rows would be squeezed, they are a table of their own below the figures. A table
    of figures that is too wide is turned: a column a row, as many of them beside each other as there is room for.
    """

    title: str
    headers: tuple[str, ...]
    """Empty for a table of keys and values. A line feed parts a narrow column's words in the terminal alone."""
    rows: tuple[tuple[Cell, ...], ...]
    left: tuple[int, ...] = (0,)
    """Columns of words; the others are figures, set to the right."""
    cut: tuple[int, ...] = ()
    """Columns that the terminal cuts to the line; words in all others are folded."""
    notes: tuple[str, ...] = ()
    """What stands beneath it."""

    @classmethod
    def of(
        cls,
        title: str,
        headers: Sequence[str],
        rows: Sequence[Sequence[str | Cell]],
        left: Sequence[int] = (0,),
        **more: Any,
    ) -> Self:
        """Rows of cells, or of plain text."""
        cells = tuple(tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in row) for row in rows)
        return cls(title, tuple(headers), cells, tuple(left), **more)

    def part(self, columns: Sequence[int]) -> Self:
        """The same rows with these columns alone."""
        return replace(
            self,
            headers=tuple(self.headers[number] for number in columns),
            left=tuple(place for place, number in enumerate(columns) if number in self.left),
            cut=tuple(place for place, number in enumerate(columns) if number in self.cut),
            rows=tuple(tuple(row[number] for number in columns) for row in self.rows),
        )

    def turned(self, rows: slice) -> Self:
        """A column for each of `rows`, headed by its words; a row for each column of figures."""
        names = [number for number in range(len(self.headers)) if number in self.left]
        figures = [number for number in range(len(self.headers)) if number not in self.left]
        chosen = self.rows[rows]
        return replace(
            self,
            headers=("", *("\n".join(visible(row[number].text) for number in names) for row in chosen)),
            left=(0,),
            rows=tuple((Cell(one_line(self.headers[number])), *(row[number] for row in chosen)) for number in figures),
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        def width(drawn: RichTable) -> int:
            return Measurement.get(console, options.update(max_width=UNBOUNDED), drawn).maximum

        columns = range(len(self.headers))
        if self.title:
            yield safe(self.title, "bold")
        last_figure = max((number for number in columns if number not in self.left), default=0)
        words = range(last_figure + 1, len(columns))
        if self.cut or not last_figure:
            yield _drawn(self)
        elif words:
            taken = width(_drawn(self.part(range(last_figure + 1))))
            taken += sum(min(width(_drawn(self.part([number]))), LEAST_WORDS) for number in words)
            parts = [columns] if taken <= options.max_width else [range(last_figure + 1), [0, *words]]
            yield from (_drawn(self.part(part)) for part in parts)
        else:
            shapes = list(_shapes(self))
            fitting = (shape for shape in shapes if max(map(width, shape)) <= options.max_width)
            yield from next(fitting, shapes[-1])
        yield from map(safe, self.notes)


def one_line(header: str) -> str:
    return header.replace("\n", " ")


def best_of(figures: Sequence[float | None], digits: int = 1) -> list[bool]:
    """Which are greatest as they are shown, to as many digits: what looks equal is bold together."""
    shown = [None if figure is None else round(figure, digits) for figure in figures]
    top = max((figure for figure in shown if figure is not None), default=None)
    return [figure is not None and figure == top for figure in shown]


def terminal(tables: Sequence[Table], notes: Sequence[str] = (), warnings: Sequence[str] = ()) -> RenderableType:
    """All of them, one below the other."""
    return Group(
        *(part for table in tables for part in (table, Text(""))),
        *(safe(note, "dim") for note in notes),
        *(safe(f"warning: {warning}", "yellow") for warning in warnings),
    )


def as_markdown(tables: Sequence[Table], notes: Sequence[str] = (), warnings: Sequence[str] = ()) -> str:
    parts = []
    for table in tables:
        rules = ["---" if number in table.left else "---:" for number in range(len(table.headers))]
        lines = [[markdown(one_line(header)) for header in table.headers], rules]
        lines += [
            [f"**{markdown(cell.line)}**" if cell.bold else markdown(cell.line) for cell in row] for row in table.rows
        ]
        parts.append(f"**{markdown(table.title)}**\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
    if ends := _ends(tables, notes, warnings):
        parts.append("  \n".join(markdown(end) for end in ends))
    return "\n\n".join(parts) + "\n"


def as_latex(tables: Sequence[Table], notes: Sequence[str] = (), warnings: Sequence[str] = ()) -> str:
    """A `tabular` each, whose first line names the packages that it takes; notes as comments."""
    import pandas

    parts = []
    for table in tables:
        columns = "".join("l" if number in table.left else "r" for number in range(len(table.headers)))
        rows = [
            [rf"\textbf{{{latex(cell.line)}}}" if cell.bold else latex(cell.line) for cell in row] for row in table.rows
        ]
        frame = pandas.DataFrame(rows, columns=[latex(one_line(header)) for header in table.headers], dtype=object)
        drawn = frame.to_latex(index=False, escape=False, column_format=columns)
        parts.append(f"% {visible(table.title)}\n{drawn.rstrip()}")
    needs = r"% needs \usepackage{booktabs} and \usepackage[T1]{fontenc}"
    if beyond := sorted({letter for part in parts for line in part.splitlines() for letter in _beyond_t1(line)}):
        needs = (
            r"% needs \usepackage{booktabs} and \usepackage{fontspec}, under lualatex or xelatex with a font that has "
            f"{' '.join(beyond)}"
        )
    ends = _ends(tables, notes, warnings)
    return "\n\n".join([needs, *parts]) + "".join(f"\n% {visible(end)}" for end in ends) + "\n"


def _ends(tables: Sequence[Table], notes: Sequence[str], warnings: Sequence[str]) -> list[str]:
    """What stands under all of them."""
    under = (note for table in tables for note in table.notes)
    return [*under, *notes, *(f"warning: {warning}" for warning in warnings)]


GREEK = {
    letter: name
    for names, letters in (
        (
            "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi o pi rho varsigma sigma tau "
            "upsilon phi chi psi omega",
            "αβγδεζηθικλμνξοπρςστυφχψω",
        ),
        ("Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega", "ΓΔΘΛΞΠΣΥΦΨΩ"),
        ("vartheta varphi varpi varrho varepsilon", "ϑϕϖϱϵ"),
    )
    for name, letter in zip(names.split(), letters, strict=True)
}
MATHS = {
    **{letter: "o" if name == "o" else f"\\{name}" for letter, name in GREEK.items()},
    **{letter: rf"\mathrm{{{latin}}}" for letter, latin in zip("ΑΒΕΖΗΙΚΜΝΟΡΤΧ", "ABEZHIKMNOPTX", strict=True)},
    "±": r"\pm",
    "−": "-",
    "×": r"\times",
    "≤": r"\leq",
    "≥": r"\geq",
    "≠": r"\neq",
    "≈": r"\approx",
    "∞": r"\infty",
    "→": r"\rightarrow",
    "←": r"\leftarrow",
    "↔": r"\leftrightarrow",
    "∑": r"\sum",
    "∂": r"\partial",
    "∇": r"\nabla",
    "√": r"\surd",
}
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
    **{letter: f"${name}$" for letter, name in MATHS.items()},
}
T1, NOT_T1 = "‐‑–—‘’‚“”„†‡•…‰€™", "ĦħĸĿŀŉŦŧſ"
"""What pdflatex sets with T1 besides the letters of Latin-1 and Latin Extended-A, and which of those it does not."""
LATIN_EXTENDED_A_END = "\u017f"


def latex(text: str) -> str:
    """`text` as LaTeX shows it to the letter."""
    return "".join(LATEX.get(letter, letter) for letter in unicodedata.normalize("NFC", visible(text)))


def _beyond_t1(line: str) -> Iterator[str]:
    """What pdflatex does not set, in a line that is no comment."""
    if not line.startswith("%"):
        yield from (
            letter for letter in line if letter in NOT_T1 or (letter > LATIN_EXTENDED_A_END and letter not in T1)
        )


def as_csv(frame: "pandas.DataFrame") -> str:
    """A frame in full precision; text that a spreadsheet would take for a formula gets an apostrophe before it."""
    words = {name: column.map(_harmless) for name, column in frame.items() if column.dtype.kind not in "iufb"}
    text: str = frame.assign(**words).to_csv(index=False, lineterminator="\n")
    return text


def _harmless(value: Any) -> Any:
    if isinstance(value, str):
        return f"'{visible(value)}" if value.startswith(FORMULA) else visible(value)
    return value


def _shapes(table: Table) -> Iterator[list[RichTable]]:
    """As it is; with its names folded at commas; turned; turned two rows at a time; one row at a time."""
    yield [_drawn(table)]
    yield [_drawn(table, folds_names=True)]
    count = max(len(table.rows), 1)
    for size in (count, 2, 1):
        yield [_drawn(table.turned(slice(start, start + size))) for start in range(0, count, size)]


def _drawn(table: Table, *, folds_names: bool = False) -> RichTable:
    drawn = RichTable(
        box=box.SIMPLE_HEAD if table.headers else box.SIMPLE,
        show_header=bool(table.headers),
        header_style="bold",
        pad_edge=False,
    )
    for number in range(len(table.headers or table.rows[0])):
        is_left = number in table.left or not table.headers
        drawn.add_column(
            _lines(table.headers[number]) if table.headers else "",
            justify="left" if is_left else "right",
            overflow="fold",
            # The names in front are folded last: they are what a row is known by.
            no_wrap=number == 0,
            style="" if table.headers or number else "bold",
        )
    for row in table.rows:
        cells = list(map(_drawn_cell, row))
        for number in table.cut:
            cells[number].no_wrap, cells[number].overflow = True, "ellipsis"
        if folds_names:
            cells[0] = Text(cells[0].plain.replace(", ", ",\n"))
        drawn.add_row(*cells)
    return drawn


def _drawn_cell(cell: Cell) -> Text:
    drawn = safe(cell.text, f"{'bold ' * cell.bold}{'' if cell.below else cell.style}".strip())
    for line in cell.below.split("\n") if cell.below else ():
        drawn.append(f"\n{visible(line)}", style=f"not bold {cell.style or 'dim'}")
    return drawn


def _lines(text: str) -> Text:
    """As `safe`, but that a line feed, which is ours, parts lines."""
    return Text("\n").join(map(safe, text.split("\n")))
