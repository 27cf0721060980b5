"""`alignvl eval` with its protocols and reports."""

import json
import sys

import pytest


def test_every_report_at_once_is_one_table_after_the_other(alignvl):
    table = " ".join(alignvl.succeeds("eval", "--bootstrap", "--calibration", "--hubness", "nnn").split())
    for words in ("95 % intervals: 2,000 resamples", "mAP@R", "mean rank", "tau fitted", "AUROC", "skewness", "nnn"):
        assert words in table, words


def test_the_json_has_intervals_calibration_and_hubness(alignvl):
    found = json.loads(
        alignvl.succeeds("eval", "--bootstrap", "--calibration", "--hubness", "inverted-softmax", "--json")
    )
    low, high = found["ci95"]["rsum"]
    assert low <= found["metrics"]["rsum"] <= high
    assert found["calibration"]["gallery_images"] == found["images"]
    assert found["calibration"]["fitted_on"] == "val"
    assert len(found["calibration"]["raw"]["image_to_text"]["diagram"]) == found["calibration"]["bins"] == 15
    assert found["hubness"]["corrected"]["transductive"] is True


def test_diagrams_are_drawn_beside_the_result(alignvl):
    result = alignvl("eval", "--calibration")
    assert result.exit_code == 0
    folder = alignvl.workspace / "runs" / "0002-alignvl-no-mix-uniform-s0" / "eval"
    assert {path.name for path in folder.iterdir()} == {
        "fake-test.json",
        "fake-test.parquet",
        "fake-test-reliability.png",
        "fake-test-reliability.svg",
    }
    assert "fake-test-reliability.png" in result.stderr


def test_without_matplotlib_the_table_comes_and_the_diagrams_are_said_to_be_missing(alignvl, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = alignvl("eval", "--calibration")
    assert result.exit_code == 0
    assert "alignvl[report]" in result.stderr
    assert "AUROC" in result.stdout


def test_other_recalls_folds_and_identical_hits_are_stated(alignvl):
    found = json.loads(alignvl.succeeds("eval", "--recall-k", "1,3", "--folds", "2", "--identical-hits", "--json"))
    assert (found["folds"], found["identical_hits"]) == (2, True)
    assert list(found["metrics"]["image_to_text"])[:2] == ["R@1", "R@3"]
    assert "2 folds" in found["protocol"]
    saved = alignvl.workspace / "runs" / "0002-alignvl-no-mix-uniform-s0" / "eval"
    assert (saved / "fake-test-2-folds-identical-hits.json").is_file()


def test_differences_between_runs_have_intervals(alignvl):
    runs = sorted((alignvl.workspace / "runs").iterdir())
    table = alignvl.succeeds("eval", *runs, "--bootstrap")
    assert "of the difference" in table
    assert max(map(len, table.splitlines())) <= 140
    document = json.loads(alignvl.succeeds("eval", *runs, "--bootstrap", "--json"))
    first, second = document["difference_to_first_ci95"]
    assert first is None
    assert second["rsum"][0] <= second["rsum"][1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recall-k", "one"], "--recall-k"),
        (["--folds", "0"], "--folds"),
        (["--folds", "2", "--calibration"], "leave --folds out"),
        (["--hubness", "csls"], "csls"),
    ],
)
def test_what_cannot_be_counted_is_a_usage_error(alignvl, words, message):
    assert message in alignvl.fails(2, "eval", *words)


def test_wider_verdicts_need_the_coco_split(alignvl, tmp_path):
    (tmp_path / "dataset_coco.json").write_text('{"images": []}')
    message = alignvl.fails(3, "eval", "--eccv", tmp_path / "dataset_coco.json")
    assert "COCO" in message


def test_more_folds_than_images_is_an_error_of_the_data(alignvl):
    assert "24 images" in alignvl.fails(3, "eval", "--folds", "100")
