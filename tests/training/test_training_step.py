"""One step of recipe fusemix, rewritten in plain torch from the method alone."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.fakes import make_store

from alignvl_cli.align.streams import stream_seed
from alignvl_cli.recipes import resolve_train
from alignvl_cli.store.reader import open_store
from alignvl_cli.training.ingredients import epoch_slices
from alignvl_cli.training.loop import batch_loss
from alignvl_cli.training.prepare import prepare

SEED, ROWS = 4, 16


def generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(stream_seed(SEED, name))


def adapter(weights: dict[str, torch.Tensor], tower: str, x: torch.Tensor) -> torch.Tensor:
    def w(name):
        return weights[f"{tower}.body.{name}"]

    width = x.shape[1]
    hidden = F.layer_norm(x, (width,), w("0.norm.weight"), w("0.norm.bias"))
    hidden = F.linear(hidden, w("0.widen.weight"), w("0.widen.bias"))
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    x = x + F.linear(hidden, w("0.narrow.weight"), w("0.narrow.bias"))
    x = F.layer_norm(x, (width,), w("1.weight"), w("1.bias"))
    return F.linear(x, w("2.weight"), w("2.bias"))


def test_a_fusemix_step_equals_the_rewrite_in_loss_and_gradients(tmp_path):
    store = open_store(make_store(tmp_path / "s.h5", images=40, dim=12, text_dim=10))
    config = resolve_train(
        {
            "size": "pairs",
            "latent-norm": "none",
            "recipe": "fusemix",
            "seed": SEED,
            "batch-size": ROWS,
            "dropout": 0.0,
            "embed-dim": 8,
            "adapter-depth": 1,
        },
        {"device": "cpu", "precision": "fp32"},
        pairs=len(store.rows("train").text),
    )
    plan, state, _ = prepare([store], store, config, "cpu")
    slices = next(epoch_slices(plan.gather.data.epoch_order(generator("permutation")), ROWS))
    loss, hard_loss = batch_loss(plan, state.adapters, slices, progress=0.0)
    loss.backward()

    rows = store.rows("train")
    texts = torch.from_numpy(store.text_latent[rows.text].copy())
    images = torch.from_numpy(store.image_latent[store.text_image[rows.text]].copy())
    order = torch.randperm(len(texts), generator=generator("permutation"))
    anchors, following = order[:ROWS], order[ROWS : 2 * ROWS]
    partners = following[torch.randperm(ROWS, generator=generator("partners"))]
    lam = np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=generator("coefficient")))).beta(1.0, 1.0)
    weights = {name: tensor.detach().clone().requires_grad_() for name, tensor in state.adapters.state_dict().items()}
    image = adapter(weights, "image", float(lam) * images[anchors] + (1 - float(lam)) * images[partners])
    text = adapter(weights, "text", float(lam) * texts[anchors] + (1 - float(lam)) * texts[partners])
    cosine = (image / image.norm(dim=1, keepdim=True)) @ (text / text.norm(dim=1, keepdim=True)).T
    logits = cosine / weights["tau"]
    diagonal = torch.arange(ROWS)
    expected = (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2
    expected.backward()

    assert abs(loss.item() - expected.item()) < 1e-6
    assert hard_loss.item() == loss.item()
    for name, parameter in state.adapters.named_parameters():
        assert parameter.grad is not None, name
        assert torch.allclose(parameter.grad, weights[name].grad, atol=1e-6, rtol=1e-5), name
    assert state.adapters.tau.grad.abs().item() > 1e-3


def test_a_learned_temperature_starts_where_it_is_told_to(tmp_path):
    store = open_store(make_store(tmp_path / "s.h5", images=40, dim=12, text_dim=10))
    for loss in ("infonce", "sigmoid"):
        asked = {"size": "pairs", "loss": loss, "tau-start": "0.05", "device": "cpu"}
        _, state, _ = prepare([store], store, resolve_train(asked, pairs=90), "cpu")
        assert state.adapters.temperature.item() == pytest.approx(0.05)
