"""Divergence, warnings, early stopping and weight averaging."""

import json
from dataclasses import replace

import pytest
import torch
from support.fakes import make_store

from alignvl_cli.align.adapters import TAU_RANGE
from alignvl_cli.align.losses import LossParts
from alignvl_cli.errors import DivergedError, UsageError
from alignvl_cli.recipes import resolve_train
from alignvl_cli.settings import OptimizerKind
from alignvl_cli.store.reader import open_store
from alignvl_cli.training import loop
from alignvl_cli.training.ingredients import epoch_slices
from alignvl_cli.training.optimizer import LION_WEIGHT_DECAY, Average, adamw, optimiser_of, step_unless
from alignvl_cli.training.prepare import prepare
from alignvl_cli.training.run import train_run
from alignvl_cli.training.run_folder import ADAPTERS, METRICS
from alignvl_cli.training.state import Finished, Step, Validated, Warned
from alignvl_cli.training.validation import (
    SKIPPED_IN_A_ROW,
    Skips,
    collapse_warnings,
    mean_squared_cosine,
    tau_warnings,
)

SIZE = {
    "size": "pairs",
    "latent-norm": "none",
    "batch-size": 24,
    "embed-dim": 8,
    "lr": 3e-3,
    "device": "cpu",
    "precision": "fp32",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("stores") / "s.h5", images=60, dim=12, text_dim=10)


def settings(**asked):
    return resolve_train(SIZE | {key.replace("_", "-"): value for key, value in asked.items()}, pairs=144)


def prepared(store, **asked):
    opened = open_store(store)
    plan, state, _ = prepare([opened], opened, settings(**asked), "cpu")
    return plan, state


def poison_steps(monkeypatch, is_poisoned):
    """The loss of every step for which `is_poisoned(number)` holds is NaN, numbers from 1."""
    honest, calls = loop.batch_loss, []

    def batch_loss(*args, **kwargs):
        calls.append(None)
        loss = honest(*args, **kwargs)
        return LossParts(loss.loss * float("nan"), loss.hard_loss) if is_poisoned(len(calls)) else loss

    monkeypatch.setattr(loop, "batch_loss", batch_loss)


@pytest.mark.parametrize(
    "problem",
    [
        torch.OutOfMemoryError("CUDA: tried to allocate 9 GiB\nand more of this"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GiB)"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 GiB"),
    ],
    ids=["CUDA", "MPS", "CPU"],
)
def test_a_device_whose_memory_is_too_small_is_told_what_to_try(store, tmp_path, monkeypatch, problem):
    def full(*args, **kwargs):
        raise problem

    monkeypatch.setattr(loop, "batch_loss", full)
    with pytest.raises(UsageError, match=r"--batch-size 24, .*tiles of 24.*9 GiB.*--loss-tile"):
        list(train_run([store], tmp_path / "run", settings()))


@pytest.mark.parametrize("kind", ["gaussian", "uniform", "laplace"])
def test_noise_on_the_output_is_added_in_float32_whatever_the_adapters_compute_in(store, monkeypatch, kind):
    asked = {"noise": kind, "noise_position": "output", "noise_std": 1e-3, "precision": "bf16"}
    plan, state = prepared(store, **asked)
    (perturb,) = plan.outputs
    added = []

    def watched(batch, slices):
        noisy = perturb(batch, slices)
        added.append(noisy.image - batch.image)
        return noisy

    plan = replace(plan, outputs=(watched,))
    for slices in epoch_slices(plan.gather.data.epoch_order(torch.Generator().manual_seed(0)), 24):
        loop.batch_loss(plan, state.adapters, slices, 0.0)
    noise = torch.stack(added)
    assert noise.dtype == torch.float32
    assert (noise != 0).all()
    assert noise.std().item() == pytest.approx(1e-3, rel=0.1)


def test_a_step_that_is_not_finite_changes_nothing_but_the_count(store, monkeypatch):
    plan, state = prepared(store)
    slices = list(loop.epoch_slices(plan.gather.data.epoch_order(torch.Generator().manual_seed(0)), 24))
    loop.take_step(plan, state, slices[0])
    weights = {name: tensor.clone() for name, tensor in state.adapters.state_dict().items()}
    moments = {id(key): {k: v.clone() for k, v in value.items()} for key, value in state.optimiser.state.items()}
    poison_steps(monkeypatch, lambda number: True)
    _, skipped = loop.take_step(plan, state, slices[1])
    assert skipped.item() == 1.0
    assert state.step == 2
    for name, tensor in state.adapters.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    for key, value in state.optimiser.state.items():
        assert all(torch.equal(value[name], tensor) for name, tensor in moments[id(key)].items())
    monkeypatch.undo()
    assert loop.take_step(plan, state, slices[2])[1].item() == 0.0
    assert not torch.equal(state.adapters.state_dict()["tau"], weights["tau"])
    assert state.skips.counts.tolist() == [1.0, 0.0, 1.0]


def test_gradients_that_overflow_are_skipped_though_the_loss_is_finite():
    skips, loss = Skips("cpu"), LossParts(torch.tensor(1.0), torch.tensor(1.0))
    assert skips.judge(loss, [torch.ones(3), torch.tensor([1.0, float("inf")])]).item() == 1.0
    assert skips.judge(loss, [torch.ones(3)]).item() == 0.0
    assert skips.counts.tolist() == [1.0, 0.0, 1.0]


def test_single_bad_steps_are_counted_warned_about_once_and_left_out_of_the_means(store, tmp_path, monkeypatch):
    poison_steps(monkeypatch, lambda number: number % 7 == 0)
    records = list(train_run([store], tmp_path / "run", settings(epochs=6)))
    total = records[0].total_steps
    assert records[-1].result["skipped_steps"] == total // 7 > 2
    (warned,) = [record for record in records if isinstance(record, Warned)]
    assert warned.text.startswith("a loss or gradient was not finite by step 7")
    lines = [json.loads(line) for line in (tmp_path / "run" / METRICS).read_text().splitlines()]
    assert {line["kind"] for line in lines} == {"step", "validated", "warned"}
    assert max(line["skipped"] for line in lines if line["kind"] == "step") == total // 7


def test_too_many_in_a_row_end_the_run_and_keep_the_best(store, tmp_path, monkeypatch):
    first_epochs = 2 * (prepared(store)[0].steps_per_epoch)
    poison_steps(monkeypatch, lambda number: number > first_epochs)
    with pytest.raises(DivergedError, match=rf"{SKIPPED_IN_A_ROW} steps in a row .*of step \d+, is kept"):
        list(train_run([store], tmp_path / "run", settings(epochs=20)))
    assert (tmp_path / "run" / ADAPTERS).is_file()


def test_the_fused_optimiser_equals_the_plain_one(store):
    plan, state = prepared(store)
    fused = state.adapters
    plain = Average(fused, 0.5).adapters.requires_grad_(True)  # a copy
    groups = [{**group, "params": []} for group in adamw(plain).param_groups]
    for parameter in plain.parameters():
        groups[0 if parameter.ndim >= 2 else 1]["params"].append(parameter)
    reference = torch.optim.AdamW([{**group, "fused": False, "foreach": False} for group in groups])
    draw = torch.Generator().manual_seed(0)
    for step in range(20):
        for one, other in zip(fused.parameters(), plain.parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=draw)
            other.grad = one.grad.clone()
        rate = 1e-3 / (1 + step)
        step_unless(state.optimiser, torch.zeros(()), rate)
        for group in reference.param_groups:
            group["lr"] = rate
        reference.step()
    for one, other in zip(fused.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-6)
    assert plan.config.epochs > 0


def test_lion_takes_the_published_steps_and_none_that_is_skipped(store):
    """Algorithm 2 of Chen et al. (arXiv 2302.06675), in plain numbers, over some steps of which the third is
    skipped."""
    _, state = prepared(store)
    adapters = state.adapters
    optimiser = optimiser_of(OptimizerKind.lion, adapters)
    wanted = [parameter.detach().double().clone() for parameter in adapters.parameters()]
    moments = [torch.zeros_like(weight) for weight in wanted]
    draw = torch.Generator().manual_seed(0)
    for step in range(6):
        is_skipped, rate = step == 2, 1e-3 / (1 + step)
        for parameter, weight, moment in zip(adapters.parameters(), wanted, moments, strict=True):
            parameter.grad = torch.randn(parameter.shape, generator=draw)
            if is_skipped:
                parameter.grad.fill_(torch.nan)
                continue
            grad = parameter.grad.double()
            decay = LION_WEIGHT_DECAY if parameter.ndim >= 2 else 0.0
            update = torch.sign(0.9 * moment + 0.1 * grad)
            weight -= rate * (update + decay * weight)
            moment.mul_(0.99).add_(grad, alpha=0.01)
        step_unless(optimiser, torch.tensor(float(is_skipped)), rate)
    for parameter, weight in zip(adapters.parameters(), wanted, strict=True):
        assert torch.allclose(parameter.double(), weight, rtol=0, atol=1e-6)


def test_a_temperature_at_its_bound_is_told():
    lowest, highest = TAU_RANGE
    assert [cause for cause, _ in tau_warnings(lowest)] == ["tau low"]
    assert [cause for cause, _ in tau_warnings(highest)] == ["tau high"]
    assert not list(tau_warnings(0.07))


def test_mean_squared_cosine_is_that_of_all_pairs_of_two_rows():
    rows = torch.nn.functional.normalize(torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    cosine = rows @ rows.T
    apart = ~torch.eye(40, dtype=torch.bool)
    assert mean_squared_cosine(rows) == pytest.approx(cosine[apart].square().mean().item(), rel=1e-4)
    assert mean_squared_cosine(rows[:1].expand(9, 6)) == pytest.approx(1.0)
    assert mean_squared_cosine(torch.cat([rows[:1], -rows[:1]])) == pytest.approx(1.0)  # a line is no better
    assert mean_squared_cosine(torch.eye(4)) == pytest.approx(0.0, abs=1e-6)
    assert [cause for cause, _ in collapse_warnings({"image": 0.3, "text": 0.95})] == ["collapsed text"]


def test_collapsed_embeddings_are_told_in_words(tmp_path):
    import numpy as np

    flat = np.ones((60, 12), dtype=np.float32)  # every picture the same
    path = make_store(tmp_path / "flat.h5", images=60, dim=12, text_dim=10, image_latent=flat)
    records = list(train_run([path], tmp_path / "run", settings(epochs=2)))
    (warned,) = [record for record in records if isinstance(record, Warned)]
    assert warned.text.startswith("the image embeddings have collapsed")


def test_patience_stops_and_says_so(store, tmp_path):
    still = settings(init="random", epochs=12, lr=1e-12)  # nothing moves: the first validation stays the best
    records = list(train_run([store], tmp_path / "run", replace(still, patience=3)))
    assert [record.best for record in records if isinstance(record, Validated)] == [True] * 4  # all equal
    result = records[-1].result
    assert isinstance(records[-1], Finished)
    assert result["stopped_early"] is True
    assert result["steps"] == 4 * records[0].steps_per_epoch
    whole = list(train_run([store], tmp_path / "whole", still))[-1].result
    assert whole["stopped_early"] is False
    assert whole["steps"] == 12 * records[0].steps_per_epoch


def test_the_average_of_the_weights_is_what_is_validated_and_kept(store):
    plan, state = prepared(store, ema=0.9, epochs=3)
    expected = {name: parameter.detach().clone() for name, parameter in state.adapters.named_parameters()}
    slices = list(loop.epoch_slices(plan.gather.data.epoch_order(torch.Generator().manual_seed(0)), 24))
    for step, one in enumerate(slices, start=1):
        loop.take_step(plan, state, one)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, parameter in state.adapters.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach()
    kept = dict(state.judged.named_parameters())
    for name, tensor in expected.items():
        assert torch.allclose(kept[name], tensor, atol=1e-6), name
    assert not torch.allclose(kept["image.body.2.weight"], state.adapters.image.body[2].weight)


def test_averaging_leaves_the_training_itself_alone(store, tmp_path):
    plain, averaged = (
        list(train_run([store], tmp_path / f"ema{ema}", settings(init="random", ema=ema, epochs=3)))
        for ema in (0.0, 0.9)
    )
    losses = [[record.loss for record in records if isinstance(record, Step)] for records in (plain, averaged)]
    assert losses[0] == losses[1]
    assert (tmp_path / "ema0.0" / ADAPTERS).read_bytes() != (tmp_path / "ema0.9" / ADAPTERS).read_bytes()


@pytest.mark.parametrize("asked", [{"ema": 1.0}, {"ema": -0.1}, {"patience": -1}])
def test_settings_out_of_range(asked):
    with pytest.raises(UsageError, match=f"--{next(iter(asked))}"):
        settings(**asked)
