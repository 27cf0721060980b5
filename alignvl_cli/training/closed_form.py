"""`--method procrustes|cca|ridge`: the adapters are solved for, and their ridge is chosen on validation.

Letters: I images, T captions, N pairs of a block, E shared width.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from alignvl_cli.align.adapters import TAU_RANGE, AdapterPair
from alignvl_cli.align.closed_forms import CLOSED_FORMS, Maps, Moments, moments, rank
from alignvl_cli.align.losses import contrastive
from alignvl_cli.config import Loss
from alignvl_cli.errors import DataError
from alignvl_cli.training.data import SplitLatents
from alignvl_cli.training.records import Tried
from alignvl_cli.training.state import Best, Plan, TrainState
from alignvl_cli.training.validation import validate

BLOCK_PAIRS = 256
"""Pairs read at once: what any `--memory-budget` holds."""
TAU_PAIRS = 2048
TAU_STEPS = 41


def solve(plan: Plan, state: TrainState) -> Iterator[Tried]:
    """Solve for `state`'s adapters, which are linear, with each ridge; `state.best` is the one of the best recall.

    Directions beyond the rank of the cross-covariance are left at zero. DataError when images and captions do not vary
    together at all.
    """
    data = plan.gather.data
    found = moments(data.rows(pair_N) for pair_N in torch.arange(data.pairs).split(BLOCK_PAIRS))
    width = min(state.adapters.shape.embed_dim, rank(found))
    if not width:
        raise DataError(
            "the training latents of images and captions do not vary together: there is nothing to solve for"
        )
    for ridge, maps in CLOSED_FORMS[plan.config.method](found, width):
        _install(state.adapters, maps, found)
        metrics = validate(state.adapters, plan.val)
        is_best = state.best is None or metrics["mean_recall"] > state.best.metrics["mean_recall"]
        if is_best:
            weights = {name: tensor.detach().clone() for name, tensor in state.adapters.state_dict().items()}
            state.best = Best(weights, 0, 0, {**metrics, "ridge": ridge})
        yield Tried(ridge=ridge, metrics=metrics, best=is_best)
    assert state.best is not None
    state.adapters.load_state_dict(state.best.weights)
    if plan.config.temperature is None:
        state.best.weights["tau"] = torch.tensor(fitted_tau(state.adapters, plan.val))


@torch.no_grad()
def _install(adapters: AdapterPair, maps: Maps, found: Moments) -> None:
    """Write maps of centred latents into the linear adapters, centring into the bias."""
    sides = ((adapters.image, maps.image_KD, found.image_mean_D), (adapters.text, maps.text_KC, found.text_mean_C))
    for tower, map_KW, mean_W in sides:
        weights = tower.body.state_dict()  # the tensors themselves, of the one Linear
        for tensor, values in ((weights["0.weight"], map_KW), (weights["0.bias"], -map_KW @ mean_W)):
            tensor.zero_()
            tensor[: len(values)] = values


@torch.inference_mode()
def fitted_tau(adapters: AdapterPair, val: SplitLatents) -> float:
    """The temperature of least InfoNCE on (at most 2,048, evenly spaced) validation pairs, captions of one image being
    no negatives of each other: a closed form has none of its own, and probabilities need one."""
    pair_N = torch.linspace(0, val.pairs - 1, min(val.pairs, TAU_PAIRS)).round().long().to(val.text_TC.device)
    image_N = val.text_image_T[pair_N]
    img_NE, txt_NE = adapters.image.body(val.image_ID[image_N]), adapters.text.body(val.text_TC[pair_N])

    def loss(tau: float) -> Tensor:
        scale = torch.tensor(1 / tau, device=img_NE.device)
        return contrastive(Loss.infonce, img_NE, txt_NE, scale, keys_KN=image_N[None]).loss

    low, high = (math.log(bound) for bound in TAU_RANGE)
    grid = [math.exp(low + (high - low) * step / (TAU_STEPS - 1)) for step in range(TAU_STEPS)]
    return min(grid, key=lambda tau: loss(tau).item())
