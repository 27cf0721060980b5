"""Bad input: the documented exit code, one clear message, no traceback, and nothing of the user's lost."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from support.fakes import make_store
from support.studies import write_study
from support.tiny_models import save_dinov2

from alignvl_cli.cli import app as application
from alignvl_cli.cli.app import Terminated, leave_with
from alignvl_cli.errors import DataError, DivergedError

QUICK = ["--epochs", "2", "--batch-size", "32", "--embed-dim", "16", "--device", "cpu"]


def manifest(tmp_path: Path, text: str | bytes, name: str = "pairs.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("pairs.jsonl", b"", "empty"),
        ("pairs.jsonl", bytes(range(256)) * 9, "pairs.jsonl"),
        ("pairs.csv", b"picture,caption\na.png,one\n", "'image'"),
        ("pairs.jsonl", b'{"image": "a.png"}\n', "caption"),
        ("pairs.jsonl", b'{"image": "a.png", "captions": ["x"]}\n{"image": "a.png", "captions": ["y"]}\n', "a.png"),
        ("pairs.jsonl", b'{"image": "a.png", "captions": ["x"]}\n{"image": "b.png", "captions": ["y"]}\n', "none of"),
    ],
    ids=["empty", "binary", "no image column", "no caption", "duplicate ids", "every image unreadable"],
)
def test_manifests_that_cannot_be_extracted(empty, tmp_path, tiny_encoders, name, content, said):
    message = empty.fails(3, "extract", manifest(tmp_path, content, name), *tiny_encoders)
    assert said in message
    assert not list(tmp_path.rglob("*.h5"))


def test_a_missing_manifest(empty):
    assert "gone.jsonl" in empty.fails(3, "extract", "gone.jsonl")


@pytest.mark.parametrize("command", [("extract",), ("data", "check")])
def test_an_empty_text_is_no_dataset(empty, command):
    """As `extract "$DATA"` gives with the variable unset: it read all that lies in the folder of the user."""
    assert "is empty" in empty.fails(2, *command, "")


def test_an_unknown_demo(empty):
    assert "demo:emoji" in empty.fails(2, "extract", "demo:emojis")


def test_an_unknown_model_while_offline(empty, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Image.new("RGB", (9, 9), "red").save(tmp_path / "a.png")
    path = manifest(tmp_path, '{"image": "a.png", "captions": ["x"]}\n')
    assert "nobody/nothing" in empty.fails(3, "extract", path, "--vision", "nobody/nothing")


def test_nothing_to_take_up(empty):
    assert "alignvl extract" in empty.fails(3, "train")
    assert "alignvl train" in empty.fails(3, "eval")
    assert "alignvl train" in empty.fails(3, "search", "red heart")
    assert not empty.workspace.exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--no-rp", "--noise", "uniform"], "--no-rp"),
        (["--lr", "nan"], "--lr"),
        (["--epochs", "0"], "--epochs"),
        (["--noise", "unifrom"], "Invalid value for '--noise': 'unifrom' is not one of"),
        (["--batch-size", "100000"], "100000"),
        (["--temperature", "hot"], "--temperature"),
        (["--memory-budget", "8"], "--memory-budget"),
        (["--memory-budget", "1kB"], "needs at least"),
        (["--ema", "1"], "--ema"),
        (["--patience", "-1"], "--patience"),
    ],
)
def test_settings_that_cannot_be_trained(alignvl, flags, said):
    before = sorted(alignvl.workspace.rglob("*"))
    assert said in alignvl.fails(2, "train", *flags)
    assert sorted(alignvl.workspace.rglob("*")) == before


def test_an_unknown_key_in_the_settings_file(alignvl, tmp_path):
    (tmp_path / "settings.toml").write_text("noise-sdt = 0.3\n")
    assert "'noise-std'" in alignvl.fails(2, "train", "--config", tmp_path / "settings.toml")


def test_a_device_that_is_not_there(alignvl):
    import torch

    absent = "cuda" if not torch.cuda.is_available() else "mps"
    assert f"--device {absent}" in alignvl.fails(2, "train", "--device", absent)
    assert f"--device {absent}" in alignvl.fails(2, "eval", "--device", absent)


def break_truncated(store: Path) -> None:
    store.write_bytes(store.read_bytes()[: store.stat().st_size // 2])


def break_text(store: Path) -> None:
    store.write_text("not a store")


def break_nan(store: Path) -> None:
    with h5py.File(store, "r+") as file:
        file["image/latent"][3, 4] = np.nan


@pytest.mark.parametrize("damage", [break_truncated, break_text, break_nan])
def test_stores_that_are_broken(alignvl, tmp_path, damage):
    store = Path(shutil.copy(alignvl.workspace / "stores" / "fake.h5", tmp_path / "broken.h5"))
    damage(store)
    assert "broken.h5" in alignvl.fails(3, "train", store, *QUICK)
    assert "broken.h5" in alignvl.fails(3, "inspect", store, "--check")


def test_a_run_and_a_store_of_other_encoders(alignvl, tmp_path):
    other = make_store(tmp_path / "other.h5", images=60, encoders="other")
    message = alignvl.fails(4, "eval", "--data", other)
    assert "other" in message
    assert "fake" in message


def test_runs_on_different_sets_are_not_put_side_by_side(alignvl, tmp_path):
    other = make_store(tmp_path / "other.h5", images=90, seed=2)
    run = alignvl.succeeds("train", other, *QUICK).strip()
    assert "different" in alignvl.fails(4, "eval", alignvl.workspace / "runs" / "0001-alignvl-s0", run)


def test_an_incomplete_run(alignvl):
    run = alignvl.workspace / "runs" / "0002-alignvl-no-mix-uniform-s0"
    (run / "result.json").unlink()
    assert "incomplete" in alignvl.fails(3, "eval", run)
    assert "0001" in alignvl("eval", "--json").stdout, "the newest *complete* run is what eval takes"


def test_a_split_that_does_not_exist(alignvl):
    message = alignvl.fails(3, "eval", "--split", "testing")
    assert "testing" in message
    assert "test (24 images)" in message


def test_the_store_that_a_run_was_trained_on_is_gone(alignvl, tmp_path):
    store = make_store(tmp_path / "elsewhere.h5", images=90, seed=3)
    run = alignvl.succeeds("train", store, *QUICK).strip()
    store.unlink()
    message = alignvl.fails(3, "eval", run)
    assert "elsewhere.h5" in message
    assert "--data" in message


def test_a_complete_artefact_is_not_replaced_unasked(alignvl, tmp_path):
    run = tmp_path / "run"
    alignvl.succeeds("train", "-o", run, *QUICK)
    before = (run / "adapters.safetensors").read_bytes()
    alignvl.fails(2, "train", "-o", run, "--seed", "9", *QUICK)
    assert (run / "adapters.safetensors").read_bytes() == before
    alignvl.succeeds("train", "-o", run, "--seed", "9", "--overwrite", *QUICK)
    assert (run / "adapters.safetensors").read_bytes() != before


def test_a_folder_of_the_users_is_never_overwritten(alignvl, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    alignvl.fails(2, "train", "-o", tmp_path / "mine", "--overwrite", *QUICK)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.slow
def test_what_only_looks_like_an_artefact_is_never_overwritten(alignvl, tmp_path):
    run = alignvl.workspace / "runs" / "0001-alignvl-s0"
    save_dinov2(tmp_path / "model")
    alignvl.succeeds("export", run, "--to", "safetensors", "-o", tmp_path / "exported")
    shutil.copytree(run, tmp_path / "with-thesis")
    (tmp_path / "with-thesis" / "thesis.txt").write_text("years of work")
    for name in ("config.json", "index.json", "study.json"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("{}")
        (tmp_path / name / "thesis.txt").write_text("years of work")
    alignvl.succeeds("index", run, "-o", tmp_path / "index")
    (tmp_path / "index" / "thesis.txt").write_text("years of work")
    study = write_study(tmp_path / "tiny.toml", seeds="[0]")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for folder in (path for path in tmp_path.iterdir() if path.is_dir() and path != alignvl.workspace):
        for words in (["train", *QUICK, "--overwrite", "-o"], ["index", run, "--overwrite", "-o"]):
            message = alignvl.fails(2, *words, folder)
            assert "name another place" in message
        assert "no study" in alignvl.fails(2, "ablate", study, "-o", folder)
    assert {path: path.read_bytes() for path in before} == before


def test_no_reader_takes_a_foreign_folder_for_an_unfinished_artefact(alignvl, tmp_path):
    save_dinov2(tmp_path / "model")
    for command in ("inspect", "eval", "index", "report"):
        message = alignvl.fails(3, command, tmp_path / "model", *(["-o", "p.html"] if command == "report" else []))
        assert "a model folder of Hugging Face" in message
        assert "--overwrite" not in message
    for name, said in (("index.json", "not an index"), ("study.json", "not a study")):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("{}")
        assert said in alignvl.fails(3, "inspect", tmp_path / name)


def test_search_wants_one_kind_of_query(alignvl):
    assert "TEXT" in alignvl.fails(2, "search")
    assert "TEXT" in alignvl.fails(2, "search", "words", "--image", "a.png")


@pytest.mark.parametrize("texts", [[""], ["red", "  "]])
def test_a_search_for_nothing(alignvl, texts):
    assert "TEXT is blank" in alignvl.fails(2, "search", *texts)
    assert not (alignvl.workspace / "indexes").exists(), "no index is built for it"


def test_the_run_that_an_index_was_made_of_is_gone(alignvl):
    run = alignvl.workspace / "runs" / "0001-alignvl-s0"
    alignvl.succeeds("index", run)
    shutil.rmtree(run.parent)  # another run may have the very same adapters
    message = alignvl.fails(3, "search", "red")
    assert "is neither in the workspace" in message
    assert "alignvl index RUN" in message


def test_a_store_without_the_splits_that_a_probe_or_a_study_wants(alignvl, tmp_path):
    store = make_store(tmp_path / "train.h5", images=40, splits={"train": 1.0})
    assert "no image in split 'test'" in alignvl.fails(3, "probe", store)
    (tmp_path / "study.toml").write_text('name = "s"\nreference = "a"\nseeds = [0]\n[arms.a]\n[arms.b]\nmix = false\n')
    message = alignvl.fails(3, "ablate", tmp_path / "study.toml", "--data", store)
    assert "selects on val and compares on test" in message


def test_a_report_of_a_name_that_is_none_tells_the_studies_there_are(alignvl):
    assert "studies in the workspace: none" in alignvl.fails(3, "report", "mien")


def test_inspect_of_something_else(alignvl, tmp_path):
    assert "no such artefact" in alignvl.fails(3, "inspect", tmp_path / "gone")
    (tmp_path / "begun.h5.partial").mkdir()
    assert "run the same `alignvl extract` again" in alignvl.fails(3, "inspect", tmp_path / "begun.h5")
    assert "no store, run, index or study" in alignvl.fails(3, "inspect", tmp_path)


def raises(problem: BaseException):
    def work() -> None:
        raise problem

    return work


@pytest.mark.parametrize(
    ("problem", "code", "said"),
    [
        (DivergedError("tau left"), 5, "tau left"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Terminated(), 143, "terminated"),
        (OSError(28, "No space left on device", "/disk/run"), 3, "/disk/run: No space left on device"),
        (ZeroDivisionError("oops"), 1, "this is a bug"),
    ],
)
def test_each_way_out_has_its_code_and_one_message(capsys, problem, code, said):
    assert leave_with(raises(problem), verbose=False) == code
    streams = capsys.readouterr()
    assert said in streams.err
    assert "Traceback" not in streams.err
    assert streams.out == ""


def test_verbose_adds_the_traceback(capsys):
    leave_with(raises(DataError("found this")), verbose=True)
    assert "Traceback" in capsys.readouterr().err


def test_every_command_is_behind_the_boundary():
    names = {command.name for command in application.app.registered_commands}
    assert {"extract", "train", "eval", "index", "search", "inspect", "doctor"} <= names


@pytest.mark.parametrize("output", ["", "/", "."])
@pytest.mark.parametrize(
    "words",
    [
        ["extract"],
        ["train"],
        ["index"],
        ["export", "run", "--to", "safetensors"],
        ["report"],
        ["ablate", "study.toml"],
        ["store", "import", "pairs", "--vision", "v", "--text", "t"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_an_output_without_a_name(empty, words, output):
    assert "--output: wanted the name of" in empty.fails(2, *words, "-o", output)


def test_a_stray_or_broken_file_is_passed_over_with_a_warning_that_names_it(alignvl):
    whole = (alignvl.workspace / "stores" / "fake.h5").read_bytes()
    (alignvl.workspace / "stores" / "empty.h5").touch()
    (alignvl.workspace / "stores" / "half.h5").write_bytes(whole[:2000])
    (alignvl.workspace / "stores" / "folder.h5").mkdir()
    for folder, mark, last in (("runs", "config.json", "result.json"), ("indexes", "index.json", "index.json")):
        broken = alignvl.workspace / folder / "0009-broken"
        broken.mkdir(parents=True)
        (broken / mark).write_text("{")
        (broken / last).write_text("{")
        (alignvl.workspace / folder / "0010-file").write_text("mine")
    for words, told in (
        (["inspect"], ["empty.h5", "half.h5", "folder.h5", "0009-broken"]),
        (["eval"], ["empty.h5", "half.h5", "folder.h5", "0009-broken"]),
        (["train", *QUICK], ["empty.h5", "half.h5"]),
        (["probe"], ["empty.h5", "half.h5"]),
    ):
        result = alignvl(*words)
        assert result.exit_code == 0, result.output
        said = "".join(result.stderr.split())
        assert all(f"{name}:no" in said for name in told), result.stderr
