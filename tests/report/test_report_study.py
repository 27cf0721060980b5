"""A study's tables say what its verdicts do, figure by figure."""

import copy
import csv
import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from alignvl_cli.ablation.records import Outcome, Ranks, verdicts_frame
from alignvl_cli.ablation.study import parse_study
from alignvl_cli.ablation.verdicts import judge
from alignvl_cli.report.page import Page, TableBlock, page_html, section, sections
from alignvl_cli.report.study import study_notes, study_tables
from alignvl_cli.report.tables import as_csv, as_latex, as_markdown, terminal

FACTS = {
    "split": "test",
    "selection_split": "val",
    "images": 40,
    "captions": 40,
    "repeated_captions": 0,
    "protocol": "ties lose",
    "store": "made-up.h5",
}


def outcome(arm, seed, found, failure=None):
    if failure:
        return Outcome(arm=arm, seed=seed, metrics={}, ranks={}, failure=failure)
    rank_Q = np.where(np.arange(40) < found, 0, 99)
    ranks = Ranks(np.arange(40), [f"{number:02d}" for number in range(40)], rank_Q)
    metrics = {"mean_recall": found * 2.5, "rsum": found * 15.0, "image_to_text.R@1": found * 2.5}
    return Outcome(
        arm=arm, seed=seed, metrics={"test": metrics}, ranks={"image_to_text": ranks, "text_to_image": ranks}
    )


@pytest.fixture(scope="module")
def verdicts():
    study = parse_study(
        {
            "name": "square",
            "question": "Mixing?",
            "reference": "no-mix+no-es",
            "seeds": list(range(8)),
            "factors": {
                "mixing": {"no-mix": {"mix": False}, "mix": {"mix": True}},
                "smoothing": {"no-es": {"es": False}, "es": {"es": True}},
            },
        }
    )
    shifts = {"no-mix+no-es": 0, "mix+no-es": 8, "no-mix+es": 0, "mix+es": 8}
    outcomes = [
        outcome(arm, seed, 20 + seed % 3 + shift, failure="it diverged" if (arm, seed) == ("no-mix+es", 7) else None)
        for seed in range(8)
        for arm, shift in shifts.items()
    ]
    return json.loads(json.dumps(judge(study, outcomes, "test", FACTS).to_json()))


def test_the_first_table_has_an_arm_a_row_and_its_verdict(verdicts):
    arms, effects, recalls = study_tables(verdicts)
    lines = {row[0].text: [cell.text for cell in row] for row in arms.rows}
    assert arms.title == "square: Mixing?"
    assert lines["no-mix+no-es"][-1] == "the reference"
    assert lines["no-mix+es"][1] == "7 (1 failed)"
    assert lines["mix+es"][3] == "+20.00"
    assert lines["mix+es"][5] == f"{3 * 2.0**-7:.3f}"
    assert lines["mix+es"][-1].startswith("+ better by 20.0 points")
    assert lines["no-mix+es"][-1].startswith("= equivalent within 1 point")
    assert [row[0].text for row in effects.rows] == ["mixing", "smoothing", "mixing x smoothing"]
    assert effects.rows[0][1].text == "+20.00"
    assert effects.rows[0][-1].text == "mix against no-mix"
    assert {len(row) for table in (arms, effects, recalls) for row in table.rows} == {7, 6, 8}
    assert recalls.rows[1][1].text == f"{verdicts['arms'][1]['metrics']['image_to_text.R@1']['mean']:.1f}"
    assert recalls.rows[1][2].text == "-"  # a metric that was not measured


def test_the_notes_say_split_seeds_and_tests(verdicts):
    notes = " ".join(study_notes(verdicts))
    for said in ("split test of made-up.h5", "ties lose", "8 seeds (0 to 7)", "sign-flip", "within 1 point,"):
        assert said in notes


def test_csv_rows_have_every_column_and_full_precision(verdicts):
    rows = verdicts_frame(verdicts).to_dict("records")
    better = next(row for row in rows if (row["name"], row["metric"]) == ("mix+es", "mean_recall"))
    assert better["difference"] == pytest.approx(20)
    assert better["p"] == 2.0**-7
    assert better["verdict"] == "better"
    assert sum(row["kind"] == "effect" for row in rows) == 3
    descriptive = next(row for row in rows if (row["name"], row["metric"]) == ("mix+es", "rsum"))
    assert math.isnan(descriptive["p"])
    assert descriptive["difference"] == pytest.approx(120)


def as_text(tables) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(terminal(tables))
    return console.file.getvalue()


def as_page(tables) -> str:
    blocks = [TableBlock(table) for table in tables]
    return page_html(
        Page(
            kind="study", title="", lead="", summary="", counts=(), warnings=(), footer="",
            sections=sections(section("a", "A", *blocks)),
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("p", "shown"),
    [
        (2.0**-20, "<0.001"),
        (0.00099, "<0.001"),
        (0.001, "0.001"),
        (0.004, "0.004"),
        (0.0078125, "0.008"),
        (0.0099, "0.010"),
        (0.04321, "0.043"),
        (1.0, "1.000"),
    ],
)
def test_p_below_a_thousandth_is_said_so_and_above_has_its_digits_in_every_form(verdicts, p, shown):
    told = copy.deepcopy(verdicts)
    for judged in (*told["arms"], *told["effects"]):
        if judged["difference"]:
            judged["difference"]["p_holm"] = p
    tables = study_tables(told)
    asked = [row[table.headers.index("p")].text for table in tables[:2] for row in table.rows]
    assert asked == ["", shown, shown, shown, shown, shown, shown]
    for drawn, sign in (
        (as_text(tables), "<"),
        (as_markdown(tables), "\\<"),
        (as_latex(tables), r"\textless{}"),
        (as_page(tables), "&lt;"),
    ):
        assert drawn.count(shown.replace("<", sign)) >= 6
        assert ("0.001" in drawn) is (shown in ("<0.001", "0.001"))
    rows = csv.DictReader(io.StringIO(as_csv(verdicts_frame(told))))
    assert {float(row["p_holm"]) for row in rows if row["p_holm"]} == {p}, "CSV has every digit"


def test_arms_of_one_shown_mean_are_bold_together(verdicts):
    told = copy.deepcopy(verdicts)
    for arm, mean in zip(told["arms"], (60.004, 60.0012, 59.9, 12.0), strict=True):
        arm["metrics"]["mean_recall"]["mean"] = mean
    assert [row[2].bold for row in study_tables(told)[0].rows] == [True, True, False, False]
    markdown = as_markdown(study_tables(told)[:1])
    assert markdown.count("**60.00") == 2


def test_the_frame_of_a_study_is_typed_and_its_counts_are_whole(verdicts):
    frame = verdicts_frame(verdicts)
    assert str(frame["seeds"].dtype) == "Int64"
    assert all(frame[name].dtype == float for name in ("mean", "sd", "difference", "p", "crossed_ci95_low"))
    (failed,) = frame[(frame["name"] == "no-mix+es") & (frame["metric"] == "mean_recall")]["seeds"]
    assert failed == 7
    assert as_csv(frame).splitlines()[1].split(",")[3] == "8"
