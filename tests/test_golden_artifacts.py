"""Artefacts of an earlier version (`golden/ae1aa6a`: store, run, index, study) give the numbers that it printed.

Their JSON holds the paths of the machine that made them, so that paths are left out of every comparison.
"""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from support.command_line import CommandLine

from alignvl_cli.ablation.records import read_study, read_verdicts
from alignvl_cli.retrieval.embeddings import embed_split
from alignvl_cli.retrieval.evaluate import evaluate
from alignvl_cli.retrieval.index import open_index
from alignvl_cli.settings import Gallery
from alignvl_cli.store.reader import open_store
from alignvl_cli.training.run_folder import load_run

GOLDEN = Path(__file__).parent / "golden" / "ae1aa6a"
TOLD = GOLDEN / "told"
PLACES = {"path", "run", "store", "stores", "provenance", "made_by", "folder"}
"""Keys that say where or by what, not how much."""
TOLERANCE = 1e-6
FIGURE = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?![\w.]*\w)")


@pytest.fixture(scope="module")
def alignvl(tmp_path_factory) -> CommandLine:
    """The command line in a workspace of copies: what is read may also be written beside."""
    workspace = tmp_path_factory.mktemp("golden")
    for folder in ("stores", "runs"):
        shutil.copytree(GOLDEN / folder, workspace / folder)
    shutil.copytree(GOLDEN / "golden-index", workspace / "indexes" / "0001-golden-index")
    shutil.copytree(GOLDEN / "studies-tiny", workspace / "studies" / "tiny")
    return CommandLine(workspace)


@pytest.fixture(scope="module")
def run(alignvl) -> Path:
    return alignvl.workspace / "runs" / "golden-run"


def told(name: str):
    return json.loads((TOLD / name).read_text(encoding="utf-8"))


def differences(old, new, where: str = "") -> list[str]:
    """What `old` says that `new` does not; keys that were added since are no difference."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            found
            for key, value in old.items()
            if key not in PLACES
            for found in (
                [f"{where}.{key} is gone"] if key not in new else differences(value, new[key], f"{where}.{key}")
            )
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            found
            for number, pair in enumerate(zip(old, new, strict=True))
            for found in differences(*pair, f"{where}.{number}")
        ]
    if isinstance(old, float) and isinstance(new, int | float) and not isinstance(new, bool):
        return [] if new == pytest.approx(old, abs=TOLERANCE, rel=TOLERANCE) else [f"{where}: {old} was, {new} is"]
    return [] if old == new else [f"{where}: {old!r} was, {new!r} is"]


def figures(text: str) -> list[str]:
    """Every number of a table or of the words beneath it, as it is printed, in order."""
    return FIGURE.findall(text)


def test_the_comparison_finds_what_moved():
    old = {"a": [1.0, {"b": "x"}], "path": "here"}
    assert differences(old, {"a": [1.0 + 1e-9, {"b": "x"}], "path": "there", "more": 1}) == []
    assert differences(old, {"a": [1.00001, {"b": "x"}]}) == [".a.0: 1.0 was, 1.00001 is"]
    assert differences(old, {"a": [1.0, {}]}) == [".a.1.b is gone"]
    assert differences(old, {"a": [1.0]}) != []
    text = "78.1 (-1.0) & **97.9**, 1,234 of x1 -0.59 to +1.5"
    assert figures(text) == ["78.1", "-1.0", "97.9", "1,234", "-0.59", "+1.5"]


@pytest.mark.parametrize(
    ("name", "flags"),
    [("eval.json", []), ("eval-all.json", ["--calibration", "--hubness", "nnn", "--bootstrap"])],
)
def test_the_run_is_evaluated_to_the_same_metrics(alignvl, run, name, flags):
    found = json.loads(alignvl.succeeds("eval", run, "--json", "--device", "cpu", *flags))
    assert differences(told(name), found) == []
    assert found["metrics"]["rsum"] == pytest.approx(565.0, abs=TOLERANCE), "the golden file itself"


def test_every_query_of_the_run_has_the_same_rank(alignvl, run):
    kept = pyarrow.parquet.read_table(GOLDEN / "runs" / "golden-run" / "eval" / "golden-test.parquet")
    found = evaluate(load_run(run), open_store(alignvl.workspace / "stores" / "golden.h5"), "test")
    ranks = (found.image_to_text, found.text_to_image)
    assert kept["rank"].to_pylist() == np.concatenate([part.rank_Q for part in ranks]).tolist()
    assert kept["query_row"].to_pylist() == np.concatenate([part.row_Q for part in ranks]).tolist()
    assert kept["query_id"].to_pylist() == [name for part in ranks for name in part.id_Q]


@pytest.mark.parametrize("arm", ["plain", "mixed"])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_run_of_the_study_has_the_same_ranks(alignvl, arm, seed):
    study = alignvl.workspace / "studies" / "tiny"
    kept = pyarrow.parquet.read_table(study / "ranks.parquet").to_pandas()
    found = evaluate(
        load_run(study / "arms" / arm / f"seed-{seed}"), open_store(alignvl.workspace / "stores" / "golden.h5"), "test"
    )
    for direction in ("image_to_text", "text_to_image"):
        rows = kept[(kept["arm"] == arm) & (kept["seed"] == seed) & (kept["direction"] == direction)]
        assert rows["rank"].tolist() == getattr(found, direction).rank_Q.tolist()


@pytest.mark.parametrize(("kind", "path"), [("store", "stores/golden.h5"), ("index", "indexes/0001-golden-index")])
def test_inspect_says_the_same_of_it(alignvl, kind, path):
    found = json.loads(alignvl.succeeds("inspect", alignvl.workspace / path, "--json"))
    assert differences(told(f"inspect-{kind}.json"), found) == []
    assert found["kind"] == kind


def test_all_of_it_is_sound(alignvl, run):
    listed = {
        row["kind"]: row["what"] for row in json.loads(alignvl.succeeds("inspect", "--check", "--json"))["artefacts"]
    }
    assert {"store", "index", "study"} <= listed.keys()
    assert not any("broken" in what for what in listed.values())
    assert "all records equal theirs" in alignvl.succeeds("inspect", run, "--check")


def test_the_index_finds_what_exact_search_finds(alignvl, run):
    index = open_index(alignvl.workspace / "indexes" / "0001-golden-index")
    embeddings = embed_split(load_run(run), open_store(alignvl.workspace / "stores" / "golden.h5"), "test", "cpu")
    sides = {
        Gallery.image: (embeddings.txt_TE, embeddings.img_IE),
        Gallery.text: (embeddings.img_IE, embeddings.txt_TE),
    }
    for gallery, (query_QE, gallery_GE) in sides.items():
        score_Q1, row_Q1 = index.vectors[gallery].search(index.queries(query_QE.numpy()), 1)
        exact = (query_QE @ gallery_GE.T).max(dim=1)
        assert score_Q1[:, 0] == pytest.approx(exact.values.numpy(), abs=1e-5)
        assert row_Q1[:, 0].tolist() == exact.indices.tolist()
    assert [len(items.id) for items in index.items.values()] == [48, 80]


def test_the_study_is_read_to_the_same_verdicts(alignvl):
    study = alignvl.workspace / "studies" / "tiny"
    assert differences(told("report.json"), read_verdicts(study)) == []
    assert differences(told("report.json"), json.loads(alignvl.succeeds("report", "tiny", "--format", "json"))) == []
    assert list(read_study(study)["arms"]) == ["plain", "mixed"]


def test_the_study_has_the_same_figures_in_csv(alignvl):
    old = list(csv.DictReader(io.StringIO((TOLD / "report.csv").read_text(encoding="utf-8"))))
    new = list(csv.DictReader(io.StringIO(alignvl.succeeds("report", "tiny", "--format", "csv"))))
    assert len(old) == len(new) > 80
    assert old[0].keys() <= new[0].keys()
    for before, after in zip(old, new, strict=True):
        for column, cell in before.items():
            try:
                assert float(after[column]) == pytest.approx(float(cell), abs=TOLERANCE), (before, column)
            except ValueError:
                assert after[column] == cell


@pytest.mark.parametrize("form", ["markdown", "latex", "table"])
def test_the_study_has_the_same_figures_in_every_table(alignvl, form):
    old = (TOLD / ("ablate.txt" if form == "table" else f"report.{form}")).read_text(encoding="utf-8")
    assert figures(alignvl.succeeds("report", "tiny", "--format", form)) == figures(old)
    assert len(figures(old)) > 30
