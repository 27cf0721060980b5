"""Facts, the workspace's list and the doctor's findings."""

import io
from typing import NamedTuple

import pytest
from rich.console import Console

from alignvl_cli.report.artifacts import facts_text, findings_table, workspace_table


def drawn(renderable) -> list[str]:
    console = Console(file=io.StringIO(), width=100)
    console.print(renderable)
    return [line.strip() for line in console.file.getvalue().splitlines() if line.strip()]


def test_facts_are_flat_and_readable():
    lines = drawn(
        facts_text(
            {"kind": "store", "images": 12345, "dataset": {"format": "jsonl", "options": {"root": None}}, "empty": {},
             "share": 0.123456789, "splits": ["train", "val"], "stores": [{"path": "a"}, {"path": "b"}],
             "ok": True, "path": "[x]\x1b"},
            100,
        )
    )  # fmt: skip
    assert [line.split(maxsplit=1) for line in lines] == [
        ["kind", "store"],
        ["images", "12,345"],
        ["dataset.format", "jsonl"],
        ["dataset.options.root", "-"],
        ["empty", "-"],
        ["share", "0.123457"],
        ["splits", "train, val"],
        ["stores.0.path", "a"],
        ["stores.1.path", "b"],
        ["ok", "yes"],
        ["path", "[x]␛"],
    ]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_long_value_stands_whole_on_a_line_of_its_own(width):
    path, number = "/data/" + "a-long-name/" * 12 + "run", "0" * 64
    console = Console(file=io.StringIO(), width=width)
    facts = {"path": path, "config.vision.about.versions.numpy": number, "steps": 70}
    console.print(facts_text(facts, width), soft_wrap=True)
    lines = console.file.getvalue().splitlines()
    assert f"  {path}" in lines
    assert (f"  {number}" in lines) is (width < 100)
    assert lines[-1].split() == ["steps", "70"]


def row(kind, path, what, state="complete", newest=False):
    return {"kind": kind, "path": path, "state": state, "newest": newest, "what": what}


def test_the_newest_of_each_kind_is_marked():
    lines = drawn(
        workspace_table(
            "w",
            [
                row("store", "w/stores/a.h5", "10 images", newest=True),
                row("run", "w/runs/0001-x", "first"),
                row("run", "w/runs/0002-y", "second", newest=True),
                row("run", "w/runs/best", "third", state="named"),
                row("run", "w/runs/0003-z", "half", state="unfinished"),
            ],
        )
    )
    assert lines[0] == "workspace w"
    text = "\n".join(lines)
    assert "stores/a.h5 *" in text
    assert "runs/0002-y *" in text
    assert "runs/0001-x *" not in text
    assert text.count(" *") == 2
    for state, name in (("named", "best"), ("unfinished", "0003-z")):
        assert any(name in line and state in line for line in lines)
    assert "first" in text
    assert "* the newest of its kind" in text
    assert "paths are relative to w/" in text


def test_an_empty_workspace_says_how_to_begin():
    assert drawn(workspace_table("w", [])) == ["nothing in the workspace w yet; begin with: alignvl extract"]


class Finding(NamedTuple):
    topic: str
    found: str
    wrong: str = ""


def test_findings_say_what_is_wrong_and_what_to_do():
    lines = drawn(findings_table([Finding("torch", "2.9"), Finding("disk", "1 MiB free", "make room")]))
    assert lines[-3].split() == ["torch", "ok", "2.9"]
    assert lines[-2].split() == ["disk", "wrong", "1", "MiB", "free"]
    assert lines[-1] == "make room"
