"""Losses and soft targets: values known on paper, and a dense rewrite that shares no code."""

import math

import pytest
import torch
import torch.nn.functional as F

from alignvl_cli.align.losses import contrastive
from alignvl_cli.align.smoothing import Frozen, Smoothing, smoothing_at
from alignvl_cli.align.tiles import tensor_cores
from alignvl_cli.settings import EsSchedule, EsTarget, Loss

N, E = 9, 5
KEYS = torch.tensor([[0, 1, 2, 3, 0, 5, 6, 7, 0], [0, 1, 2, 1, 4, 5, 6, 7, 8]])
DEVICES = [
    "cpu",
    *(["cuda"] if torch.cuda.is_available() else []),
    *(["mps"] if torch.backends.mps.is_available() else []),
]


def inputs(dtype=torch.float32, device="cpu", rows=N):
    draw = torch.Generator().manual_seed(5)
    img, txt = (torch.randn(rows, E, generator=draw, dtype=torch.float64) for _ in range(2))
    latents = Frozen.of(*(torch.randn(rows, 3, generator=draw, dtype=torch.float64) for _ in range(2)))
    scale, bias = torch.tensor(5.0), torch.tensor(-2.0)
    leaves = [tensor.to(device, dtype).requires_grad_() for tensor in (img, txt, scale, bias)]
    return leaves, Frozen(*(side.to(device, dtype) for side in latents))


def kept_entries(keys, rows):
    """(rows, rows) true where an entry is compared."""
    if keys is None:
        return torch.ones(rows, rows, dtype=torch.bool)
    kept = (keys[:, :, None] != keys[:, None, :]).all(dim=0)
    return kept | torch.eye(rows, dtype=torch.bool, device=keys.device)


def target_by_the_book(spread, alpha, unit, kept):
    """One direction's target, row by row; `alpha` is one number a row, `unit` the query side's frozen latents."""
    rows = len(kept)
    target = torch.zeros(rows, rows, dtype=unit.dtype)
    for i in range(rows):
        if spread is EsTarget.uniform:
            shares = torch.full((rows,), 1 / rows, dtype=unit.dtype)
        elif spread is EsTarget.off_diagonal:
            shares = torch.tensor([0.0 if j == i else 1 / (rows - 1) for j in range(rows)], dtype=unit.dtype)
        else:
            weights = (unit @ unit[i] / 0.1).exp()
            weights[i] = 0.0
            shares = weights / weights.sum()
        row = alpha[i] * shares
        row[i] += 1 - alpha[i]
        row[~kept[i]] = 0.0
        target[i] = row / row.sum()
    return target


def by_the_book(loss, leaves, frozen, smoothing, keys):
    """Dense, in plain torch; differentiable."""
    img, txt, scale, bias = leaves
    img, txt = img / img.norm(dim=1, keepdim=True), txt / txt.norm(dim=1, keepdim=True)
    kept = kept_entries(keys, len(img))
    logit = scale * img @ txt.T + (bias if loss is Loss.sigmoid else 0.0)
    softmaxes = [masked.softmax(dim=1) for masked in (logit.masked_fill(~kept, -1e9), logit.T.masked_fill(~kept, -1e9))]
    positive = [logit.diagonal().sigmoid()] * 2 if loss is Loss.sigmoid else [p.diagonal() for p in softmaxes]
    confidence = [p.detach() if smoothing.by_confidence else torch.ones(len(img)) for p in positive]
    rows, columns = (
        target_by_the_book(smoothing.spread, smoothing.alpha * factor, unit, kept)
        for factor, unit in zip(confidence, frozen, strict=True)
    )

    def against(rows, columns):
        if loss is Loss.sigmoid:
            y = (rows + columns.T) / 2
            cost = y * F.softplus(-logit, threshold=100) + (1 - y) * F.softplus(logit, threshold=100)
            return cost[kept].sum() / len(img)
        pairs = zip((rows, columns), softmaxes, strict=True)
        return -sum((t * torch.where(kept, p, 1.0).log()).sum() for t, p in pairs) / (2 * len(img))

    eye = torch.eye(len(img), dtype=logit.dtype)
    return against(rows, columns), against(eye, eye)


SMOOTHINGS = [Smoothing()] + [
    Smoothing(alpha, spread, by_confidence)
    for alpha, by_confidence in ((0.1, False), (0.7, False), (0.4, True))
    for spread in EsTarget
]


def ours(loss, leaves, frozen, smoothing, keys, tile, **more):
    img, txt, scale, bias = leaves
    bias = bias if loss is Loss.sigmoid else None
    return contrastive(loss, img, txt, scale, bias, smoothing, keys_KN=keys, frozen=frozen, tile=tile, **more)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("loss", Loss)
@pytest.mark.parametrize("smoothing", SMOOTHINGS, ids=str)
@pytest.mark.parametrize("keys", [None, KEYS], ids=["all entries", "duplicates masked"])
@pytest.mark.parametrize("tile", [None, 4, 3, 1])
def test_value_and_gradients_equal_the_dense_rewrite(device, loss, smoothing, keys, tile):
    leaves, frozen = inputs(torch.float32, device)
    exact, exact_frozen = inputs(torch.float64)
    found = ours(loss, leaves, frozen, smoothing, None if keys is None else keys.to(device), tile)
    expected, expected_hard = by_the_book(loss, exact, exact_frozen, smoothing, keys)
    assert found.loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert found.hard_loss.item() == pytest.approx(expected_hard.item(), abs=1e-5)
    wrt = slice(None) if loss is Loss.sigmoid else slice(3)
    gradients = torch.autograd.grad(found.loss, leaves[wrt])
    expected_gradients = torch.autograd.grad(expected, exact[wrt])
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert torch.allclose(gradient.cpu().double(), wanted, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("loss", Loss)
@pytest.mark.parametrize("tile", [None, 64])
def test_rounded_products_keep_the_loss_and_point_the_gradient_the_same_way(device, loss, tile):
    leaves, frozen = inputs(torch.float32, device, rows=200)
    smoothing = Smoothing(0.1)
    exact, rounds = (ours(loss, leaves, frozen, smoothing, None, tile, rounds=on) for on in (False, True))
    assert rounds.loss.item() == pytest.approx(exact.loss.item(), abs=0.0 if device == "cpu" else 1e-3)
    before = torch.backends.cuda.matmul.allow_tf32
    wanted, found = (torch.autograd.grad(one.loss, leaves[:3]) for one in (exact, rounds))
    assert not torch.equal(wanted[0], found[0])
    for one, other in zip(wanted, found, strict=True):
        assert other.dtype == torch.float32
        assert (other - one).norm() < 0.01 * one.norm()
    assert torch.backends.cuda.matmul.allow_tf32 is before


@pytest.mark.parametrize("allowed", [False, True])
def test_tensor_cores_are_allowed_within_and_as_before_afterwards(allowed):
    before = torch.backends.cuda.matmul.allow_tf32
    with tensor_cores(allowed):
        assert torch.backends.cuda.matmul.allow_tf32 is (allowed or before)
    assert torch.backends.cuda.matmul.allow_tf32 is before


@pytest.mark.parametrize("loss", Loss)
@pytest.mark.parametrize("spread", EsTarget)
@pytest.mark.parametrize("tile", [None, 4])
def test_gradcheck(loss, spread, tile):
    leaves, frozen = inputs(torch.float64)
    checked = leaves if loss is Loss.sigmoid else leaves[:3]

    def value(*at):
        return ours(loss, [*at, leaves[3]][:4], frozen, Smoothing(0.2, spread), KEYS, tile).loss

    assert torch.autograd.gradcheck(value, checked)


def test_a_low_temperature_neither_overflows_nor_loses_a_row():
    """At tau 0.001 the logits span 2,000 nats: far more than the exponential of a float32."""
    leaves, frozen = inputs()
    leaves[2] = torch.tensor(1000.0, requires_grad=True)
    exact, _ = inputs(torch.float64)
    exact[2] = torch.tensor(1000.0, dtype=torch.float64)
    img, txt = (F.normalize(side, dim=1) for side in exact[:2])
    logit = 1000 * img @ txt.T
    wanted = (logit.logsumexp(dim=1) + logit.logsumexp(dim=0) - 2 * logit.diagonal()).mean() / 2
    found = ours(Loss.infonce, leaves, frozen, Smoothing(), None, 2).loss
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(found, leaves[:3]))


def plain(img, txt, tau, alpha=0.0, **options):
    return contrastive(Loss.infonce, img, txt, 1 / torch.tensor(tau), smoothing=Smoothing(alpha, **options))


def test_indistinguishable_pairs_cost_log_n():
    same = torch.ones(8, 4)
    loss, hard_loss = plain(same, same, 0.07, 0.1)
    assert loss.item() == pytest.approx(math.log(8), abs=1e-5)
    assert hard_loss.item() == pytest.approx(math.log(8), abs=1e-5)


def test_perfect_pairs_at_a_low_temperature_cost_nothing():
    assert plain(torch.eye(6), torch.eye(6), 0.01).loss.item() == pytest.approx(0.0, abs=1e-6)


def test_the_smoothed_loss_has_the_targets_entropy_as_its_floor():
    alpha, rows = 0.1, 12
    own, other = (1 - alpha) + alpha / rows, alpha / rows
    entropy = -(own * math.log(own) + (rows - 1) * other * math.log(other))
    # Logits that make the softmax the target itself: ln(own / other) apart.
    loss, hard_loss = plain(torch.eye(rows), torch.eye(rows), 1 / math.log(own / other), alpha)
    assert loss.item() == pytest.approx(entropy, abs=1e-5)
    assert hard_loss.item() == pytest.approx(-math.log(own), abs=1e-5)


def test_the_sigmoid_loss_of_unrelated_rows_is_that_of_its_bias():
    """Cosines of 0 and a bias b: N softplus(-b) for the pairs and N (N - 1) softplus(b) for the rest, over N."""
    rows, bias = 4, -10.0
    img, txt = torch.eye(2 * rows)[:rows], torch.eye(2 * rows)[rows:]
    loss = contrastive(Loss.sigmoid, img, txt, torch.tensor(10.0), torch.tensor(bias)).loss
    assert loss.item() == pytest.approx(math.log1p(math.exp(10)) + (rows - 1) * math.log1p(math.exp(-10)), rel=1e-5)


def test_equally_similar_rows_are_smoothed_as_off_the_diagonal():
    (img, txt, scale, _), _ = inputs()
    alike = Frozen(*(F.normalize(torch.ones(N, 3), dim=1) for _ in range(2)))
    by_similarity = Smoothing(0.3, EsTarget.similarity)
    assert contrastive(Loss.infonce, img, txt, scale, None, by_similarity, keys_KN=KEYS, frozen=alike).loss.item() == (
        pytest.approx(
            contrastive(
                Loss.infonce, img, txt, scale, None, Smoothing(0.3, EsTarget.off_diagonal), keys_KN=KEYS
            ).loss.item(),
            abs=1e-6,
        )
    )
    with pytest.raises(ValueError, match="frozen latents"):
        contrastive(Loss.infonce, img, txt, scale, None, by_similarity)


@pytest.mark.parametrize("spread", EsTarget)
@pytest.mark.parametrize("loss", Loss)
def test_a_row_whose_others_are_all_masked_keeps_a_hard_target(loss, spread):
    leaves, frozen = inputs(rows=3)
    found = ours(loss, leaves, frozen, Smoothing(0.5, spread), torch.zeros(1, 3, dtype=torch.int64), None)
    assert found.loss.item() == pytest.approx(found.hard_loss.item(), abs=1e-6)
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(found.loss, leaves[:3]))


@pytest.mark.parametrize(
    ("schedule", "progress", "alpha"),
    [("constant", 0.0, 0.2), ("constant", 1.0, 0.2), ("linear", 0.0, 0.0), ("linear", 0.25, 0.05), ("linear", 1, 0.2)],
)
def test_schedules_of_alpha(schedule, progress, alpha):
    smoothing = smoothing_at(0.2, EsTarget.uniform, EsSchedule(schedule), progress)
    assert smoothing == Smoothing(pytest.approx(alpha), EsTarget.uniform, by_confidence=False)


def test_confidence_smooths_a_sure_row_as_asked_and_an_unsure_one_hardly():
    smoothing = smoothing_at(0.2, EsTarget.uniform, EsSchedule.confidence, 0.0)
    assert smoothing == Smoothing(0.2, EsTarget.uniform, by_confidence=True)
    sure = torch.eye(6)
    full, scaled = (plain(sure, sure, 0.05, 0.2, by_confidence=on).loss.item() for on in (False, True))
    assert scaled == pytest.approx(full, rel=1e-5)
    rows = 40
    same = torch.ones(rows, 3)
    same[0, 0] = 1.001  # a gradient, however small
    unsure = plain(same, same, 0.05, 0.2, by_confidence=True)
    assert unsure.loss.item() == pytest.approx(unsure.hard_loss.item(), abs=1e-4)


def test_lengths_of_embeddings_do_not_matter_and_autocast_does_not_reach_the_loss():
    (img, txt, scale, _), _ = inputs()
    plain = contrastive(Loss.infonce, img, txt, scale, None, Smoothing(0.1)).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scaled = contrastive(Loss.infonce, 3 * img, 0.5 * txt, scale, None, Smoothing(0.1)).loss
    assert scaled.dtype == torch.float32
    assert scaled.item() == pytest.approx(plain.item(), abs=1e-6)


def test_no_tensor_is_larger_than_a_tile():
    """The backward pass's inputs too: what one tile does not hold is computed again."""
    rows, tile = 64, 8
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves(out):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    for loss in Loss:
        leaves, frozen = inputs(rows=rows)
        keys = torch.arange(2 * rows).reshape(2, rows) % 50
        with Watch():
            found = ours(loss, leaves, frozen, Smoothing(0.1, EsTarget.similarity), keys, tile)
            found.loss.backward()
    assert largest == rows * E
