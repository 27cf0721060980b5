"""The example in docs/python.md runs as it stands, beside what the command line made."""

import re
from pathlib import Path

import pytest
from PIL import Image

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_the_documented_example_runs(coloured, tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 1
    workspace = tmp_path / "alignvl-workspace"
    (workspace / "stores").mkdir(parents=True)
    (workspace / "runs").symlink_to(coloured.workspace / "runs")
    (workspace / "stores" / "own.h5").symlink_to(next((coloured.workspace / "stores").glob("*.h5")))
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(blocks[0], str(PAGE), "exec"), names)  # the page's own code
    assert names["words"].shape == (2, 8)
    assert names["pictures"].shape == (1, 8)
    assert names["probabilities"].sum() == pytest.approx(1)
    assert names["gallery"].shape[0] == len(names["test"].image)
    assert ".png" in capsys.readouterr().out
