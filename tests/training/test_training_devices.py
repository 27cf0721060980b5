"""Training on every device that is here: the same run again, bad steps, latents beside the device, no waiting."""

import pytest
import torch
from support.fakes import make_store
from support.killable_training import outcome

from alignvl_cli.align.losses import LossParts
from alignvl_cli.recipes import resolve_train
from alignvl_cli.store.reader import open_store
from alignvl_cli.training import ingredients, loop, prepare
from alignvl_cli.training.ingredients import epoch_slices
from alignvl_cli.training.run import resume_run, train_run

DEVICES = [
    "cpu",
    *(["cuda"] if torch.cuda.is_available() else []),
    *(["mps"] if torch.backends.mps.is_available() else []),
]
pytestmark = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("stores") / "s.h5", images=60, dim=12, text_dim=10)


def settings(device, **asked):
    size = {
        "size": "pairs",
        "epochs": 3,
        "batch-size": 24,
        "embed-dim": 8,
        "lr": 3e-3,
        "precision": "fp32",
        "noise-std": 0.3,
    }
    return resolve_train(size | asked | {"device": device}, pairs=144)


def prepared(store, device, **asked):
    opened = open_store(store)
    plan, state, _ = prepare.prepare([opened], opened, settings(device, **asked), device)
    return plan, state


def slices_of(plan):
    return list(epoch_slices(plan.gather.data.epoch_order(torch.Generator().manual_seed(0)), 24))


def test_a_run_learns_and_goes_on_after_a_stop(store, tmp_path, device):
    whole = list(train_run([store], tmp_path / "whole", settings(device)))
    assert whole[-1].result["device"] == device
    assert whole[-1].result["best"]["mean_recall"] > 0
    stopped = train_run([store], tmp_path / "run", settings(device), checkpoint_s=0.0)
    for _ in range(7):
        next(stopped)
    stopped.close()
    list(resume_run(tmp_path / "run"))
    losses = [
        [line["loss"] for line in outcome(tmp_path / name)[1] if line["kind"] == "step"] for name in ("run", "whole")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_latents_that_do_not_fit_are_sent_batch_by_batch(store, device, monkeypatch):
    on_device = prepared(store, device, **{"mask-duplicates": True})
    monkeypatch.setattr(prepare, "fits_on", lambda device, size: False)
    beside = prepared(store, device, **{"mask-duplicates": True})
    assert beside[0].gather.data.text_TC.device.type == "cpu"
    sends = []
    send = ingredients.sent
    monkeypatch.setattr(ingredients, "sent", lambda tensor, to: (sends.append(str(to)), send(tensor, to))[1])
    for (plan, state), _ in ((on_device, 0), (beside, 1)):
        for one in slices_of(plan)[:3]:
            loop.take_step(plan, state, one)
    for one, other in zip(on_device[1].adapters.parameters(), beside[1].adapters.parameters(), strict=True):
        assert one.device.type == other.device.type == device
        assert torch.allclose(one, other, atol=1e-6)
    assert sends.count(device) >= 2 * 3 * 3  # image, text and keys of anchors and partners, three steps


def test_a_bad_step_changes_nothing(store, device, monkeypatch):
    plan, state = prepared(store, device)
    first, second, *_ = slices_of(plan)
    loop.take_step(plan, state, first)
    before = [parameter.detach().clone() for parameter in state.adapters.parameters()]
    honest = loop.batch_loss

    def poisoned(*args, **kwargs):
        loss = honest(*args, **kwargs)
        return LossParts(loss.loss * float("nan"), loss.hard_loss)

    monkeypatch.setattr(loop, "batch_loss", poisoned)
    assert loop.take_step(plan, state, second)[1].item() == 1.0
    assert all(torch.equal(one, other) for one, other in zip(before, state.adapters.parameters(), strict=True))


@pytest.mark.parametrize("asked", [{}, {"ema": 0.9, "mix-coefficient": "pair", "mask-duplicates": True}])
def test_no_step_waits_for_the_device(store, device, asked):
    if device != "cuda":
        pytest.skip("only CUDA can tell")
    plan, state = prepared(store, device, **asked)
    generator = torch.Generator().manual_seed(0)
    loop.take_step(plan, state, slices_of(plan)[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):  # from one epoch into the next
            for one in epoch_slices(plan.gather.data.epoch_order(generator), 24):
                loop.take_step(plan, state, one)
    finally:
        torch.cuda.set_sync_debug_mode("default")
