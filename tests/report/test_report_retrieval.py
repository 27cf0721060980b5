"""Recall tables hold the figures, mark the best, and say what was counted."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from alignvl_cli.report.retrieval import evaluation_markdown, evaluation_table, short_names
from alignvl_cli.retrieval.evaluation import Evaluation
from alignvl_cli.retrieval.metrics import DirectionMetrics, QueryRanks, RetrievalMetrics
from alignvl_cli.retrieval.nearest import Agreement

NO_RANKS = QueryRanks(np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64), [], np.empty(0, np.int64))


def evaluation(run: str = "runs/0001-alignvl", shift: float = 0.0, **changes) -> Evaluation:
    def direction(start: float) -> DirectionMetrics:
        rates = {"R@1": start + shift, "R@5": start + 20 + shift, "R@10": start + 30 + shift}
        return DirectionMetrics(
            rates, sum(rates.values()), median_rank=4.5, mean_rank=20.25, mrr=0.4567, map_at_r=start - 9
        )

    made = Evaluation(
        run=run,
        store="stores/demo-emoji-1234.h5",
        split="test",
        selection_split="val",
        images=400,
        captions=1500,
        repeated_captions=37,
        captions_per_image=(2, 5),
        metrics=RetrievalMetrics(direction(31.24), direction(33.0)),
        agreement=Agreement(10, 1400, 1.0),
        image_to_text=NO_RANKS,
        text_to_image=NO_RANKS,
        warnings=(),
        evaluation_set="same",
        provenance={},
    )
    return replace(made, **changes)


def drawn(*evaluations: Evaluation, width: int = 100, colours: bool = False) -> str:
    console = Console(
        file=io.StringIO(), width=width, force_terminal=colours, color_system="standard" if colours else None
    )
    console.print(evaluation_table(evaluations))
    return console.file.getvalue()


def test_one_run_shows_both_directions_and_what_was_counted():
    text = drawn(evaluation())
    image_line = next(line for line in text.splitlines() if "image to text" in line)
    assert image_line.split() == ["image", "to", "text", "31.2", "51.2", "61.2", "22.2", "4.5", "20.2", "0.457"]
    assert next(line for line in text.splitlines() if "text to image" in line).split()[3:] == [
        "33.0", "53.0", "63.0", "24.0", "4.5", "20.2", "0.457",
    ]  # fmt: skip
    flat = " ".join(text.split())
    for part in (
        "RSUM 292.7, mean recall 48.8",
        "split test of stores/demo-emoji-1234.h5; epoch selected on split val",
        "400 images, 1,500 captions (2 to 5 an image), 37 of them repeat another's text",
        "loses",
        "100.00% of its first 10 are the exact ones",
    ):
        assert part in flat


def test_several_runs_show_a_line_each_with_differences_to_the_first():
    text = drawn(evaluation("runs/a"), evaluation("runs/b", shift=1.5), evaluation("runs/c", shift=-2.0))
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if line.split()[:1] == ["b"])
    assert lines[first].split()[1:] == ["32.7", "52.7", "62.7", "34.5", "54.5", "64.5", "301.7"]
    assert lines[first + 1].split() == ["+1.5"] * 6 + ["+9.0"]
    assert ["-2.0"] * 6 + ["-12.0"] in [line.split() for line in lines]
    assert max(map(len, lines)) <= 100


def test_a_difference_is_that_of_the_figures_shown():
    text = drawn(evaluation("one", shift=0.0), evaluation("two", shift=0.02))  # 31.24 and 31.26: shown 31.2 and 31.3
    lines = [line.split() for line in text.splitlines()]
    one, two = (next(line[1:] for line in lines if line[:1] == [name]) for name in ("one", "two"))
    differences = next(line for line in lines if line and line[0] == "+0.1")
    assert differences == [f"{float(after) - float(before):+.1f}" for before, after in zip(one, two, strict=True)]


def test_the_best_is_bold_in_every_run_that_shares_it_and_only_there():
    text = drawn(evaluation("a", shift=2.0), evaluation("b"), evaluation("c", shift=2.0), colours=True)
    bold = {line.split()[0] for line in text.splitlines() if re.search(r"\x1b\[1m *33\.2\x1b", line)}
    assert bold == {"a", "c"}
    assert "31.2" in text
    assert not re.search(r"\x1b\[1m *31\.2", text)


def test_piped_output_has_no_colour_codes():
    assert "\x1b" not in drawn(evaluation(warnings=("selected on it",)), evaluation("b"), width=140)


def test_warnings_stand_under_the_table_once():
    text = drawn(evaluation("a", warnings=("flattered",)), evaluation("b", warnings=("flattered",)))
    assert text.count("warning: flattered") == 1


def test_names_are_shortened_as_far_as_they_stay_apart():
    assert short_names(["w/runs/0001-a", "w/runs/0002-b"]) == ["0001-a", "0002-b"]
    assert short_names(["x/one/run", "x/two/run"]) == ["one/run", "two/run"]
    assert short_names(["x/one/run", "x/one/run"]) == ["run", "run"]
    assert short_names(["run", "x/run"]) == ["run", "x/run"]


def test_hostile_names_neither_act_nor_break_the_table():
    hostile = evaluation("runs/\x1b[2J[red]x", store="s\x1b[1m.h5")
    for text in (drawn(hostile, evaluation("b")), evaluation_markdown([hostile, evaluation("b")])):
        assert "\x1b" not in text
        assert "␛" in text
    assert "␛[2J[red]x" in drawn(hostile, evaluation("b"))


def test_markdown_is_the_same_table():
    text = evaluation_markdown([evaluation("runs/a"), evaluation("runs/b|c", shift=1.5)])
    lines = text.splitlines()
    assert lines[0].startswith("| run | image to text R@1 | image to text R@5 |")
    assert lines[1] == "| --- |" + " ---: |" * 7
    assert lines[2].startswith("| a | 31.2 | 51.2 |")
    assert lines[3].startswith("| b\\|c | **32.7** (+1.5) | **52.7** (+1.5) |")
    assert lines[3].endswith("**301.7** (+9.0) |")
    assert "1,500 captions" in text


@pytest.mark.parametrize("width", [80, 100])
def test_no_figure_is_lost_in_a_narrow_window(width):
    assert "301.7" in drawn(
        evaluation("runs/0001-a-rather-long-name-of-a-run"), evaluation("b", shift=1.5), width=width
    )
