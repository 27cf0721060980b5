"""pipelines/modesty_table.py on reports whose means are known."""

import io
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "pipelines" / "modesty_table.py"
SHARES = ("accuracy", "confidence", "overconfidence", "ece", "nll", "brier", "auroc", "aurc")


def result(run: str, ece: float) -> dict:
    direction = {**dict.fromkeys(SHARES, 0.5), "ece": ece, "auroc": None}
    at = {"temperature": 0.05, "image_to_text": direction, "text_to_image": direction}
    calibration = {"raw": at, "fitted": at, "fitted_on": "val", "fitted_gallery_images": 20}
    return {"run": f"somewhere/{run}", "split": "test", "images": 40, "captions": 80, "calibration": calibration}


@pytest.fixture
def table(monkeypatch, capsys) -> Callable[[list[dict]], str]:
    """What the script prints of some results, `clip` being the reference."""

    def printed(results: list[dict]) -> str:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "clip"])
        monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps({"results": results})))
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return capsys.readouterr().out

    return printed


def cells(text: str, start: str) -> dict[str, str]:
    """The first row that begins so, by the title of its column."""
    lines = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("|")]
    number = next(n for n, line in enumerate(lines) if line[1] == start)
    titles = next(line for line in reversed(lines[:number]) if "ECE" in line)
    return dict(zip(titles, lines[number], strict=True))


def test_means_spreads_and_paired_differences(table):
    runs = {"0001-alignvl-s0": 0.10, "alignvl-s7": 0.30, "0002-clip-s0": 0.05, "0004-clip-s7": 0.27}
    found = table([result(run, ece) for run, ece in runs.items()])
    assert cells(found, "alignvl")["ECE"] == "20.0 ± 14.1"
    assert cells(found, "clip")["ECE"] == "16.0 ± 15.6"
    # Differences 5 and 3: mean 4, standard error 1, and t of one degree of freedom is 12.706.
    assert cells(found, "image to text")["ECE"] == "+4.0 (-8.7 to +16.7)"
    assert cells(found, "clip")["AUROC"] == "-"
    assert "seeds 0, 7" in found
    assert "20 images" in found


def test_one_seed_has_no_spread(table):
    found = table([result("alignvl-s0", 0.1), result("clip-s0", 0.3)])
    assert cells(found, "alignvl")["ECE"] == "10.0"
    assert cells(found, "image to text")["ECE"] == "-20.0"


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([], "wanted several runs"),
        ([result("alignvl-s0", 0.1)], "no run of clip"),
        ([result("alignvl-s0", 0.1), result("clip-s1", 0.1)], "same seeds"),
        ([result("clip-s0", 0.1), result("0003-clip-s0", 0.1)], "seed 0 twice"),
        ([result("mine", 0.1)], "0001-alignvl-s0"),
        ([{**result("clip-s0", 0.1), "calibration": None}], "--calibration"),
    ],
)
def test_runs_that_do_not_stand_side_by_side_are_refused(table, results, message):
    with pytest.raises(SystemExit, match=message):
        table(results)
