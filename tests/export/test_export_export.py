"""`alignvl export`: what is written loads in other programs and gives the run's embeddings, or nothing is written."""

import os
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from support.coloured_squares import train_on_colours
from support.command_line import CommandLine
from support.tiny_models import save_dinov2, save_sentence_transformer

from alignvl_cli import DualEncoder
from alignvl_cli.errors import DataError
from alignvl_cli.export import sentence_transformers as sentence
from alignvl_cli.export.parity import require_parity
from alignvl_cli.settings import Precision

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
TEXTS = ["red", "a Green square", "", "blue square 7 " * 30]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> CommandLine:
    """A workspace with runs of every adapter, fusemix last and joined, and the folder of their text
    encoder beside it."""
    folder = tmp_path_factory.mktemp("export")
    alignvl = CommandLine(folder / "workspace")
    save_dinov2(folder / "vision")
    save_sentence_transformer(folder / "sentences")
    train_on_colours(
        alignvl,
        folder,
        [
            "--vision",
            str(folder / "vision"),
            "--text",
            str(folder / "sentences"),
            "--text-layers",
            "last",
            "--device",
            "cpu",
        ],
    )
    trained = ["--epochs", 1, "--batch-size", 8, "--size", "pairs"]
    for words in (
        [*trained, "--adapter", "linear", "--latent-norm", "standardize"],
        [*trained, "--adapter", "mlp"],
        [*trained, "--recipe", "sail"],
        ["--method", "csa"],
        ["--method", "wasserstein-procrustes"],
        [*trained, "--cca-weight", "0.5"],
    ):
        alignvl.succeeds("train", "--embed-dim", 8, "--device", "cpu", *words)
    return alignvl


@pytest.fixture(autouse=True)
def in_float32(monkeypatch):
    """A CPU with bf16 encodes queries in it: an export is compared in float32, and so is it here."""
    monkeypatch.setattr("alignvl_cli.retrieval.dual_encoder.choose_precision", lambda asked, device: Precision.fp32)


def runs(alignvl: CommandLine) -> list[Path]:
    return sorted((alignvl.workspace / "runs").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "needs_code"), [(1, False), (2, False), (3, True), (4, True), (5, False), (6, True)]
)
def test_sentence_transformers_gives_the_runs_embeddings(trained, tmp_path, number, needs_code):
    run = runs(trained)[number]
    result = trained("export", run, "-o", tmp_path / "model", "--to", "sentence-transformers")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'model'}\n"
    difference = float(re.search(r"largest difference ([\d.e-]+)", result.stderr)[1])
    assert 0 <= difference <= 1e-4
    assert (tmp_path / "model" / "alignvl_blocks.py").exists() == needs_code
    model = SentenceTransformer(str(tmp_path / "model"), device="cpu", trust_remote_code=needs_code)
    wanted = DualEncoder.load(run, "cpu").encode_text(TEXTS)
    np.testing.assert_allclose(model.encode(TEXTS), wanted, atol=1e-4)
    assert model.get_embedding_dimension() == 8
    model.save(str(tmp_path / "again"))
    again = SentenceTransformer(str(tmp_path / "again"), device="cpu", trust_remote_code=needs_code)
    np.testing.assert_allclose(again.encode(TEXTS), model.encode(TEXTS), atol=1e-6)


@pytest.mark.slow
def test_onnx_gives_the_runs_embeddings_for_any_number_of_rows(trained, tmp_path):
    import onnxruntime

    assert trained("export", "-o", tmp_path / "graphs", "--to", "onnx").exit_code == 0
    encoder = DualEncoder.load(runs(trained)[-1], "cpu")
    for side, project in (("image", encoder.project_image), ("text", encoder.project_text)):
        session = onnxruntime.InferenceSession(tmp_path / "graphs" / f"{side}_adapter.onnx")
        for rows in (1, 7):
            width = session.get_inputs()[0].shape[1]
            latent_ND = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows)).numpy()
            (found,) = session.run(None, {"latent": latent_ND})
            np.testing.assert_allclose(found, project(latent_ND), atol=1e-5)


def test_the_card_of_a_run_without_pairs_says_that_nothing_was_selected_by_recall(trained, tmp_path):
    trained.succeeds("export", runs(trained)[5], "-o", tmp_path / "weights", "--to", "safetensors")
    card = (tmp_path / "weights" / "README.md").read_text()
    assert "Solved for without any pair on" in card
    assert "selected on" not in card


def test_the_card_tells_the_runs_record(trained, tmp_path):
    run = runs(trained)[-1]
    trained.succeeds("eval", run)
    trained.succeeds("export", run, "-o", tmp_path / "weights", "--to", "safetensors")
    card = (tmp_path / "weights" / "README.md").read_text()
    for wanted in (
        run.name,
        "| image | vision |",
        "| text | sentences |",
        "an ensemble of adapters (`fusemix`, `linear`)",
        "| noise_std | 0.7 |",
        "| temperature | learned |",
        "the epoch was selected on the split",
        "-test |",
        "| text adapter | ",
    ):
        assert wanted in card
    assert str(tmp_path.parent) not in card, "the card travels: it names no path of this machine"
    assert str(trained.workspace) not in (tmp_path / "weights" / "config.json").read_text().replace(
        str(trained.workspace.parent), ""
    )


def test_the_card_of_a_closed_form_tells_what_it_has(trained, tmp_path):
    run = tmp_path / "cca"
    trained.succeeds("train", "--method", "cca", "--device", "cpu", "-o", run)
    trained.succeeds("export", run, "-o", tmp_path / "weights", "--to", "safetensors")
    card = (tmp_path / "weights" / "README.md").read_text()
    assert "the ridge was chosen on the split `val`" in card
    assert "| temperature | fitted on the split val |" in card
    assert "| memory_budget | all latents in memory |" in card
    for absent in ("epoch", "lr", "dropout", "init", "recipe", "loss_tile"):
        assert f"| {absent}" not in card
    assert "epoch" not in card


def test_a_difference_leaves_nothing_behind(trained, tmp_path, monkeypatch):
    def damaged(adapter):
        modules = sentence_chain(adapter)
        modules[-2].weights["linear.bias"] = modules[-2].weights["linear.bias"] + 0.01
        return modules

    sentence_chain = sentence.chain
    monkeypatch.setattr(sentence, "chain", damaged)
    message = trained.fails(3, "export", "-o", tmp_path / "model", "--to", "sentence-transformers", "--quiet")
    assert "differs from the run by up to" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("theirs", [np.full((2, 3), np.nan), np.zeros((2, 4)), np.full((2, 3), 2e-4)])
def test_parity_refuses_what_is_not_the_same(theirs):
    with pytest.raises(DataError, match="nothing was written"):
        require_parity("x", np.zeros((2, 3)), theirs)


def test_a_folder_that_is_there_is_kept(trained, tmp_path):
    (tmp_path / "weights").mkdir()
    message = trained.fails(2, "export", "-o", tmp_path / "weights", "--to", "safetensors", "--quiet")
    assert "is there already" in message


def test_poolings_without_a_module_are_refused(trained, tmp_path, tmp_path_factory):
    folder = trained.workspace.parent
    other = CommandLine(tmp_path / "workspace")
    other.succeeds(
        *["extract", folder / "own.jsonl", "--vision", folder / "vision", "--text", folder / "sentences"],
        *["--text-pooling", "pooler", "--device", "cpu", "--quiet"],
    )
    other.succeeds("train", "--epochs", 1, "--batch-size", 8, "--embed-dim", 8, "--device", "cpu")
    message = other.fails(2, "export", "-o", tmp_path / "model", "--to", "sentence-transformers", "--quiet")
    assert "pooler" in message
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_the_page_runs(trained, tmp_path, monkeypatch, capsys):
    targets = {"text-model": "sentence-transformers", "graphs": "onnx", "weights": "safetensors", "vectors": "parquet"}
    targets["pair"] = "safetensors"  # the same files: its encoders are folders of this machine
    for folder, target in targets.items():
        trained.succeeds("export", "-o", tmp_path / folder, "--to", target)
    (tmp_path / "encoder").symlink_to(trained.workspace.parent / "sentences")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S):
        if "import lancedb" not in block or find_spec("lancedb"):  # too large for the extra `dev`
            exec(compile(block, str(PAGE), "exec"), names)  # the page's own code
    wanted = DualEncoder.load(runs(trained)[-1], "cpu").encode_text(["a red heart", "blue"])
    np.testing.assert_allclose(names["embeddings"].numpy(), wanted, atol=1e-5)
    assert "(3, 8)" in capsys.readouterr().out


def test_the_card_has_the_k_that_were_evaluated(trained, tmp_path):
    run = Path(shutil.copytree(runs(trained)[-1], tmp_path / "run"))
    shutil.rmtree(run / "eval", ignore_errors=True)
    trained.succeeds("eval", run, "--recall-k", "3,7")
    (run / "eval" / "notes.json").write_text("{}")
    trained.succeeds("export", run, "-o", tmp_path / "weights", "--to", "safetensors")
    card = (tmp_path / "weights" / "README.md").read_text()
    assert "image to text R@3 | image to text R@5 | image to text R@7 |" in card
    assert "notes" not in card


@pytest.mark.parametrize("target", ["safetensors", "sentence-transformers"])
def test_exported_files_have_the_mode_of_the_umask(trained, tmp_path, target):
    former = os.umask(0o027)
    try:
        trained.succeeds("export", "-o", tmp_path / "model", "--to", target)
    finally:
        os.umask(former)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert set(modes.values()) == {"0o640"}, modes
