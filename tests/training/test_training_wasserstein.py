"""`--method wasserstein-procrustes`: runs in which no pair has a part, in which some have, and in which all have."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.fakes import make_store

from alignvl_cli.errors import UsageError
from alignvl_cli.recipes import resolve_train, run_name
from alignvl_cli.report.reproduce import departing_settings
from alignvl_cli.store.reader import open_store
from alignvl_cli.training import closed_form
from alignvl_cli.training.closed_form import solve
from alignvl_cli.training.prepare import prepare
from alignvl_cli.training.run import train_run
from alignvl_cli.training.run_folder import load_run
from alignvl_cli.training.state import Finished, Tried

ASKED = {"method": "wasserstein-procrustes", "device": "cpu"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(closed_form, "SEEDS", 4)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Captions are their pictures, rotated, in a cloud with shapes of its own."""
    draw = np.random.default_rng(0)
    shapes = 2 * draw.standard_normal((14, 8)) * np.linspace(2, 0.5, 8)
    image = shapes[draw.integers(14, size=800)] + 0.4 * draw.standard_normal((800, 8))
    turned, _ = np.linalg.qr(draw.standard_normal((8, 8)))
    return make_store(
        tmp_path_factory.mktemp("stores") / "s.h5",
        images=800,
        captions_per_image=[1],
        image_latent=image.astype(np.float32),
        text_latent=(image @ turned + 0.05 * draw.standard_normal((800, 8))).astype(np.float32),
    )


def weights(run):
    return {name: tensor for name, tensor in load_run(run).adapters.state_dict().items() if name != "tau"}


def test_a_rotation_is_found_of_which_the_pairing_knows_nothing(store, tmp_path):
    *tried, finished = list(train_run([store], tmp_path / "run", resolve_train(ASKED, pairs=480)))[1:]
    assert isinstance(finished, Finished)
    assert all(isinstance(record, Tried) for record in tried)
    assert len(tried) == 4
    best = max(tried, key=lambda record: record.objective)
    assert finished.result["best"]["objective"] == best.objective
    assert finished.result["best"]["mean_recall"] == best.metrics["mean_recall"] > 60
    opened = open_store(store)
    found = {}
    for name in ("as they are", "shuffled"):
        plan, state, _ = prepare([opened], opened, resolve_train(ASKED), "cpu")
        if name == "shuffled":  # neither training nor validation pairs are what they were
            for split in (plan.gather.data, plan.val):
                split.text_image_T.copy_(split.text_image_T.flip(0))
        list(solve(plan, state))
        found[name] = {key: tensor for key, tensor in state.best.weights.items() if key != "tau"}
    for key, tensor in found["shuffled"].items():
        assert torch.equal(tensor, found["as they are"][key]), key


def test_with_all_pairs_and_nothing_else_it_is_procrustes(store, tmp_path):
    list(train_run([store], tmp_path / "pairs", resolve_train(ASKED | {"pair-share": 1}, pairs=480)))
    list(train_run([store], tmp_path / "procrustes", resolve_train(ASKED | {"method": "procrustes"}, pairs=480)))
    for name, tensor in weights(tmp_path / "procrustes").items():
        assert torch.equal(tensor, weights(tmp_path / "pairs")[name]), name


def test_a_larger_share_of_all_pairs_comes_nearer_to_procrustes(store, tmp_path):
    list(train_run([store], tmp_path / "procrustes", resolve_train(ASKED | {"method": "procrustes"}, pairs=480)))
    wanted = weights(tmp_path / "procrustes")
    apart = []
    for share in (0.5, 0.999):
        config = resolve_train(ASKED | {"pair-share": share, "subset": "uniform:30"}, pairs=480)
        list(train_run([store], tmp_path / f"{share}", config))
        found = weights(tmp_path / f"{share}")
        both = [one["image.body.0.weight"].T @ one["text.body.0.weight"] for one in (wanted, found)]
        apart.append((both[0] - both[1]).norm().item())
    assert max(apart) < 0.5


def test_pictures_and_captions_of_other_stores_are_matched_too(store, tmp_path):
    opened, more = open_store(store), make_store(tmp_path / "m.h5", images=30, dim=8, captions_per_image=[1], seed=5)
    few = resolve_train(ASKED | {"subset": "uniform:20", "pair-share": 0.5})
    plan, _, started = prepare([opened], opened, few, "cpu", unpaired=[opened, open_store(more)])
    assert started.selection["unpaired"] == {"images": 480 - 20 + 18, "captions": 480 - 20 + 18}
    assert len(plan.loaded.unpaired.image) == 480 + 18
    assert plan.unpaired is None, "there is no teacher to solve for"
    records = list(train_run([store], tmp_path / "run", few, unpaired=[more]))
    assert isinstance(records[-1], Finished)
    list(train_run([store], tmp_path / "rest", few))  # what --subset leaves
    assert load_run(tmp_path / "rest").config["unpaired"][0]["content_hash"] == opened.content_hash
    alone = replace(few, pair_share=1.0)
    with pytest.raises(UsageError, match="closed form of pairs"):
        next(train_run([store], tmp_path / "other", alone, unpaired=[more]))


@pytest.mark.parametrize("share", [0, 0.5])
def test_a_memory_budget_reads_what_is_drawn(tmp_path, share):
    large = make_store(tmp_path / "l.h5", images=2000, dim=8, captions_per_image=[1])
    config = resolve_train(ASKED | {"memory-budget": "70kB", "pair-share": share}, pairs=1200)
    *_, finished = train_run([large], tmp_path / "run", config)
    assert isinstance(finished, Finished)


def test_a_run_says_what_it_was(store, tmp_path):
    config = resolve_train(ASKED | {"pair-share": 0.5, "subset": "uniform:30"}, pairs=480)
    assert run_name(config) == "wasserstein-procrustes-s0"
    asked = departing_settings(config.to_json(), 480)
    assert asked["method"] == "wasserstein-procrustes"
    assert asked["pair-share"] == 0.5
    assert resolve_train(asked, pairs=480) == replace(config, device=resolve_train(asked).device)
