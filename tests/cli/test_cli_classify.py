"""`alignvl classify` with real, tiny encoders."""

import json

import pytest


@pytest.mark.slow
def test_the_labels_of_the_split_are_the_classes(coloured):
    found = json.loads(coloured.succeeds("classify", "--split", "all", "--json"))
    assert found["labels"] == ["blue", "green", "red"]
    assert (found["images"], found["unlabelled"], found["top5"]) == (60, 0, 100.0)
    assert sum(result["images"] for result in found["per_class"]) == 60


def test_labels_and_prompts_of_the_users_own(coloured, tmp_path):
    (tmp_path / "labels.txt").write_text("red\tcrimson\ngreen\nblue\nyellow\n")
    words = ["--labels", tmp_path / "labels.txt", "-t", "a {} square", "-t", "{}", "--split", "all"]
    found = json.loads(coloured.succeeds("classify", *words, "--json"))
    assert found["labels"] == ["red", "green", "blue", "yellow"]
    assert found["templates"] == ["a {} square", "{}"]
    table = coloured.succeeds("classify", *words)
    for part in ("top-1", "mean per class", "red", "4 classes", "a {} square"):
        assert part in table, part


def test_refusals(coloured, tmp_path):
    assert "{}" in coloured.fails(2, "classify", "-t", "no slot")
    (tmp_path / "labels.txt").write_text("red\n")
    assert "'blue'" in coloured.fails(3, "classify", "--split", "all", "--labels", tmp_path / "labels.txt")
    assert "nowhere" in coloured.fails(3, "classify", "--split", "nowhere")
