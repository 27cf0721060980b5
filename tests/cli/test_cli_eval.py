"""`alignvl eval` with its protocols and reports."""

import csv
import io
import json
import sys

import pandas
import pytest

from alignvl_cli.store.reader import open_store


@pytest.mark.slow
def test_every_report_at_once_is_one_table_after_the_other(alignvl):
    table = " ".join(alignvl.succeeds("eval", "--bootstrap", "--calibration", "--hubness", "nnn").split())
    for words in ("95 % intervals: 2,000 resamples", "mAP@R", "mean rank", "tau fitted", "AUROC", "skewness", "nnn"):
        assert words in table, words


@pytest.mark.slow
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


@pytest.mark.slow
def test_diagrams_are_drawn_beside_the_result(alignvl):
    result = alignvl("eval", "--calibration")
    assert result.exit_code == 0
    folder = alignvl.workspace / "runs" / "0002-alignvl-no-mix-uniform-s0" / "eval"
    saved = f"fake-{open_store(alignvl.workspace / 'stores' / 'fake.h5').content_hash[:8]}-test-calibration"
    assert {path.name for path in folder.iterdir()} == {
        f"{saved}.json",
        f"{saved}.parquet",
        f"{saved}-reliability.png",
        f"{saved}-reliability.svg",
    }
    assert f"{saved}-reliability.png" in result.stderr


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
    (record,) = saved.glob("fake-*-test-*2-folds-identical-hits.json")
    assert json.loads(record.read_text(encoding="utf-8"))["folds"] == 2


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


def read(path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


@pytest.mark.slow
def test_csv_has_every_figure_of_the_json(alignvl, tmp_path):
    path = tmp_path / "figures.csv"
    found = json.loads(
        alignvl.succeeds(
            "eval", "--csv", path, "--json", "--bootstrap", "--calibration", "--hubness", "inverted-softmax"
        )
    )
    rows = read(path)
    assert [(row["direction"], row["correction"]) for row in rows] == [
        ("image_to_text", ""),
        ("text_to_image", ""),
        ("image_to_text", "inverted-softmax"),
        ("text_to_image", "inverted-softmax"),
    ]
    for row in rows[:2]:
        direction = row["direction"]
        assert (row["run"], row["store"], row["split"]) == (found["run"], found["store"], "test")
        assert int(row["queries"]) == found["queries"][direction]
        for name, figure in found["metrics"][direction].items():
            assert float(row[name]) == figure
        for name, (low, high) in found["ci95"][direction].items():
            assert (float(row[f"{name}_low"]), float(row[f"{name}_high"])) == (low, high)
        for state, ending in (("raw", ""), ("fitted", "_fitted")):
            assert float(row[f"temperature{ending}"]) == found["calibration"][state]["temperature"]
            assert float(row[f"nll{ending}"]) == found["calibration"][state][direction]["nll"]
        assert float(row["skewness"]) == found["hubness"]["occurrence"][direction]["skewness"]
        assert float(row["rsum"]) == found["metrics"]["rsum"]
    corrected = found["hubness"]["corrected"]
    assert float(rows[3]["R@1"]) == corrected["metrics"]["text_to_image"]["R@1"]
    assert float(rows[3]["largest"]) == corrected["occurrence"]["text_to_image"]["largest"]
    assert rows[3]["temperature"] == ""


def test_csv_of_several_runs_has_their_differences_to_the_first(alignvl, tmp_path):
    runs, path = sorted((alignvl.workspace / "runs").iterdir()), tmp_path / "figures.csv"
    table = json.loads(alignvl.succeeds("eval", *runs, "--bootstrap", "--json", "--csv", path))
    rows = read(path)
    assert [row["run"] for row in rows] == [str(run) for run in runs for _ in range(2)]
    assert (rows[0]["R@1_difference"], rows[0]["R@1_difference_low"]) == ("", "")
    for first, second in zip(rows[:2], rows[2:], strict=True):
        assert float(second["R@1_difference"]) == pytest.approx(float(second["R@1"]) - float(first["R@1"]))
        low, high = table["difference_to_first_ci95"][1][second["direction"]]["R@1"]
        assert (float(second["R@1_difference_low"]), float(second["R@1_difference_high"])) == (low, high)


def test_csv_is_replaced_whole_and_refused_before_any_work(alignvl, tmp_path):
    path = tmp_path / "figures.csv"
    path.write_text("old")
    alignvl.succeeds("eval", "--csv", path)
    assert len(read(path)) == 2
    message = alignvl.fails(2, "eval", "--csv", tmp_path / "none" / "figures.csv")
    assert "there is no folder" in message
    assert "name another file" in message
    assert alignvl("eval", "--csv", tmp_path).exit_code == 2


def test_an_evaluation_is_a_frame_in_python(alignvl):
    from alignvl_cli.retrieval.evaluate import compare, evaluate
    from alignvl_cli.store.reader import open_store
    from alignvl_cli.training.run_folder import load_run

    store = open_store(alignvl.workspace / "stores" / "fake.h5")
    found = [evaluate(load_run(run), store, "test") for run in sorted((alignvl.workspace / "runs").iterdir())]
    frame = found[0].to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["R@1"].tolist() == [
        found[0].metrics.image_to_text.hit_rate["R@1"],
        found[0].metrics.text_to_image.hit_rate["R@1"],
    ]
    assert frame["rsum"].tolist() == [found[0].metrics.rsum] * 2
    both = compare(found).to_frame()
    assert both["rsum_difference"].dropna().tolist() == [found[1].metrics.rsum - found[0].metrics.rsum] * 2
