"""InfoNCE and its soft targets: values known on paper, and a dense rewrite that shares no code."""

import math

import pytest
import torch

from alignvl_cli.align.losses import info_nce
from alignvl_cli.align.smoothing import SMOOTHING, dense_target, kept_entries
from alignvl_cli.config import EsTarget

N, E = 9, 5


def embeddings(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(5)
    img = torch.randn(N, E, generator=draw, dtype=dtype).requires_grad_()
    txt = torch.randn(N, E, generator=draw, dtype=dtype).requires_grad_()
    return img, txt, torch.tensor(0.2, dtype=dtype, requires_grad=True)


KEYS = torch.tensor([[0, 1, 2, 3, 0, 5, 6, 7, 0], [0, 1, 2, 1, 4, 5, 6, 7, 8]])


def by_the_book(img, txt, tau, alpha, keys):
    """Rows and columns apart, entry by entry."""
    img, txt = img / img.norm(dim=1, keepdim=True), txt / txt.norm(dim=1, keepdim=True)
    total, hard = 0.0, 0.0
    for sim in (img @ txt.T / tau, txt @ img.T / tau):
        for i in range(N):
            kept = [j for j in range(N) if j == i or keys is None or not (keys[:, i] == keys[:, j]).any()]
            log_p = {j: sim[i, j] - torch.logsumexp(sim[i, kept], dim=0) for j in kept}
            target = {j: (1 - alpha) * (i == j) + alpha / N for j in kept}
            mass = sum(target.values())
            total = total - sum(target[j] / mass * log_p[j] for j in kept)
            hard = hard - log_p[i]
    return total / (2 * N), hard / (2 * N)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("keys", [None, KEYS], ids=["all entries", "duplicates masked"])
def test_loss_and_gradients_equal_the_rewrite(alpha, keys):
    img, txt, tau = embeddings()
    loss, hard_loss = info_nce(img, txt, tau, alpha, EsTarget.uniform, keys)
    expected, expected_hard = by_the_book(img, txt, tau, alpha, keys)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert hard_loss.item() == pytest.approx(expected_hard.item(), abs=1e-6)
    gradients = torch.autograd.grad(loss, (img, txt, tau))
    expected_gradients = torch.autograd.grad(expected, (img, txt, tau))
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert torch.allclose(gradient, wanted, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.2])
def test_gradcheck(alpha):
    img, txt, tau = embeddings(torch.float64)
    assert torch.autograd.gradcheck(lambda *at: info_nce(*at, alpha, EsTarget.uniform, KEYS).loss, (img, txt, tau))


def test_indistinguishable_pairs_cost_log_n():
    same = torch.ones(8, 4)
    loss, hard_loss = info_nce(same, same, torch.tensor(0.07), 0.1)
    assert loss.item() == pytest.approx(math.log(8), abs=1e-5)
    assert hard_loss.item() == pytest.approx(math.log(8), abs=1e-5)


def test_perfect_pairs_at_a_low_temperature_cost_nothing():
    assert info_nce(torch.eye(6), torch.eye(6), torch.tensor(0.01)).loss.item() == pytest.approx(0.0, abs=1e-6)


def test_the_smoothed_loss_has_the_targets_entropy_as_its_floor():
    alpha, rows = 0.1, 12
    own, other = (1 - alpha) + alpha / rows, alpha / rows
    entropy = -(own * math.log(own) + (rows - 1) * other * math.log(other))
    # Logits that make the softmax the target itself: ln(own / other) apart.
    tau = torch.tensor(1 / math.log(own / other))
    loss, hard_loss = info_nce(torch.eye(rows), torch.eye(rows), tau, alpha)
    assert loss.item() == pytest.approx(entropy, abs=1e-5)
    assert hard_loss.item() == pytest.approx(-math.log(own), abs=1e-5)


@pytest.mark.parametrize("kind", SMOOTHING)
@pytest.mark.parametrize("alpha", [0.05, 0.5])
@pytest.mark.parametrize("keys", [None, KEYS])
def test_targets_sum_to_one_over_the_unmasked_entries(kind, alpha, keys):
    kept = torch.ones(N, N, dtype=torch.bool) if keys is None else kept_entries(keys)
    target = dense_target(SMOOTHING[kind](alpha, kept.sum(dim=1).float()), kept)
    assert torch.allclose(target.sum(dim=1), torch.ones(N))
    assert (target[~kept] == 0).all()
    assert (target.diagonal() > 0).all()


def test_the_uniform_target_has_the_stated_entries():
    target = dense_target(
        SMOOTHING[EsTarget.uniform](0.1, torch.full((20,), 20.0)), torch.ones(20, 20, dtype=torch.bool)
    )
    assert torch.allclose(target, 0.9 * torch.eye(20) + 0.1 / 20)


def test_masked_are_off_diagonal_entries_that_share_a_key():
    kept = kept_entries(torch.tensor([[0, 0, 1, 2], [5, 6, 7, 5]]))
    masked = {(i, j) for i in range(4) for j in range(4) if not kept[i, j]}
    assert masked == {(0, 1), (1, 0), (0, 3), (3, 0)}


def test_lengths_of_embeddings_do_not_matter_and_autocast_does_not_reach_the_loss():
    img, txt, tau = embeddings()
    plain = info_nce(img, txt, tau, 0.1).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scaled = info_nce(3 * img, 0.5 * txt, tau, 0.1).loss
    assert scaled.dtype == torch.float32
    assert scaled.item() == pytest.approx(plain.item(), abs=1e-6)
