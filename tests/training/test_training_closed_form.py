"""Runs by closed form: an ordinary run folder, its ridge chosen on validation."""

import json

import numpy as np
import pytest
import torch
from support.fakes import make_store
from support.killable_training import outcome

from alignvl_cli.align.adapters import COMPLETIONS
from alignvl_cli.align.closed_forms import CLOSED_FORMS, CSA_GRID, moments, rank
from alignvl_cli.align.ranks import image_to_text_ranks, text_to_image_ranks
from alignvl_cli.align.ranks import recalls as recalls_of
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.recipes import resolve_train, run_name
from alignvl_cli.settings import Method
from alignvl_cli.store.reader import open_store
from alignvl_cli.training import checkpoint as snapshot
from alignvl_cli.training.closed_form import fitted_tau
from alignvl_cli.training.data import load_split
from alignvl_cli.training.run import resume_run, train_run
from alignvl_cli.training.run_folder import METRICS, load_run
from alignvl_cli.training.state import Finished, Started, Tried, Validated
from alignvl_cli.training.validation import validate

METHODS = ["procrustes", "cca", "ridge"]
"""Those that are one linear map a side; `csa` has tests of its own."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("stores") / "store.h5", images=160, dim=12, text_dim=10, noise=0.3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("latent_norm", ["none", "standardize"])
def test_a_closed_form_is_an_ordinary_run(store, tmp_path, method, latent_norm):
    config = resolve_train({"method": method, "latent-norm": latent_norm, "device": "cpu"}, pairs=300)
    started, *tried, finished = train_run([store], tmp_path / "run", config)
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    assert all(isinstance(record, Tried) for record in tried)
    assert len(tried) == (1 if method == "procrustes" else 4)
    best = max(tried, key=lambda record: record.metrics["mean_recall"])
    assert finished.result["best"] == {"step": 0, "epoch": 0, **best.metrics, "ridge": best.ridge}
    run = load_run(tmp_path / "run")
    assert run.adapters.shape.embed_dim == 10
    assert run.temperature == pytest.approx(finished.result["tau"])
    opened = open_store(store)
    val = load_split([opened], "val")
    for tower, rows in ((run.adapters.image, val.image_ID), (run.adapters.text, val.text_TC)):
        rows.copy_(tower.norm(rows))
    assert validate(run.adapters, val)["mean_recall"] == best.metrics["mean_recall"] > 60
    lines = [json.loads(line) for line in (tmp_path / "run" / METRICS).read_text().splitlines()]
    assert [line["ridge"] for line in lines] == [record.ridge for record in tried]


def test_a_closed_form_has_no_batch_that_could_be_too_large(store, tmp_path):
    config = resolve_train({"method": "cca", "size": "released", "device": "cpu"}, pairs=300)
    started, *_ = train_run([store], tmp_path / "run", config)
    assert config.batch_size > started.pairs
    asked = {"method": "cca", "size": "released", "device": "cpu", "corrupt-captions": 0.2}
    corrupted = resolve_train(asked, pairs=300)
    assert list(train_run([store], tmp_path / "other", corrupted))[-1].result["positives"]["corrupted"]["pairs"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_centring_is_in_the_bias_and_the_memory_budget_changes_nothing(tmp_path, method):
    latents = np.random.default_rng(0).standard_normal((1500, 12)).astype(np.float32)
    plain = make_store(tmp_path / "a.h5", images=1500, captions_per_image=(2,), dim=12, image_latent=latents)
    moved = make_store(tmp_path / "b.h5", images=1500, captions_per_image=(2,), dim=12, image_latent=latents + 5)
    asked = {"method": method, "device": "cpu"}
    recalls = {}
    for name, path, more in (
        ("plain", plain, {}),
        ("moved", moved, {}),
        ("budget", plain, {"memory-budget": "0.1MB"}),
    ):
        *_, finished = train_run([path], tmp_path / name, resolve_train(asked | more, pairs=1800))
        recalls[name] = finished.result["best"]["mean_recall"]
    assert recalls["plain"] == pytest.approx(recalls["budget"], abs=0.5) == pytest.approx(recalls["moved"], abs=0.5)


def test_the_temperature_is_fitted_or_as_asked(store, tmp_path):
    fixed = resolve_train({"method": "cca", "temperature": "fixed:0.2", "device": "cpu"}, pairs=300)
    *_, finished = train_run([store], tmp_path / "fixed", fixed)
    assert finished.result["tau"] == pytest.approx(0.2)
    free = resolve_train({"method": "cca", "device": "cpu"}, pairs=300)
    *_, finished = train_run([store], tmp_path / "free", free)
    run = load_run(tmp_path / "free")
    assert fitted_tau(run.adapters, load_split([open_store(store)], "val")) == pytest.approx(finished.result["tau"])
    assert 0.001 < finished.result["tau"] < 0.5


def test_latents_that_do_not_vary_are_refused(tmp_path):
    flat = make_store(tmp_path / "flat.h5", images=60, dim=12, image_latent=np.ones((60, 12), dtype=np.float32))
    with pytest.raises(DataError, match="do not vary together"):
        list(train_run([flat], tmp_path / "run", resolve_train({"method": "cca", "device": "cpu"}, pairs=100)))


@pytest.mark.parametrize(
    "idle",
    [{"mix": True}, {"noise": "uniform"}, {"rp": False}, {"es": True}, {"smoothing": 0.1}, {"epochs": 3}, {"lr": 1e-3},
     {"batch-size": 8}, {"recipe": "alignvl"}, {"adapter": "linear"}, {"loss": "sigmoid"}, {"dropout": 0.1}],
    ids=str,
)  # fmt: skip
def test_what_has_no_effect_on_a_closed_form_is_refused_beside_it(idle):
    with pytest.raises(UsageError, match=r"--method cca is a closed form, on which --(no-)?\S+ has no effect"):
        resolve_train({"method": "cca"} | idle)
    with pytest.raises(UsageError, match="has no effect"):
        resolve_train({"method": "cca"}, idle)
    config = resolve_train(idle, {"method": "cca", "seed": 3})  # a stronger layer's method sets a weaker one's aside
    assert (run_name(config), config.mix, config.smoothing, config.epochs) == ("cca-s3", False, 0.0, 0)
    assert resolve_train({"method": "cca"}, {"method": "contrastive"} | idle).method == "contrastive"


def test_torch_is_left_as_it_was(store, tmp_path):
    before = torch.random.get_rng_state()
    list(train_run([store], tmp_path / "run", resolve_train({"method": "ridge", "device": "cpu"}, pairs=300)))
    assert torch.equal(torch.random.get_rng_state(), before)


STILL = {
    "size": "pairs", "latent-norm": "none", "init": "cca", "epochs": 1, "lr": 1e-12, "batch-size": 16, "embed-dim": 6,
    "device": "cpu",
}  # fmt: skip
"""From the start at CCA a step of next to no size."""


def test_training_starts_where_the_closed_form_ends(store, tmp_path):
    """With one linear map the start is `--method cca` itself; a step of next to no size leaves it there."""
    started = resolve_train(STILL | {"adapter": "linear", "latent-width": 0, "noise-std": 1e-9})
    list(train_run([store], tmp_path / "started", started))
    list(
        train_run(
            [store], tmp_path / "solved", resolve_train({"method": "cca", "embed-dim": 6, "device": "cpu"}, pairs=300)
        )
    )
    run, solved = load_run(tmp_path / "started"), load_run(tmp_path / "solved")
    for name, tensor in solved.adapters.state_dict().items():
        if name != "tau":
            assert torch.allclose(run.adapters.state_dict()[name], tensor, rtol=1e-4, atol=1e-6), name


def test_residual_branches_start_at_nothing_and_the_ridge_is_the_best_on_validation(store, tmp_path):
    list(train_run([store], tmp_path / "run", resolve_train(STILL | {"adapter-depth": 2}, pairs=100)))
    run = load_run(tmp_path / "run")
    weights = run.adapters.state_dict()
    assert all(
        weights[f"{side}.body.{block}.narrow.weight"].abs().max() < 1e-9
        for side in ("image", "text")
        for block in (0, 1)
    )
    opened = open_store(store)
    train, val = load_split([opened], "train"), load_split([opened], "val")
    image, text = (torch.nn.functional.layer_norm(rows, rows.shape[1:]) for rows in (train.image_ID, train.text_TC))
    found = moments([(image[train.text_image_T], text)])
    recalls = []
    for _, maps in CLOSED_FORMS[Method.cca](found, min(6, rank(found))):
        sides = []
        for rows, map_KW, mean_W in (
            (val.image_ID, maps.image_KD, found.image_mean_D),
            (val.text_TC, maps.text_KC, found.text_mean_C),
        ):
            embedded = (torch.nn.functional.layer_norm(rows, rows.shape[1:]).double() - mean_W) @ map_KW.T
            sides.append(torch.nn.functional.normalize(embedded, dim=1).float())
        ranks = (
            image_to_text_ranks(*sides, val.text_image_T).rank_Q,
            text_to_image_ranks(*sides, val.text_image_T).rank_Q,
        )
        every = [recall for rank_Q in ranks for recall in recalls_of(rank_Q).values()]
        recalls.append(sum(every) / len(every))
    assert len(set(recalls)) > 1
    assert run.result["best"]["mean_recall"] == pytest.approx(max(recalls), abs=1e-3)


def test_a_start_that_no_epoch_betters_is_kept(store, tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "CHECKPOINT_SHARE", 0)
    destroying = {"size": "pairs", "init": "cca", "epochs": 3, "lr": 10.0, "batch-size": 16}
    destroying |= {"latent-norm": "none", "embed-dim": 6, "device": "cpu"}
    config = resolve_train(destroying, pairs=100)
    records = list(train_run([store], tmp_path / "run", config))
    validated = [record for record in records if isinstance(record, Validated)]
    assert [(record.epoch, record.best) for record in validated] == [(0, True), (1, False), (2, False), (3, False)]
    assert records.index(validated[0]) == 1, "before the first step"
    run = load_run(tmp_path / "run")
    assert run.result["best"] == {"step": 0, "epoch": 0, **validated[0].metrics}
    still = resolve_train(destroying | {"epochs": 1, "lr": 1e-12, "keep-epoch": "best"}, pairs=100)
    list(train_run([store], tmp_path / "still", still))
    for name, tensor in load_run(tmp_path / "still").adapters.state_dict().items():
        assert torch.equal(run.adapters.state_dict()[name], tensor), name
    assert run.temperature == pytest.approx(fitted_tau(run.adapters, load_split([open_store(store)], "val")))
    assert run.temperature != pytest.approx(0.07, abs=1e-4)
    for after in (1, 2, len(records) - 1):  # nothing yet, the start alone, all but the end
        stopped = train_run([store], tmp_path / str(after), config, checkpoint_s=0.0)
        for _ in range(after):
            next(stopped)
        stopped.close()
        list(resume_run(tmp_path / str(after)))
        assert outcome(tmp_path / str(after)) == outcome(tmp_path / "run")


def test_a_fixed_temperature_of_a_kept_start_stays(store, tmp_path):
    config = resolve_train(
        {"size": "pairs", "init": "cca", "lr": 10.0, "epochs": 1, "batch-size": 16, "temperature": "fixed:0.2"},
        pairs=100,
    )
    *_, finished = train_run([store], tmp_path / "run", config)
    assert finished.result["best"]["epoch"] == 0
    assert finished.result["tau"] == load_run(tmp_path / "run").temperature == pytest.approx(0.2)


def test_latents_that_do_not_vary_together_are_trained_from_a_drawn_start(tmp_path):
    flat = make_store(tmp_path / "flat.h5", images=40, image_latent=np.ones((40, 6), np.float32))
    records = list(
        train_run([flat], tmp_path / "run", resolve_train({"init": "cca", "epochs": 1, "batch-size": 8}, pairs=40))
    )
    assert isinstance(records[-1], Finished)


def csa_scores(train, images_ID, texts_TC, ridge, dimensions, power):
    """CSA's weighted cosine (Li et al., ICLR 2025, equation 4) by way of numpy, a ridge added: with U S V' of the
    whitened cross-covariance, the sum over i < s of S_i a_i b_i / (|a| |b|), a and b the s projections of either
    side."""
    x, y = (rows.astype(np.float64) for rows in train)
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    x, y = x - x_mean, y - y_mean

    def whitening(rows):
        covariance = rows.T @ rows / len(rows)
        values, axes = np.linalg.eigh(
            covariance + ridge * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        )
        return axes / np.sqrt(values) @ axes.T

    white_x, white_y = whitening(x), whitening(y)
    left, correlation, right = np.linalg.svd(white_x @ (x.T @ y / len(x)) @ white_y, full_matrices=False)
    a = (images_ID - x_mean) @ white_x @ left[:, :dimensions]
    b = (texts_TC - y_mean) @ white_y @ right[:dimensions].T
    a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (a, b))
    return (a * correlation[:dimensions] ** power) @ b.T / correlation[0] ** power


def test_csa_ranks_by_its_formula(store, tmp_path):
    config = resolve_train({"method": "csa", "device": "cpu"}, pairs=300)
    started, *tried, finished = train_run([store], tmp_path / "run", config)
    assert isinstance(started, Started)
    assert [one.ridge for one in tried[: len(CSA_GRID)]] == [*CSA_GRID]
    best = finished.result["best"]
    assert best["mean_recall"] == max(one.metrics["mean_recall"] for one in tried) > 60
    assert {one.power for one in tried} == {0.5, 1.0, 2.0, 4.0}
    run, opened = load_run(tmp_path / "run"), open_store(store)
    assert run.adapters.shape.embed_dim == 10 + COMPLETIONS
    rows = opened.rows("train")
    train = opened.image_latent[rows.image][rows.text_image], opened.text_latent[rows.text]
    images_ID, texts_TC = opened.image_latent[:20], opened.text_latent[:30]
    img_IE = run.adapters.project_image(torch.from_numpy(images_ID.copy()))
    txt_TE = run.adapters.project_text(torch.from_numpy(texts_TC.copy()))
    wanted = csa_scores(train, images_ID, texts_TC, best["ridge"], best["dimensions"], best["power"])
    assert np.allclose((img_IE @ txt_TE.T).numpy(), wanted, atol=1e-5)
    assert torch.allclose(img_IE.norm(dim=1), torch.ones(20))


def test_csa_takes_fewer_dimensions_and_refuses_none(tmp_path):
    wide = make_store(tmp_path / "wide.h5", images=120, dim=40, text_dim=40, noise=1.0)
    *tried, _ = list(train_run([wide], tmp_path / "run", resolve_train({"method": "csa", "device": "cpu"}, pairs=200)))[
        1:
    ]
    assert [one.dimensions for one in tried[len(CSA_GRID) : -3]] == [20, 10]
    small = resolve_train({"method": "csa", "embed-dim": 2, "device": "cpu"}, pairs=200)
    with pytest.raises(UsageError, match="--embed-dim 2"):
        next(train_run([wide], tmp_path / "small", small))
