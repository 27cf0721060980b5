"""The public functions: the documented examples are typed and run, and agree with what the command line made."""

import copy
import inspect
import json
import os
import pickle
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import mypy.api
import numpy as np
import pytest
from PIL import Image
from support.fakes import make_store

import alignvl_cli
from alignvl_cli import DualEncoder, build_index, classify, evaluate, open_store, run_study, search, train
from alignvl_cli.ablation.run import Begun, Finished
from alignvl_cli.errors import DataError, MismatchError, UsageError
from alignvl_cli.retrieval.evaluate import compare
from alignvl_cli.retrieval.index import open_index
from alignvl_cli.training.state import Started, Validated

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "python.md"
EXAMPLE = ROOT / "docs" / "examples" / "python_api.py"


def test_the_documented_example_runs(coloured, tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 1
    workspace = tmp_path / "alignvl-workspace"
    (workspace / "stores").mkdir(parents=True)
    (workspace / "runs").symlink_to(coloured.workspace / "runs")
    (workspace / "stores" / "own.h5").symlink_to(next((coloured.workspace / "stores").glob("*.h5")))
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(blocks[0], str(PAGE), "exec"), names)  # the page's own code
    assert names["words"].shape == (2, 8)
    assert names["pictures"].shape == (1, 8)
    assert names["probabilities"].sum() == pytest.approx(1)
    assert names["gallery"].shape[0] == len(names["test"].image)
    assert ".png" in capsys.readouterr().out


def newest(coloured):
    return next((coloured.workspace / "runs").iterdir()), next((coloured.workspace / "stores").glob("*.h5"))


def test_the_example_is_typed_and_its_mistakes_are_found(tmp_path):
    code = EXAMPLE.read_text(encoding="utf-8")
    said, problems, status = mypy.api.run(["--config-file", str(ROOT / "pyproject.toml"), str(EXAMPLE)])
    assert status == 0, said + problems
    wrong = tmp_path / "wrong.py"
    wrong.write_text(code.replace('split="test"', "splitt='test'").replace("found.metrics", "found.metricks"))
    said, _, status = mypy.api.run(["--config-file", str(ROOT / "pyproject.toml"), str(wrong)])
    assert status == 1
    assert "splitt" in said
    assert "metricks" in said


@pytest.mark.slow
def test_the_example_runs(coloured, tiny_encoders, tmp_path, capsys):
    vision, text = tiny_encoders[1], tiny_encoders[3]
    data = coloured.workspace.parent / "own.jsonl"
    runpy.run_path(str(EXAMPLE))["main"](str(data), tmp_path, vision, text)
    printed = capsys.readouterr().out
    assert "60 images, 120 captions" in printed
    assert "plain: the reference" in printed
    assert open_store(tmp_path / "store.h5").content_hash == open_store(newest(coloured)[1]).content_hash


def test_every_public_name_is_documented_typed_and_takes_its_settings_by_keyword():
    page = PAGE.read_text(encoding="utf-8")
    for name in alignvl_cli.__all__:
        found = getattr(alignvl_cli, name)
        assert name in dir(alignvl_cli)
        if name == "__version__":
            assert found == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
            continue
        assert f"`{name}" in page or f"`.{name}" in page, name
        assert len(inspect.getdoc(found)) > 60, name
        if inspect.isfunction(found) and name not in ("open_store", "search", "run_study"):
            by_place = [each for each in inspect.signature(found).parameters.values() if each.kind <= 1]
            assert len(by_place) <= 2, name
            assert all(each.annotation is not each.empty for each in inspect.signature(found).parameters.values())
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = alignvl_cli.trian
    assert (Path(alignvl_cli.__file__).parent / "py.typed").is_file()


@pytest.mark.slow
def test_functions_find_what_commands_find(coloured):
    path, store = newest(coloured)
    told = json.loads(coloured("eval", path, "--json", "--device", "cpu", "--calibration").stdout)
    found = evaluate(path, calibration=True, device="cpu")
    assert found.metrics.to_json() == told["metrics"]
    assert json.loads(json.dumps(found.to_json()))["calibration"] == told["calibration"]
    told = json.loads(coloured("classify", path, "--json", "--device", "cpu").stdout)
    assert classify(path, store, device="cpu").top1 == told["top1"]
    few = classify(DualEncoder.load(path, "cpu"), labels=["red", "green", "blue", "pink"], templates=["a {}"])
    assert few.labels == ("red", "green", "blue", "pink")
    again = classify(path, labels=iter(few.labels), templates=(one for one in ["a {}"]), device="cpu")
    assert (again.top1, again.templates) == (few.top1, few.templates)
    for alone in ({"labels": "red"}, {"templates": "a {}"}):
        with pytest.raises(UsageError, match="wants a list of texts"):
            classify(path, device="cpu", **alone)
    index = next((coloured.workspace / "indexes").iterdir())
    told = json.loads(coloured("search", "red", "--index", index, "-k", "4", "--json", "--device", "cpu").stdout)
    (hits,) = search(index, ["red"], k=4, device="cpu")
    assert [hit.to_json() for hit in hits] == told["results"][0]["hits"]
    picture = coloured.workspace.parent / "0.png"
    (by_picture,) = search(open_index(index), [picture], k=1, device="cpu")
    assert by_picture[0].caption


@pytest.mark.slow
def test_training_and_studies_by_function(tmp_path):
    store = make_store(tmp_path / "s.h5", images=60, dim=12, text_dim=10)
    events: list = []
    quick = {"epochs": 2, "batch_size": 16, "embed_dim": 8, "device": "cpu"}
    run = train([store], output=tmp_path / "run", noise="uniform", on_event=events.append, **quick)
    assert isinstance(events[0], Started)
    assert any(isinstance(event, Validated) for event in events)
    assert run.config["settings"]["noise"] == "uniform"
    again = train(open_store(store), output=tmp_path / "again", noise="uniform", **quick)
    assert again.config["adapters_sha256"] == run.config["adapters_sha256"]
    study = {
        "name": "two",
        "reference": "plain",
        "seeds": [0],
        "base": {"recipe": "clip", "epochs": 1, "batch-size": 16, "embed-dim": 8},
        "arms": {"plain": {}, "mixed": {"mix": True}},
    }
    events.clear()
    found = run_study(study, store, output=tmp_path / "study", seeds=[0, 1], device="cpu", on_event=events.append)
    assert found.seeds == (0, 1)
    assert [type(events[0]), type(events[-1])] == [Begun, Finished]


def test_what_is_wrong_is_said_as_on_the_command_line(coloured, tmp_path):
    path, store = newest(coloured)
    with pytest.raises(UsageError, match=r"unknown setting 'epoch'.*Did you mean 'epochs'"):
        train(store, output=tmp_path / "run", epoch=3)
    with pytest.raises(UsageError, match="device: wanted one of"):
        evaluate(path, device="gpu")
    with pytest.raises(UsageError, match="hubness: wanted one of"):
        build_index(path, output=tmp_path / "index", hubness="much", device="cpu")
    index = next((coloured.workspace / "indexes").iterdir())
    with pytest.raises(UsageError, match="wanted a list of queries"):
        search(index, "red")
    with pytest.raises(UsageError, match="texts alone or pictures alone"):
        search(index, ["red", Path("blue.png")])
    with pytest.raises(MismatchError):
        evaluate(path, make_store(tmp_path / "other.h5"), device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_what_holds_a_run_can_be_copied_and_pickled(coloured, copied):
    path, stored = newest(coloured)
    store, encoder = open_store(stored), DualEncoder.load(path, "cpu")
    texts, pictures = ["red", "a blue square"], [coloured.workspace.parent / "0.png"]
    wanted = encoder.encode_text(texts), encoder.encode_image(pictures)  # and so its encoders are loaded
    other = copied(encoder)
    assert "_text" not in vars(other)
    # The weights are loaded once more, and lie otherwise in memory: torch then rounds otherwise.
    assert np.allclose(other.encode_text(texts), wanted[0], atol=1e-6)
    assert np.allclose(other.encode_image(pictures), wanted[1], atol=1e-6)
    latents = store.text_block(slice(0, 9))
    assert np.array_equal(other.project_text(latents), encoder.project_text(latents))
    assert other.temperature == encoder.temperature
    found = evaluate(encoder.run, store, bootstrap=True, calibration=True, hubness="report", device="cpu")
    assert evaluate(copied(encoder.run), copied(store), device="cpu").metrics == found.metrics
    assert copied(found).to_json() == found.to_json()
    assert len(compare([copied(found), found]).evaluations) == 2
    index = open_index(next((coloured.workspace / "indexes").iterdir()))
    assert search(copied(index), texts, encoder=encoder) == search(index, texts, encoder=encoder)


def test_a_copied_store_is_the_same_store_or_none(tmp_path):
    path = make_store(tmp_path / "s.h5", images=20)
    store = open_store(path)
    small = pickle.dumps(store)
    assert len(small) < 1000
    assert np.array_equal(copy.copy(store).image_block(slice(0, 3)), store.image_block(slice(0, 3)))
    path.unlink()
    make_store(path, images=20, seed=1)
    with pytest.raises(DataError, match="another store"):
        pickle.loads(small)


def test_a_pickled_encoder_works_in_another_process(coloured, tmp_path):
    encoder = DualEncoder.load(newest(coloured)[0], "cpu")
    (tmp_path / "encoder.pickle").write_bytes(pickle.dumps(encoder))
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).encode_text(['red']).tolist())"
    words = [sys.executable, "-c", code, str(tmp_path / "encoder.pickle")]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=os.environ)
    assert np.allclose(json.loads(done.stdout), encoder.encode_text(["red"]), atol=1e-6)
