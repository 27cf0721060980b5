"""`--structure`: what it adds to a step's loss, of which rows, and that such a run resumes to the same bytes."""

import pytest
import torch
from support.fakes import make_store
from support.killable_training import require_resumed_alike

from alignvl_cli.align.structure import structure_loss
from alignvl_cli.recipes import resolve_train, run_name
from alignvl_cli.settings import StructureDivergence
from alignvl_cli.store.reader import open_store
from alignvl_cli.training.ingredients import epoch_slices
from alignvl_cli.training.loop import batch_loss
from alignvl_cli.training.prepare import prepare
from alignvl_cli.training.run import train_run
from alignvl_cli.training.run_folder import load_run

QUICK = {"epochs": 4, "batch-size": 8, "embed-dim": 8, "lr": 3e-3, "size": "pairs", "device": "cpu"}
STILL = {"dropout": 0, "precision": "fp32"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("stores") / "s.h5", images=60, dim=12, text_dim=10)


def loss_of(store, progress=1.0, **more):
    asked = QUICK | STILL | {key.replace("_", "-"): value for key, value in more.items()}
    plan, state, _ = prepare([open_store(store)], open_store(store), resolve_train(asked), "cpu")
    slices = next(epoch_slices(torch.arange(plan.gather.data.pairs), 8))
    return batch_loss(plan, state.adapters, slices, progress), plan, state.adapters, slices


@pytest.mark.parametrize("noise", [{"rp": False}, {"noise-std": 2.0, "noise-position": "output"}], ids=str)
def test_a_step_adds_the_weighted_divergence_of_latents_and_embeddings(store, noise):
    asked = {"mix": False} | noise
    found, plan, adapters, slices = loss_of(store, structure=5, structure_levels=2, **asked)
    plain, *_ = loss_of(store, **asked)
    batch = plan.gather(slices.anchor_N)
    embedded = adapters.image.body(batch.image), adapters.text.body(batch.text)
    wanted = structure_loss((batch.image, batch.text), embedded, 2, StructureDivergence.paper)
    assert (found.loss - plain.loss).item() == pytest.approx(5 * wanted.item(), rel=1e-4)
    assert found.hard_loss == plain.hard_loss
    warming, *_ = loss_of(store, progress=0.05, structure=5, structure_levels=2, structure_warmup=0.2, **asked)
    assert (warming.loss - plain.loss).item() == pytest.approx(5 / 4 * wanted.item(), rel=1e-4)


def test_what_is_kept_is_of_the_rows_as_mixed_and_not_yet_perturbed(store):
    asked = {"mix": True, "noise-std": 2.0}
    found, plan, adapters, slices = loss_of(store, structure=5, **asked)
    plain, *_ = loss_of(store, **asked)
    again, *_ = prepare([open_store(store)], open_store(store), plan.config, "cpu")
    mixed = again.inputs[0](again.gather(slices.anchor_N), slices)
    noisy = again.inputs[2](mixed, slices)
    embedded = adapters.image.body(noisy.image), adapters.text.body(noisy.text)
    wanted = structure_loss((mixed.image, mixed.text), embedded, 1, StructureDivergence.paper)
    assert (found.loss - plain.loss).item() == pytest.approx(5 * wanted.item(), rel=1e-4)


def test_a_run_keeps_more_of_who_resembles_whom_and_its_name_says_so(store, tmp_path):
    kept = {}
    for weight in (0, 100):
        config = resolve_train(QUICK | {"structure": weight, "epochs": 20}, pairs=96)
        list(train_run([store], tmp_path / str(weight), config))
        run, opened = load_run(tmp_path / str(weight)), open_store(store)
        image_ID, text_TC = torch.tensor(opened.image_latent[:40]), torch.tensor(opened.text_latent[:40])
        after = run.adapters.project_image(image_ID), run.adapters.project_text(text_TC)
        kept[weight] = structure_loss((image_ID, text_TC), after, 1, StructureDivergence.paper).item()
        assert ("structure" in run.config["settings"]) == bool(weight)
        assert ("structure100" in run_name(config)) == bool(weight)
    assert kept[100] < 0.7 * kept[0]


def test_a_stopped_run_resumes_to_the_same_bytes(store, tmp_path):
    config = resolve_train(QUICK | {"structure": 10, "structure-levels": 2, "structure-divergence": "code"})
    require_resumed_alike(store, tmp_path, config, after=4)


def test_a_batch_too_large_to_compare_whole_is_said(store, monkeypatch):
    monkeypatch.setattr("alignvl_cli.training.prepare.MAX_ROWS", 7)
    _, _, started = prepare([open_store(store)], open_store(store), resolve_train(QUICK | {"structure": 1}), "cpu")
    assert any("first 7 rows" in note for note in started.notes)
