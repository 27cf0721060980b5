"""`alignvl ablate` and `alignvl report` of a study over several stores and subsets, as a user calls them."""

import csv
import io
import json
import shutil

import pytest
from support.command_line import CommandLine
from support.fakes import make_store
from support.pages import Reader
from support.studies import STUDY, write_study

from alignvl_cli.ablation.records import run_folder
from alignvl_cli.report.study import MARKS, signed

SURFACE = STUDY + "[data]\nstores = ['drawings', 'photographs']\nsubsets = [40, 'all']\n"


@pytest.fixture(scope="module")
def surface(tmp_path_factory):
    """A workspace with two stores and one finished study on them; its file, and what was shown."""
    folder = tmp_path_factory.mktemp("surface")
    (folder / "ws" / "stores").mkdir(parents=True)
    for seed, name in enumerate(("drawings", "photographs")):
        place = folder / "ws" / "stores" / f"{name}-0123abc{seed}.h5"
        make_store(place, images=60, dim=12, text_dim=10, seed=seed, counter=seed + 1)
    alignvl = CommandLine(folder / "ws")
    study = write_study(folder / "tiny.toml", SURFACE)
    result = alignvl("ablate", study, "--jobs", "1", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "photographs all, noisy, seed 1: mean recall" in result.stderr
    return alignvl, study, result.stdout


@pytest.fixture
def copied(surface, tmp_path):
    return CommandLine(shutil.copytree(surface[0].workspace, tmp_path / "ws"))


def test_it_prints_over_sets_by_condition_and_each_cell(surface):
    alignvl, _, shown = surface
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert lines[0] == "tiny: Does it help?"
    assert "arm over sets tau I2 positive in p against plain" in lines
    assert "arm 40 all" in lines
    assert "arm set 40 all" in lines
    assert sum(line.startswith(("noisy drawings", "noisy photographs")) for line in lines) == 2
    assert alignvl.succeeds("report", "tiny") == shown


def test_every_format_has_the_same_figures(surface, tmp_path):
    alignvl, _, _ = surface
    document = json.loads(alignvl.succeeds("report", "tiny", "--format", "json"))
    cells = {cell["cell"]: cell for cell in document["cells"]}
    assert list(cells) == ["drawings 40", "drawings all", "photographs 40", "photographs all"]
    noisy = {name: cell["arms"][1]["difference"] for name, cell in cells.items()}
    rows = list(csv.DictReader(io.StringIO(alignvl.succeeds("report", "tiny", "--format", "csv"))))
    for row in rows:
        if (row["kind"], row["name"], row["metric"]) == ("arm", "noisy", "mean_recall"):
            assert float(row["difference"]) == pytest.approx(noisy[row["cell"]]["mean"])
            assert float(row["p_max_t"]) == noisy[row["cell"]]["p_max_t"]
    over = [row for row in rows if row["kind"] == "over sets" and row["name"] == "noisy"]
    assert [row["condition"] for row in over] == ["", "40", "all"]
    assert float(over[0]["difference"]) == pytest.approx(document["over_sets"][0]["difference"]["mean"])
    latex = alignvl.succeeds("report", "tiny", "--format", "latex")
    markdown = alignvl.succeeds("report", "tiny", "--format", "markdown")
    mean = noisy["photographs all"]["mean"]
    assert latex.count(r"\toprule") == 3
    assert f"{signed(mean, 2)} ?" in latex
    assert f"{signed(mean, 2)} ?" in markdown


def test_the_page_and_the_plots_have_the_heat_map(surface, tmp_path):
    alignvl, _, _ = surface
    alignvl.succeeds("report", "tiny", "-o", tmp_path / "page.html", "--plots", tmp_path / "plots")
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    assert names == {f"{name}.{suffix}" for name in ("heat-map", "over-sets") for suffix in ("png", "svg")}
    page = Reader((tmp_path / "page.html").read_text(encoding="utf-8"))
    page.check_that_nothing_acts()
    assert [section["id"] for section in page.all("section")][:2] == ["verdicts", "cells"]
    assert len(page.all("svg")) == 2
    assert "photographs" in page.text
    svg = (tmp_path / "plots" / "heat-map.svg").read_text(encoding="utf-8")
    cells = json.loads(alignvl.succeeds("report", "tiny", "--format", "json"))["cells"]
    for cell in cells:
        for arm in cell["arms"][1:]:
            assert f"{signed(arm['difference']['mean'], 1)} {MARKS[arm['verdict']]}" in svg


def test_the_file_on_the_page_is_the_study(surface, tmp_path):
    import tomllib

    from alignvl_cli.ablation.study import load_study, parse_study

    alignvl, study, _ = surface
    alignvl.succeeds("report", "tiny", "-o", tmp_path / "page.html")
    texts = Reader((tmp_path / "page.html").read_text(encoding="utf-8")).texts
    toml = next(text for text in texts if text.startswith("name = "))
    assert parse_study(tomllib.loads(toml)) == load_study(study)


def test_inspect_lists_describes_and_checks_it(surface):
    alignvl, _, _ = surface
    facts = json.loads(alignvl.succeeds("inspect", alignvl.workspace / "studies" / "tiny", "--check", "--json"))
    assert facts["what"] == "Does it help? 3 arms, 2 seeds, 4 cells"
    assert facts["verdicts"].keys() == {"noisy", 'a"b<c'}
    place = run_folder(alignvl.workspace / "studies" / "tiny", "noisy", 1, "drawings 40")
    assert place.is_dir()


@pytest.mark.parametrize("form", ["table", "markdown", "latex", "json", "csv", "html"])
def test_a_study_that_is_not_finished_is_reported_as_far_as_it_is(copied, form, tmp_path):
    folder = copied.workspace / "studies" / "tiny"
    (folder / "verdicts.json").unlink()
    shutil.rmtree(run_folder(folder, "noisy", 1, "drawings 40"))
    shutil.rmtree(folder / "arms" / 'a"b<c')
    if form == "html":
        copied.succeeds("report", "tiny", "-o", tmp_path / "page.html")
        text = Reader((tmp_path / "page.html").read_text(encoding="utf-8")).text
    else:
        text = copied.succeeds("report", "tiny", "--format", form)
    if form == "json":
        assert json.loads(text)["partial"] == {"runs": 24, "finished": 15}
    elif form == "csv":
        rows = list(csv.DictReader(io.StringIO(text)))
        assert not any(row["name"] == 'a"b<c' and row["kind"] == "arm" for row in rows)
    else:
        assert "15 of 24 runs" in " ".join(text.split())
    assert not (folder / "verdicts.json").exists()


def test_one_run_again_with_one_command_gives_the_same_weights(copied):
    folder = run_folder(copied.workspace / "studies" / "tiny", "noisy", 1, "photographs 40")
    kept = json.loads((folder / "config.json").read_text())
    store = copied.workspace / "stores" / "photographs-0123abc1.h5"
    run = copied.succeeds("train", store, "--config", folder / "config.json").strip()
    again = json.loads((copied.workspace.parent / run / "config.json").read_text())
    assert again["settings"] == kept["settings"]
    assert again["machine"] == kept["machine"]
    assert again["adapters_sha256"] == kept["adapters_sha256"]


def test_a_plan_tells_cells_and_what_is_left_out(copied, tmp_path):
    study = write_study(tmp_path / "more.toml", SURFACE.replace("[40,", "[40, 9000,"))
    shown = " ".join(copied.succeeds("ablate", study, "--plan", "--device", "cpu").split())
    assert "24 runs: 4 cells x 3 arms x 2 seeds; 24 of them finished" in shown
    assert "left out: drawings 9000, as the store has" in shown
    assert "6 are needed (exact sign-flip test)" in shown


def test_a_store_that_is_not_there_or_two_of_a_name_are_told(copied, tmp_path):
    def study(stores):
        return write_study(tmp_path / "s.toml", SURFACE.replace("['drawings', 'photographs']", stores))

    store = copied.workspace / "stores" / "drawings-0123abc0.h5"
    assert "leave --data out" in copied.fails(2, "ablate", study("['drawings']"), "--data", store)
    message = copied.fails(3, "ablate", study("['paintings']"))
    assert "stores there: drawings-0123abc0, photographs-0123abc1" in message
    make_store(copied.workspace / "stores" / "drawings-0123abc9.h5", images=60, seed=9, counter=3)
    message = copied.fails(2, "ablate", study("['drawings']"))
    assert "several stores are called so (drawings-0123abc0, drawings-0123abc9)" in message
    copied.succeeds("ablate", study("['drawings-0123abc0', 'photographs']"), "--plan", "--device", "cpu")
    shutil.copy(store, tmp_path / "mine.h5")
    copied.succeeds("ablate", study("['mine.h5', 'photographs']"), "--plan", "--device", "cpu")
