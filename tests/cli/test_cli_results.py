"""What each command puts on stdout, and what it takes when the user names nothing."""

import json
import os
import tomllib
from pathlib import Path

import pytest
from support.fakes import make_store

from alignvl_cli.ablation.records import STUDY
from alignvl_cli.artifacts import file_sha256, read_json
from alignvl_cli.cli.doctor import EXTRAS
from alignvl_cli.cli.workspace import MARKS, RUN_RESULT, Workspace
from alignvl_cli.retrieval.index import RECORD
from alignvl_cli.training.run_folder import CONFIG, RESULT

QUICK = ["--epochs", "2", "--batch-size", "32", "--embed-dim", "16", "--device", "cpu"]


def test_train_prints_the_path_alone_and_numbers_its_runs(alignvl):
    result = alignvl("train", "--recipe", "fusemix", "--seed", "3", *QUICK)
    assert result.stdout == f"{alignvl.workspace / 'runs' / '0003-fusemix-s3'}\n"
    assert "newest store" in result.stderr
    assert (Path(result.stdout.strip()) / "result.json").is_file()


def test_train_says_what_share_of_the_latents_the_noise_is(alignvl):
    assert "% of the image latents' RMS" in " ".join(alignvl("train", "--noise-std", "0.3", *QUICK).stderr.split())


def test_quiet_says_nothing_but_the_result(alignvl):
    result = alignvl("train", "--quiet", *QUICK)
    assert result.stderr == ""
    assert result.stdout.count("\n") == 1


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(alignvl):
    weights = [
        (Path(alignvl.succeeds("train", "--seed", seed, *QUICK).strip()) / "adapters.safetensors").read_bytes()
        for seed in ("5", "5", "6")
    ]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def test_settings_from_a_file_are_beaten_by_flags(alignvl, tmp_path):
    (tmp_path / "settings.toml").write_text('recipe = "clip"\nepochs = 1\nseed = 8\n')
    run = Path(alignvl.succeeds("train", "--config", tmp_path / "settings.toml", *QUICK).strip())
    settings = json.loads((run / "config.json").read_text())["settings"]
    assert (settings["recipe"], settings["seed"], settings["epochs"]) == ("clip", 8, 2)


def test_eval_json_is_one_document_with_the_newest_run(alignvl):
    result = json.loads(alignvl.succeeds("eval", "--json"))
    assert result["schema"] == "alignvl.eval/1"
    assert Path(result["run"]).name == "0002-alignvl-no-mix-uniform-s0"
    assert result["split"] == "test"
    assert result["selection_split"] == "val"
    assert result["images"] == 24
    assert result["index"] == {**result["index"], "factory": "Flat", "agreement_at_10": 1.0}
    recalls = [result["metrics"][way][f"R@{k}"] for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
    assert result["metrics"]["rsum"] == pytest.approx(sum(recalls))
    assert result["metrics"]["mean_recall"] == pytest.approx(sum(recalls) / 6)
    assert recalls[0] > 50, "fake latents are functions of the pair: training must find them"


def test_eval_keeps_its_result_and_the_ranks_beside_it(alignvl):
    import pandas

    result = json.loads(alignvl.succeeds("eval", "--json"))
    folder = Path(result["run"]) / "eval"
    name = f"fake-{result['provenance']['store_content_hash'][:8]}-test"
    saved = read_json(folder / f"{name}.json", "evaluation")
    assert saved.pop("sha256") == {f"{name}.parquet": file_sha256(folder / f"{name}.parquet")}
    assert saved == result
    ranks = pandas.read_parquet(folder / f"{name}.parquet")
    by_way = ranks.groupby("direction")["rank"]
    assert (by_way.apply(lambda rank: (rank < 1).mean() * 100)).to_dict() == pytest.approx(
        {way: result["metrics"][way]["R@1"] for way in ("image_to_text", "text_to_image")}
    )


def test_several_runs_stand_side_by_side(alignvl):
    runs = sorted((alignvl.workspace / "runs").iterdir())
    table = alignvl.succeeds("eval", *runs, runs[0])
    assert table.count("0001") >= 2
    assert "RSUM" in table
    assert max(map(len, table.splitlines())) <= 140
    document = json.loads(alignvl.succeeds("eval", *runs, "--json"))
    assert document["schema"] == "alignvl.eval-table/1"
    assert [Path(result["run"]).name[:4] for result in document["results"]] == ["0001", "0002"]


def test_the_table_states_protocol_counts_and_split(alignvl):
    table = " ".join(alignvl.succeeds("eval").split())
    for words in ("R@1", "R@5", "R@10", "24 images", "captions", "test", "tie", "val"):
        assert words in table, words
    assert "\x1b" not in table


def test_index_prints_its_path_and_inspect_reads_it(alignvl):
    index = Path(alignvl.succeeds("index").strip())
    assert index == alignvl.workspace / "indexes" / "0001-0002-alignvl-no-mix-uniform-s0-all"
    facts = json.loads(alignvl.succeeds("inspect", index, "--json", "--check"))
    assert facts["kind"] == "index"
    assert facts["counts"]["images"] == 120


@pytest.mark.parametrize("check", [[], ["--check"]])
def test_inspect_says_what_a_store_and_a_run_are(alignvl, check):
    store = json.loads(alignvl.succeeds("inspect", alignvl.workspace / "stores" / "fake.h5", "--json", *check))
    assert (store["kind"], store["images"], store["splits"]["test"]) == ("store", 120, 24)
    run = json.loads(alignvl.succeeds("inspect", sorted((alignvl.workspace / "runs").iterdir())[0], "--json", *check))
    assert run["kind"] == "run"
    assert run["config"]["settings"]["mix"] is True
    assert "fake.h5" in alignvl.succeeds("inspect", alignvl.workspace / "stores" / "fake.h5", *check)


def test_inspect_without_a_path_lists_the_workspace_and_what_is_broken_in_it(alignvl):
    broken = alignvl.workspace / "runs" / "0001-alignvl-s0" / "adapters.safetensors"
    broken.write_bytes(broken.read_bytes()[:-7])
    listed = json.loads(alignvl.succeeds("inspect", "--json"))["artefacts"]
    assert [(entry["kind"], entry["what"].startswith("broken")) for entry in listed] == [
        ("store", False),
        ("run", True),
        ("run", False),
    ]
    assert "0002-alignvl-no-mix-uniform-s0" in alignvl.succeeds("inspect")


def test_doctor_finds_the_machine_fit(empty):
    table = empty.succeeds("doctor")
    for topic in ("torch", "device", "precision", "threads", "model cache", "workspace"):
        assert topic in table


def test_doctor_knows_every_extra():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert EXTRAS.keys() == extras.keys() - {"dev"}
    for extra, modules in EXTRAS.items():
        assert len(modules) == len(extras[extra])


def test_doctor_names_what_is_wrong(empty, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    result = empty("doctor")
    assert result.exit_code == 3
    assert "checks failed" in result.stderr
    assert "workspace" in result.stdout


def test_newest_goes_by_the_counter_and_not_by_the_clock(alignvl):
    newer = make_store(alignvl.workspace / "stores" / "a-newer.h5", images=90, counter=2)
    os.utime(newer, (1, 1))
    assert f"newest store, {newer}" in alignvl("train", *QUICK).stderr


def test_the_files_that_tell_an_artefact_are_those_that_its_room_writes():
    assert {"run": CONFIG, "index": RECORD, "study": STUDY} == MARKS
    assert RESULT == RUN_RESULT


def test_numbers_go_on_beyond_four_digits(tmp_path):
    (tmp_path / "runs" / "9999-run").mkdir(parents=True)
    with Workspace(tmp_path).place_for(None, "runs", "run") as place:
        (place / "result.json").touch()
        (place / "config.json").write_text('{"format": "alignvl.run/1"}', encoding="utf-8")
    assert place.name == "10000-run"
    assert Workspace(tmp_path).runs() == [place]


def test_version():
    from typer.testing import CliRunner

    from alignvl_cli.artifacts import alignvl_version
    from alignvl_cli.cli.app import app

    assert CliRunner().invoke(app, ["--version"]).stdout == f"alignvl {alignvl_version()}\n"
