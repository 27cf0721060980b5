"""The modesty table and the reliability diagrams."""

import io
from dataclasses import replace

import numpy as np
import pytest
from fake_evaluations import evaluation
from PIL import Image
from rich.console import Console

from alignvl_cli.report.reliability import modesty_table, save_reliability
from alignvl_cli.retrieval.calibration import AtTemperature, Judged, Modesty, calibration


def report(*, fitted: bool = True) -> Modesty:
    draw = np.random.default_rng(0)
    confidence = draw.beta(1, 3, 400)
    found = calibration(Judged(confidence, draw.random(400) < confidence / 2, -np.log(confidence), confidence))
    raw = AtTemperature(0.05, found, replace(found, auroc=None))
    return Modesty(400, raw, replace(raw, temperature=0.125) if fitted else None, "val" if fitted else None, 200)


def drawn(*evaluations) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(modesty_table(evaluations))
    return console.file.getvalue()


def test_each_direction_stands_as_trained_and_fitted():
    modesty = report()
    text = drawn(evaluation(modesty=modesty))
    lines = [line.split() for line in text.splitlines()]
    raw = next(line for line in lines if line[:5] == ["image", "to", "text", "as", "trained"])
    found = modesty.raw.image_to_text
    assert raw[5:9] == [
        "0.050",
        f"{100 * found.accuracy:.1f}",
        f"{100 * found.confidence:.1f}",
        f"{100 * found.overconfidence:+.1f}",
    ]
    assert next(line for line in lines if line[3:5] == ["tau", "fitted"])[5] == "0.125"
    assert " - " in next(line for line in text.splitlines() if "text to image" in line)
    assert "gallery's 400 images" in " ".join(text.split())
    assert "split val (200 images)" in " ".join(text.split())


def test_runs_are_named_when_there_are_several_and_unfitted_ones_have_no_such_line():
    text = drawn(evaluation("runs/a", modesty=report()), evaluation("runs/b", modesty=report(fitted=False)))
    assert text.count("tau fitted") == 2 + 1  # run a's two directions, and the note
    assert {line.split()[0] for line in text.splitlines() if "as trained" in line} == {"a", "b"}


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
