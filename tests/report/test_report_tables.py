"""Tables of text in each format: nothing of a name acts, and what is bold or below is kept."""

import csv
import io
import shutil
import subprocess

import pandas
import pytest
from rich.console import Console

from alignvl_cli.report.tables import Cell, Table, as_csv, as_latex, as_markdown, best_of, latex, terminal

HOSTILE = 'a"b<c & 50 % $x_1$ \\ | [b]{} #~^\x1b[31m'
TABLE = Table(
    title="One | two",
    headers=("arm", "recall_K"),
    left=(0,),
    rows=((Cell(HOSTILE), Cell("12.5", bold=True, below="+1.0")), (Cell("plain"), Cell("11.5"))),
)


def test_markdown_has_a_cell_for_each_and_escapes_names():
    lines = as_markdown([TABLE], ["a note_"], ["beware"]).splitlines()
    assert lines[0] == "**One \\| two**"
    assert lines[3] == "| --- | ---: |"
    assert lines[4].replace("\\|", "").count("|") == 3
    assert "\\[b\\]" in lines[4]
    assert "**12.5 (+1.0)**" in lines[4]
    assert lines[-2:] == ["a note\\_  ", "warning: beware"]
    assert "\x1b" not in "".join(lines)


def test_latex_shows_every_letter_and_is_booktabs():
    text = as_latex([TABLE])
    assert r"\begin{tabular}{lr}" in text
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    row = next(line for line in text.splitlines() if line.startswith("a\\text"))
    assert row.count(" & ") == 1
    assert r"\textbf{12.5 (+1.0)}" in row
    assert latex("50 % of $1 & x_1") == r"50 \% of \$1 \& x\_1"
    assert latex("1 ± 2") == r"1 $\pm$ 2"


@pytest.mark.parametrize(
    ("text", "set_as"),
    [
        ("α=0.3, σ", r"$\alpha$=0.3, $\sigma$"),
        ("Δτ", r"$\Delta$$\tau$"),
        ("ΑΒΟ ο ς ϕ", r"$\mathrm{A}$$\mathrm{B}$$\mathrm{O}$ $o$ $\varsigma$ $\phi$".replace(r"$\phi$", r"$\varphi$")),
        ("λ ≤ 2 × 10 − 1", r"$\lambda$ $\leq$ 2 $\times$ 10 $-$ 1"),
        ("<0.001 of 5 % & a_b", r"\textless{}0.001 of 5 \% \& a\_b"),
        ("naïve Łódź – “x”…", "naïve Łódź – “x”…"),
        ("nai\u0308ve", "naïve"),
    ],
)
def test_latex_sets_greek_and_signs_with_what_its_first_line_names(text, set_as):
    assert latex(text) == set_as
    drawn = as_latex([Table.of("t", ("arm", text), [[text, "1"]])])
    assert drawn.splitlines()[0] == r"% needs \usepackage{booktabs} and \usepackage[T1]{fontenc}"
    assert drawn.count(set_as) == 2


@pytest.mark.parametrize("letter", ["東", "🚀", "ά", "ħ", "𝛼"])
def test_latex_of_other_letters_names_an_engine_that_has_them(letter):
    first, *others = as_latex([Table.of("t", ("arm",), [[f"x {letter}"]])]).splitlines()
    assert "lualatex" in first
    assert "fontspec" in first
    assert letter in first
    assert any(f"x {letter}" in line for line in others)
    plain = as_latex([Table.of(f"title {letter}", ("arm",), [["x"]])], [f"note {letter}"])
    assert "lualatex" not in plain, "comments are not set"


def test_latex_keeps_columns_of_one_name_and_empty_cells():
    text = as_latex([Table.of("t", ("a", "b", "b"), [["x", "1", ""], ["y", "2", "3"]])])
    assert [line for line in text.splitlines() if line.endswith("\\\\")] == [
        r"a & b & b \\",
        r"x & 1 &  \\",
        r"y & 2 & 3 \\",
    ]


def test_what_looks_equal_is_best_together():
    assert best_of([31.24, 31.16, None, 12.0]) == [True, True, False, False]
    assert best_of([31.24, 31.16], digits=2) == [True, False]
    assert best_of([None]) == [False]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_latex_compiles(tmp_path):
    (tmp_path / "t.tex").write_text(
        "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{booktabs}\\begin{document}\n"
        + as_latex([TABLE], ["note"])
        + "\\end{document}\n"
    )
    subprocess.run(["pdflatex", "-interaction=batchmode", "-halt-on-error", "t.tex"], cwd=tmp_path, check=True)


def test_csv_is_read_back_and_no_cell_is_a_formula():
    frame = pandas.DataFrame({"name": ["=1+1", 'a,"b', "plain"], "value": [-0.5, None, 1.25]})
    text = as_csv(frame)
    rows = list(csv.reader(io.StringIO(text)))
    assert rows == [["name", "value"], ["'=1+1", "-0.5"], ['a,"b', ""], ["plain", "1.25"]]


def drawn(width, *parts):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(terminal(*parts))
    return console.export_text()


def test_the_terminal_shows_names_to_the_letter():
    shown = drawn(100, [TABLE], ["a note"], ["beware"])
    assert "[b]{}" in shown
    assert "\x1b[31m" not in shown
    assert "12.5" in shown
    assert "+1.0" in shown
    assert "warning: beware" in shown


VERDICTS = Table(
    title="Which?",
    headers=("arm", "difference", "p", "verdict"),
    left=(0, 3),
    rows=tuple(
        (Cell(f"a-long-name-{number}"), Cell("+0.51", below="-0.51 to +1.76"), Cell("0.141"), Cell(verdict))
        for number, verdict in enumerate(("equivalent within 1 point of mean recall", "not distinguishable yet"))
    ),
)


@pytest.mark.parametrize(("width", "is_beside"), [(120, True), (90, True), (66, False), (44, False)])
def test_words_are_whole_beside_the_figures_or_below_them(width, is_beside):
    shown = drawn(width, [VERDICTS])
    lines = shown.splitlines()
    assert max(map(len, lines)) <= width
    words = shown.split()
    for cell in (cell for row in VERDICTS.rows for cell in row):
        assert set(cell.line.replace("(", "").replace(")", "").split()) <= set(words)
    assert any("+0.51" in line and "equivalent" in line for line in lines) is is_beside
    assert sum("a-long-name-1" in line for line in lines) == (1 if is_beside else 2)
