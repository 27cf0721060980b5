"""The modesty table and the reliability diagrams."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from support.fake_evaluations import evaluation

from alignvl_cli.report.evaluation import modesty_table
from alignvl_cli.report.plots import save_reliability
from alignvl_cli.retrieval.calibration import AtTemperature, Judged, Modesty, calibration


def report(*, fitted: bool = True) -> Modesty:
    draw = np.random.default_rng(0)
    confidence = draw.beta(1, 3, 400)
    found = calibration(Judged(confidence, draw.random(400) < confidence / 2, -np.log(confidence), confidence))
    raw = AtTemperature(0.05, found, replace(found, auroc=None))
    return Modesty(400, raw, replace(raw, temperature=0.125) if fitted else None, "val" if fitted else None, 200)


def drawn(*evaluations, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(modesty_table(evaluations))
    return console.file.getvalue()


def rows_of(text: str) -> dict[str, list[str]]:
    """The figures of each row, by the measure before them."""
    lines = (line.strip() for line in text.splitlines())
    return {name: cells for name, *cells in (re.split(r"\s{2,}", line) for line in lines) if cells}


@pytest.mark.parametrize("width", [60, 80, 140])
def test_each_direction_stands_as_trained_and_fitted(width):
    modesty = report()
    text = drawn(evaluation(modesty=modesty), width=width)
    rows = rows_of(text)
    found = modesty.raw.image_to_text
    assert rows["tau"] == ["0.050", "0.125"] * 2
    assert rows["accuracy"] == [f"{100 * found.accuracy:.1f}"] * 4
    assert rows["confidence"] == [f"{100 * found.confidence:.1f}"] * 4
    assert rows["overconfidence"] == [f"{100 * found.overconfidence:+.1f}"] * 4
    assert rows["ECE equal mass"] == [f"{100 * found.ece_equal_mass:.1f}"] * 4
    assert rows["NLL"] == [f"{found.nll:.3f}"] * 4
    assert rows["AUROC"] == [f"{found.auroc:.3f}"] * 2 + ["-"] * 2
    assert rows["AURC"] == [f"{found.aurc:.3f}"] * 4
    assert "gallery's 400 images" in " ".join(text.split())
    assert "split val (200 images)" in " ".join(text.split())
    assert "…" not in text


def test_runs_are_named_when_there_are_several_and_what_was_not_fitted_stays_empty():
    text = drawn(evaluation("runs/a", modesty=report()), evaluation("runs/b", modesty=report(fitted=False)))
    lines = [line.split() for line in text.splitlines()]
    assert ["tau", "a", "0.050", "0.125", "0.050", "0.125"] in lines
    assert lines[lines.index(["tau", "a", "0.050", "0.125", "0.050", "0.125"]) + 1] == ["tau", "b", "0.050", "0.050"]


@pytest.mark.slow
@pytest.mark.parametrize(("fitted", "panels"), [(True, 2), (False, 1)])
def test_diagrams_are_drawn_and_equal_reports_give_equal_files(tmp_path, fitted, panels):
    paths = save_reliability(report(fitted=fitted), "0001-alignvl", tmp_path / "a.b")
    assert [path.name for path in paths] == ["a.b.png", "a.b.svg"]
    with Image.open(paths[0]) as image:
        assert image.size[0] == panels * 600
        assert len(set(image.convert("RGB").resize((60, 60)).get_flattened_data())) > 10
    svg = paths[1].read_text()
    assert svg.count('id="axes_') == 4 * panels
    again = save_reliability(report(fitted=fitted), "0001-alignvl", tmp_path / "again")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]
    assert {path.name for path in tmp_path.iterdir()} == {"a.b.png", "a.b.svg", "again.png", "again.svg"}
