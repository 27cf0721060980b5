"""`alignvl ablate` and `alignvl report`, as a user calls them."""

import csv
import io
import json
import shutil

import pytest
from support.studies import STUDY, write_study

from alignvl_cli.ablation.records import read_verdicts, run_folder


@pytest.fixture(scope="module")
def studied(tmp_path_factory, prepared):
    """A workspace with one finished study."""
    from support.command_line import CommandLine

    folder = tmp_path_factory.mktemp("studied")
    alignvl = CommandLine(shutil.copytree(prepared, folder / "workspace"))
    study = write_study(folder / "tiny.toml")
    shown = alignvl.succeeds("ablate", study, "--jobs", "1", "--device", "cpu")
    return alignvl, study, shown


@pytest.mark.slow
def test_a_study_prints_its_verdicts_and_only_those(studied):
    _, _, shown = studied
    assert shown.splitlines()[0].strip() == "tiny: Does it help?"
    assert "against plain" in shown
    assert 'a"b<c' in shown
    assert "runs; 1 at a time" not in shown


def test_again_as_json_equals_the_record(studied):
    alignvl, study, _ = studied
    document = json.loads(alignvl.succeeds("ablate", study, "--json", "--device", "cpu"))
    assert document["schema"] == "alignvl.verdicts/1"
    assert document == read_verdicts(alignvl.workspace / "studies" / "tiny")


def test_what_was_given_is_kept_with_the_study_and_with_each_run(studied):
    alignvl, _, _ = studied
    folder = alignvl.workspace / "studies" / "tiny"
    record = json.loads((folder / "study.json").read_text())
    assert record["given"]["device"] == "cpu"
    for name, arm in record["arms"].items():
        run = json.loads((run_folder(folder, name, 1) / "config.json").read_text())
        asked = {key: value for layer in arm["layers"] for key, value in layer.items()}
        assert run["given"] == {"size": "pairs"} | record["base"] | asked | {"seed": 1, "device": "cpu"}


def test_the_report_shows_it_again_in_every_format(studied):
    alignvl, _, shown = studied
    assert alignvl.succeeds("report") == shown
    assert alignvl.succeeds("report", "tiny") == shown
    assert json.loads(alignvl.succeeds("report", "--format", "json"))["reference"] == "plain"
    markdown = alignvl.succeeds("report", "tiny", "--format", "markdown")
    assert '| a"b\\<c | 2 |' in markdown
    latex = alignvl.succeeds("report", "tiny", "--format", "latex")
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == 2
    assert r"a\textquotedbl{}b\textless{}c & 2 &" in latex
    rows = list(csv.DictReader(io.StringIO(alignvl.succeeds("report", "tiny", "--format", "csv"))))
    assert {row["name"] for row in rows} == {"plain", "noisy", 'a"b<c'}


def test_inspect_lists_and_describes_it(studied):
    alignvl, _, _ = studied
    listed = json.loads(alignvl.succeeds("inspect", "--json"))["artefacts"]
    (row,) = [row for row in listed if row["kind"] == "study"]
    assert row["what"] == "Does it help? 3 arms, 2 seeds"
    facts = json.loads(alignvl.succeeds("inspect", row["path"], "--check", "--json"))
    assert facts["verdicts"]["plain"] == "the reference"
    assert facts["counter"] == 1


def test_the_plan_makes_nothing(studied, tmp_path):
    alignvl, study, _ = studied
    shown = alignvl.succeeds("ablate", study, "--plan", "--seeds", "0-6", "-o", tmp_path / "none", "--device", "cpu")
    assert "21 runs: 3 arms x 7 seeds; 0 of them finished" in shown
    assert "7 seeds can settle it" in shown
    document = json.loads(alignvl.succeeds("ablate", study, "--plan", "--json", "--device", "cpu"))
    assert (document["finished"], document["can_settle"]) == (6, False)
    assert not (tmp_path / "none").exists()


def test_what_is_wrong_whatever_the_data_is_a_usage_error(studied, tmp_path):
    alignvl, study, _ = studied
    broken = write_study(tmp_path / "broken.toml", STUDY.replace("smoothing = 0.2", "smothing = 0.2"))
    assert "Did you mean 'smoothing'?" in alignvl.fails(2, "ablate", broken)
    assert "arm '../up'" in alignvl.fails(
        2, "ablate", write_study(tmp_path / "up.toml", STUDY.replace("arms.noisy", "arms.'../up'"))
    )
    assert "--jobs" in alignvl.fails(2, "ablate", study, "--jobs", "0")
    assert "--threads" in alignvl.fails(2, "ablate", study, "--threads", "0")
    assert "0-9 for 10 seeds" in alignvl.fails(2, "ablate", study, "--seeds", "10")
    assert "margin" in alignvl.fails(2, "ablate", study, "--margin", "0")


def test_missing_things_have_their_codes(studied, tmp_path):
    alignvl, study, _ = studied
    assert "cannot read this study" in alignvl.fails(3, "ablate", tmp_path / "none.toml")
    assert "no such store" in alignvl.fails(3, "ablate", study, "--data", tmp_path / "none.h5")
    assert "not a study" in alignvl.fails(3, "report", tmp_path)


def test_a_changed_and_a_shorter_study_say_what_is_made_anew_and_what_is_hidden(studied, tmp_path):
    alignvl, _, _ = studied
    folder = tmp_path / "study"
    shutil.copytree(alignvl.workspace / "studies" / "tiny", folder)
    changed = write_study(tmp_path / "changed.toml", STUDY.replace("0.2", "0.3"))
    result = alignvl("ablate", changed, "-o", folder, "--jobs", "1", "--device", "cpu")
    assert result.exit_code == 0, result.output
    said = " ".join(result.stderr.split())
    assert "6 runs, 4 of them finished before" in said
    assert 'changed since the folder was begun, and trained anew: smoothing was 0.2 and is 0.3 (a"b<c)' in said
    assert "2 finished runs in the folder: not asked for now, kept, and in no table" in said


def test_all_runs_diverging_leaves_with_5(studied, tmp_path):
    alignvl, _, _ = studied
    wild = write_study(tmp_path / "wild.toml", lr="1e30", seeds="[0]")
    message = alignvl.fails(5, "ablate", wild, "-o", tmp_path / "wild", "--jobs", "1", "--device", "cpu", "--quiet")
    assert "every run of this study failed" in message
    assert "not finished" in alignvl.fails(3, "report", tmp_path / "wild")


def test_without_a_study_the_report_says_how_to_make_one(empty):
    assert "alignvl ablate STUDY.toml" in empty.fails(3, "report")
