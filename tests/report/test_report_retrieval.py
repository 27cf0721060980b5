"""Recall tables hold the figures, mark the best, and say what was counted."""

import io
import re

import numpy as np
import pytest
from rich.console import Console
from support.fake_evaluations import evaluation

from alignvl_cli.report.evaluation import beyond_table, hubness_table, recall_table, short_names, warnings_of
from alignvl_cli.report.tables import terminal
from alignvl_cli.retrieval.eccv import BeyondPairs, Judgement
from alignvl_cli.retrieval.evaluate import Evaluation
from alignvl_cli.retrieval.hubness import Corrected, Hubness, Occurrence
from alignvl_cli.retrieval.metrics import RECALL_SUM, Resampled


def drawn(*evaluations: Evaluation, width: int = 100, colours: bool = False) -> str:
    console = Console(
        file=io.StringIO(), width=width, force_terminal=colours, color_system="standard" if colours else None
    )
    console.print(terminal([recall_table(evaluations)], warnings=warnings_of(evaluations)))
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
    text = drawn(hostile, evaluation("b"))
    assert "\x1b" not in text
    assert "␛[2J[red]x" in text


NARROW = pytest.mark.parametrize("width", [60, 80, 120])
LONG = "0001-a-rather-long-name-of-a-run"


def words_of(text: str, width: int) -> set[str]:
    """The words of a drawing, none of which is cut or beyond the width."""
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    return set(text.split())


@NARROW
def test_no_figure_and_no_name_is_lost_in_a_narrow_window(width):
    one = words_of(drawn(evaluation(), width=width), width)
    assert {"R@1", "mAP@R", "31.2", "51.2", "61.2", "22.2", "0.457", "33.0", "63.0"} <= one
    text = drawn(evaluation(f"runs/{LONG}"), evaluation("runs/b", shift=1.5), width=width)
    assert {LONG, "b", "301.7", "292.7", "+9.0", "32.7", "64.5", "RSUM"} <= words_of(text, width)
    for words in ("image to text", "text to image"):
        assert words in drawn(evaluation(), width=width)


@NARROW
def test_intervals_of_several_runs_are_whole_in_a_narrow_window(width):
    text = drawn(
        evaluation(f"runs/{LONG}", resampled=resampled()),
        evaluation("runs/b", shift=1.5, resampled=resampled(1.5)),
        width=width,
    )
    assert {LONG, "b"} <= words_of(text, width)
    for whole in ("30.1 to 31.9", "+1.5 to +1.5", "60.1 to 63.9"):
        assert whole in text


@NARROW
@pytest.mark.parametrize("several", [False, True])
def test_the_hubness_table_splits_no_word_in_a_narrow_window(width, several):
    console = Console(file=io.StringIO(), width=width)
    hubs = [evaluation(f"runs/{LONG}-{number}", hubness=corrected(transductive=True)) for number in range(1 + several)]
    console.print(hubness_table(hubs))
    found = words_of(console.file.getvalue(), width)
    assert {"skewness", "anti-hubs", "greatest", "hub", "2.50", "25.0", "70", "35.2", "65.2", "made-up"} <= found
    assert ({f"{LONG}-0", f"{LONG}-1"} <= found) is several


def resampled(shift: float = 0.0) -> Resampled:
    """R@1 from 30 to 32 (its resamples evenly between), and the rest alike."""
    value_S = np.linspace(30.0, 32.0, 41) + shift
    names = ("R@1", "R@5", "R@10", RECALL_SUM, "mean_rank", "mrr", "mAP@R")
    return Resampled({direction: dict.fromkeys(names, value_S) for direction in ("image_to_text", "text_to_image")})


def test_intervals_stand_under_the_figures_and_sums():
    text = drawn(evaluation(resampled=resampled()), width=140)
    lines = text.splitlines()
    row = next(number for number, line in enumerate(lines) if "image to text" in line)
    assert "30.1 to 31.9" in lines[row + 1]
    assert "RSUM 292.7 (60.1 to 63.9)" in text
    assert "41 resamples of images" in text


def test_the_interval_of_another_run_is_that_of_its_difference():
    text = drawn(
        evaluation("a", resampled=resampled()), evaluation("b", shift=1.5, resampled=resampled(1.5)), width=140
    )
    assert "+1.5 to +1.5" in text
    assert "of the difference" in text
    assert "30.1 to 31.9" in text


def corrected(*, transductive: bool) -> Hubness:
    places = {direction: Occurrence(10, 2.5, 0.25, 70) for direction in ("image_to_text", "text_to_image")}
    metrics = evaluation(shift=4.0).metrics
    parameters = {direction: {"alpha": 0.5} for direction in places}
    return Hubness(places, Corrected("made-up", transductive, parameters, metrics, places))


def test_a_correction_is_a_labelled_row_of_its_own():
    text = drawn(evaluation(hubness=corrected(transductive=True)), width=140)
    line = next(line for line in text.splitlines() if "made-up" in line)
    assert line.split()[:6] == ["image", "to", "text,", "made-up", "(transductive)", "35.2"]
    assert "RSUM 292.7" in text, "the sum stays that of the run as it is"


def test_the_hubness_table_tells_both_states_and_what_a_correction_uses():
    console = Console(file=io.StringIO(), width=140)
    console.print(hubness_table([evaluation(hubness=corrected(transductive=True))]))
    text = console.file.getvalue()
    lines = [line.split() for line in text.splitlines()]
    assert ["image", "to", "text", "none", "2.50", "25.0", "%", "70", "31.2", "51.2", "61.2"] in lines
    assert [
        "image",
        "to",
        "text",
        "made-up",
        "(alpha",
        "0.5)",
        "2.50",
        "25.0",
        "%",
        "70",
        "35.2",
        "55.2",
        "65.2",
    ] in lines
    assert "TRANSDUCTIVE" in text
    narrow = Console(file=io.StringIO(), width=60)
    narrow.print(hubness_table([evaluation(hubness=corrected(transductive=False))]))
    assert "…" not in narrow.file.getvalue()
    assert {"35.2", "55.2", "65.2", "image"} <= set(narrow.file.getvalue().split())
    console.print(hubness_table([evaluation("a", hubness=corrected(transductive=False)), evaluation("b")]))
    assert "parameters chosen on validation" in console.file.getvalue()


def test_wider_verdicts_have_a_table_of_their_own():
    found = Judgement(1261, {"R@1": 71.25, "R@5": 90.0, "R@10": 95.0}, 23.98)
    made = evaluation("runs/a", beyond=BeyondPairs({"eccv": {"image_to_text": found}}))
    console = Console(file=io.StringIO(), width=100)
    console.print(beyond_table([made]))
    row = next(line.split() for line in console.file.getvalue().splitlines() if "eccv" in line)
    assert row == ["a", "eccv", "image", "to", "text", "1,261", "24.0", "71.2", "90.0", "95.0"]
