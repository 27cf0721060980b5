"""`alignvl inspect` of a whole workspace: nothing is hidden, and its runs are a table."""

import csv
import io
import json
import shutil

import pytest

from alignvl_cli.cli.workspace import Workspace

FIRST, SECOND = "0001-alignvl-s0", "0002-alignvl-no-mix-uniform-s0"


@pytest.fixture
def untidy(alignvl):
    """A workspace that also has a run under a name of its own, and what was never finished."""
    runs = alignvl.workspace / "runs"
    shutil.copytree(runs / FIRST, runs / "best")
    shutil.copytree(runs / FIRST, runs / "0003-half")
    (runs / "0003-half" / "result.json").unlink()
    (alignvl.workspace / "stores" / "half.h5.partial").mkdir()
    study = alignvl.workspace / "studies" / "stopped"
    study.mkdir(parents=True)
    (study / "study.json").write_text("{}")
    return alignvl


def listed(alignvl) -> dict[str, dict]:
    return {
        row["path"].rpartition("/")[2]: row for row in json.loads(alignvl.succeeds("inspect", "--json"))["artefacts"]
    }


def test_unfinished_and_named_artefacts_are_listed_and_marked(untidy):
    rows = listed(untidy)
    assert {name: (row["kind"], row["state"]) for name, row in rows.items()} == {
        "fake.h5": ("store", "complete"),
        "half.h5.partial": ("store", "unfinished"),
        FIRST: ("run", "complete"),
        SECOND: ("run", "complete"),
        "0003-half": ("run", "unfinished"),
        "best": ("run", "named"),
        "stopped": ("study", "unfinished"),
    }
    assert [name for name, row in rows.items() if row["newest"]] == ["fake.h5", SECOND]
    shown = untidy.succeeds("inspect")
    for name in rows:
        assert any(name in line and rows[name]["state"] in line for line in shown.splitlines()), name
    assert f"alignvl train --resume {untidy.workspace / 'runs' / '0003-half'}" in rows["0003-half"]["what"]


def test_what_is_listed_as_unfinished_is_not_taken_for_the_newest(untidy):
    assert json.loads(untidy.succeeds("eval", "--json"))["run"].endswith(SECOND)


def test_a_broken_run_is_marked_in_the_list_and_in_the_csv(untidy):
    config = untidy.workspace / "runs" / "best" / "config.json"
    config.write_text(config.read_text().replace("alignvl", "another", 1))
    assert listed(untidy)["best"]["state"] == "broken"
    states = {row["run"]: row["state"] for row in runs_of(untidy)}
    assert states == {FIRST: "complete", SECOND: "complete", "0003-half": "unfinished", "best": "broken"}


def runs_of(alignvl) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(alignvl.succeeds("inspect", "--csv"))))


def test_csv_has_a_row_a_run_with_the_settings_that_differ_and_its_recalls(untidy):
    found = json.loads(untidy.succeeds("eval", untidy.workspace / "runs" / FIRST, "--json"))
    folds = json.loads(untidy.succeeds("eval", untidy.workspace / "runs" / FIRST, "--folds", "2", "--json"))
    rows = {row["run"]: row for row in runs_of(untidy)}
    assert list(rows) == [FIRST, SECOND, "0003-half", "best"]
    first = rows[FIRST]
    assert (first["mix"], rows[SECOND]["mix"]) == ("True", "False")
    assert (first["noise"], rows[SECOND]["noise"]) == ("gaussian", "uniform")
    assert not {"seed", "epochs", "lr"} & first.keys(), "settings that all runs share"
    assert float(first["test.mean_recall"]) == found["metrics"]["mean_recall"]
    assert float(first["test.text_to_image.R@5"]) == found["metrics"]["text_to_image"]["R@5"]
    assert float(first["test 2 folds.rsum"]) == folds["metrics"]["rsum"]
    result = json.loads((untidy.workspace / "runs" / FIRST / "result.json").read_text())
    assert float(first["selection_mean_recall"]) == result["best"]["mean_recall"]
    assert (rows[SECOND]["test.rsum"], rows["0003-half"]["selection_mean_recall"]) == ("", "")
    assert first["store"].endswith("fake.h5")
    assert len(first["store_hash"]) == 64
    assert first["date"].startswith("20")
    assert first["date"].endswith("+00:00")
    environment = json.loads((untidy.workspace / "runs" / FIRST / "environment.json").read_text())
    assert first["alignvl"] == environment["alignvl"]


def test_csv_is_the_frame_of_the_workspace(untidy):
    frame = Workspace(untidy.workspace).to_frame()
    assert frame["run"].tolist() == [row["run"] for row in runs_of(untidy)]
    assert frame["mix"].tolist() == [True, False, True, True]


def test_an_evaluation_on_another_store_is_a_column_of_its_own(untidy, tmp_path):
    from support.fakes import make_store

    make_store(tmp_path / "other.h5", images=90, seed=5)
    untidy.succeeds("eval", untidy.workspace / "runs" / SECOND, "--data", tmp_path / "other.h5")
    (row,) = [row for row in runs_of(untidy) if row["run"] == SECOND]
    (name,) = [name for name, cell in row.items() if name.endswith(".rsum") and cell]
    assert name.startswith("test of other ")


def test_csv_of_an_empty_workspace_has_its_header_alone(empty):
    assert empty.succeeds("inspect", "--csv") == "run,path,state,date,alignvl,store,store_hash\n"


def test_csv_is_of_the_whole_workspace(alignvl):
    message = alignvl.fails(2, "inspect", "runs.csv", "--csv")
    assert "leave the path out" in message
    assert "alignvl inspect --csv > runs.csv" in message
