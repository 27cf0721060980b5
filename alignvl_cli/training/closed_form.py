"""Adapters that are solved for: every `--method` but `contrastive`, and the start of `--init cca`. The ridge is
selected on the validation split; without pairs, by an objective that knows none.

Letters: I images, T captions, N pairs of a block (or images, with M captions, without pairs), E shared width.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from alignvl_cli.align.adapters import (
    COMPLETIONS,
    TAU_RANGE,
    Adapter,
    AdapterPair,
    Canonical,
    InvertedBottleneck,
    new_pair,
)
from alignvl_cli.align.closed_forms import CLOSED_FORMS, Maps, Moments, moments, rank
from alignvl_cli.align.losses import contrastive
from alignvl_cli.align.streams import Stream, Streams
from alignvl_cli.align.wasserstein import clouds_of, matched, objective, parted, rotate
from alignvl_cli.errors import DataError
from alignvl_cli.settings import AdapterKind, Loss, Method
from alignvl_cli.training.data import SplitLatents
from alignvl_cli.training.state import Best, Plan, TrainState, Tried, copied
from alignvl_cli.training.unpaired import drawn
from alignvl_cli.training.validation import validate

BLOCK_PAIRS = 256
"""Pairs read at once: what any `--memory-budget` holds."""
TEACHER_WIDTH = 1024
"""At most: SOTAlign's."""
TAU_PAIRS = 2048
TAU_STEPS = 41


def solve(plan: Plan, state: TrainState) -> Iterator[Tried]:
    """Solve for `state`'s adapters, which are linear, with each ridge; `state.best` is the one of the best recall. Of
    CSA then also with fewer dimensions, and with other powers of the correlations.

    Directions beyond the rank of the cross-covariance are left at zero. DataError when images and captions do not vary
    together at all.
    """
    if plan.config.method is Method.csa:
        yield from _solve_csa(plan, state)
    elif plan.config.method is Method.wasserstein_procrustes and plan.config.pair_share < 1:
        yield from _solve_unpaired(plan, state)
    else:
        for ridge, metrics in _solutions(plan, state.adapters, plan.config.method):
            yield _tried(state, metrics, ridge=ridge)
    if state.best is None:
        raise DataError(
            "the training latents of images and captions do not vary together: there is nothing to solve for"
        )
    state.adapters.load_state_dict(state.best.weights)
    if plan.config.temperature is None:
        state.best.weights["tau"] = torch.tensor(fitted_tau(state.adapters, plan.val))


def _tried(state: TrainState, metrics: dict[str, Any], **choice: Any) -> Tried:
    """The record of `choice`, whose solution is in the adapters; it is kept if it is the best so far."""
    is_best = state.best is None or metrics["mean_recall"] > state.best.metrics["mean_recall"]
    if is_best:
        state.best = Best(copied(state.adapters), 0, 0, {**metrics, **choice})
    return Tried(metrics=metrics, best=is_best, **choice)


MATCHED_ROWS = 4000
"""Of each modality at most, drawn at random: the matching of as many takes some ten seconds."""
SEEDS = 5


def _solve_unpaired(plan: Plan, state: TrainState) -> Iterator[Tried]:
    """Match pictures and captions whose pairing is not looked at, and solve for what is matched as for pairs, beside
    the known ones with their share; from several seeds, the one of the best objective being kept. The validation split
    has no part in that."""
    share, loaded, adapters = plan.config.pair_share, plan.loaded, state.adapters
    assert loaded is not None
    pool = loaded.unpaired
    image, text = (plan.gather.data.image_ID, plan.gather.data.text_TC) if pool is None else (pool.image, pool.text)
    image_ND, text_MC = (drawn(rows, MATCHED_ROWS, state.streams).cpu() for rows in (image, text))
    known, paired_PD, paired_PC = None, image_ND[:0], text_MC[:0]
    if share:
        known = moments(_before_last_map(plan, adapters))
        first = islice(_before_last_map(plan, adapters), MATCHED_ROWS // BLOCK_PAIRS)
        paired_PD, paired_PC = (torch.cat(blocks).cpu() for blocks in zip(*first, strict=True))
    clouds, draws = clouds_of(image_ND, text_MC, paired_PD, paired_PC), state.streams[Stream.unpaired]
    fitted, aside = parted(clouds, draws)
    for _ in range(SEEDS):
        map_KK = rotate(fitted, share, draws)
        cosine = objective(aside, map_KK)
        found_N, found_M = matched(clouds.img_NK @ map_KK, clouds.txt_MK)
        found = moments([(image_ND[found_N], text_MC[found_M])])
        if known is not None:
            found = Moments(*((1 - share) * ours + share * theirs for ours, theirs in zip(found, known, strict=True)))
        width = min(adapters.shape.embed_dim, rank(found))
        if not width:
            return
        ((_, maps),) = CLOSED_FORMS[Method.procrustes](found, width)
        _install(adapters, maps, found)
        metrics = validate(adapters, plan.val)
        is_best = state.best is None or cosine > state.best.metrics["objective"]
        if is_best:
            state.best = Best(copied(adapters), 0, 0, {**metrics, "objective": cosine})
        yield Tried(ridge=None, metrics=metrics, best=is_best, objective=cosine)


FEWEST_DIMENSIONS = 8
POWERS = (0.5, 2.0, 4.0)
"""Of the correlations, besides CSA's own 1."""


def _solve_csa(plan: Plan, state: TrainState) -> Iterator[Tried]:
    """One choice after the other: the ridge with all dimensions and power 1, then half the dimensions, a quarter, ...,
    then the power."""
    found = moments(_before_last_map(plan, state.adapters))
    width = min(state.adapters.shape.embed_dim - COMPLETIONS, rank(found))
    if not width:
        return
    solved = {ridge: maps for ridge, maps in CLOSED_FORMS[Method.csa](found, width) if ridge is not None}

    def tried(ridge: float, dimensions: int, power: float) -> Tried:
        maps = solved[ridge]
        assert maps.correlation_K is not None
        _install(state.adapters, Maps(maps.image_KD[:dimensions], maps.text_KC[:dimensions]), found)
        _weigh(state.adapters, maps.correlation_K[:dimensions], power)
        metrics = validate(state.adapters, plan.val)
        return _tried(state, metrics, ridge=ridge, dimensions=dimensions, power=power)

    for ridge in solved:
        yield tried(ridge, width, 1.0)
    assert state.best is not None
    dimensions = width
    while (dimensions := dimensions // 2) >= FEWEST_DIMENSIONS:
        yield tried(state.best.metrics["ridge"], dimensions, 1.0)
    for power in POWERS:
        yield tried(state.best.metrics["ridge"], state.best.metrics["dimensions"], power)


@torch.no_grad()
def _weigh(adapters: AdapterPair, correlation_K: Tensor, power: float) -> None:
    """Have each direction count by its correlation to this power. The largest weight is 1: no ranking sees a common
    factor, and small cosines would be ties."""
    for tower in (adapters.image, adapters.text):
        canonical = _layers(tower)[-1]
        assert isinstance(canonical, Canonical)
        canonical.root_K.zero_()
        canonical.root_K[: len(correlation_K)] = (correlation_K / correlation_K[0]).clamp(max=1) ** (power / 2)


def start_at_cca(plan: Plan, adapters: AdapterPair) -> None:
    """Before training (`--init cca`, ours): residual branches give nothing, and the linear maps after them are the
    regularised canonical correlations of what reaches them, with the ridge of the best validation recall.

    Latents that do not vary together leave the maps as they were drawn.
    """
    for module in adapters.modules():
        if isinstance(module, InvertedBottleneck):
            nn.init.zeros_(module.narrow.weight)
            nn.init.zeros_(module.narrow.bias)
    _solve_best(plan, adapters)


def teacher_of(plan: Plan, adapters: AdapterPair) -> AdapterPair:
    """The regularised canonical correlations of the pairs of `plan`, for latents that are prepared as `adapters` have
    it: what unpaired data are held against (SOTAlign's teacher; the ridge by validation, and each direction scaled by
    the root of its correlation, are ours). DataError when images and captions do not vary together."""
    width = min(TEACHER_WIDTH, plan.gather.data.pairs)
    shape = replace(adapters.shape, kind=AdapterKind.linear, embed_dim=width, loss=Loss.infonce)
    teacher = new_pair(shape, Streams(0)).to(plan.gather.device)
    if not _solve_best(plan, teacher):
        raise DataError(
            "the training latents of images and captions do not vary together: there is nothing to hold unpaired data "
            "against; leave --unpaired out"
        )
    return teacher.eval().requires_grad_(False)


def _solve_best(plan: Plan, adapters: AdapterPair) -> bool:
    """Put canonical correlations, with the ridge of the best validation recall, into the last maps of `adapters`;
    whether there are any."""
    best: tuple[float, dict[str, Tensor]] | None = None
    for _, metrics in _solutions(plan, adapters, Method.cca):
        if best is None or metrics["mean_recall"] > best[0]:
            best = metrics["mean_recall"], copied(adapters)
    if best is not None:
        adapters.load_state_dict(best[1])
    return best is not None


def _solutions(plan: Plan, adapters: AdapterPair, method: Method) -> Iterator[tuple[float | None, dict[str, Any]]]:
    """Each ridge tried and the validation recall, with the solution installed in the last maps of both adapters.

    None at all when images and captions do not vary together.
    """
    if method is Method.wasserstein_procrustes:  # with nothing but pairs
        method = Method.procrustes
    found = moments(_before_last_map(plan, adapters))
    width = min(adapters.shape.embed_dim, rank(found))
    if not width:
        return
    for ridge, maps in CLOSED_FORMS[method](found, width):
        _install(adapters, maps, found)
        yield ridge, validate(adapters, plan.val)


@torch.inference_mode()
def _before_last_map(plan: Plan, adapters: AdapterPair) -> Iterator[tuple[Tensor, Tensor]]:
    """What the last linear maps take, of all training pairs, block by block."""
    image, text = (_layers(tower)[: _last_map(tower)].eval() for tower in (adapters.image, adapters.text))
    data = plan.gather.data
    device = data.text_TC.device if isinstance(data, SplitLatents) else "cpu"
    for pair_N in torch.arange(data.pairs, device=device).split(BLOCK_PAIRS):
        batch = plan.gather(pair_N)
        yield image(batch.image), text(batch.text)
    adapters.train()


def _layers(tower: Adapter) -> nn.Sequential:
    """The body of an adapter that ends in a linear map, or in one and `Canonical`."""
    assert isinstance(tower.body, nn.Sequential)
    return tower.body


def _last_map(tower: Adapter) -> int:
    """Where the last linear map is among the layers."""
    layers = _layers(tower)
    return len(layers) - (2 if isinstance(layers[-1], Canonical) else 1)


@torch.no_grad()
def _install(adapters: AdapterPair, maps: Maps, found: Moments) -> None:
    """Write maps of centred rows into the last linear map of each adapter, centring into the bias."""
    sides = ((adapters.image, maps.image_KD, found.image_mean_D), (adapters.text, maps.text_KC, found.text_mean_C))
    for tower, map_KW, mean_W in sides:
        last = _layers(tower)[_last_map(tower)]
        assert isinstance(last, nn.Linear)
        for tensor, values in ((last.weight, map_KW), (last.bias, -map_KW @ mean_W)):
            tensor.zero_()
            tensor[: len(values)] = values


@torch.inference_mode()
def fitted_tau(adapters: AdapterPair, val: SplitLatents) -> float:
    """The temperature of least InfoNCE on (at most 2,048, evenly spaced) validation pairs, captions of one image being
    no negatives of each other: a closed form has none of its own, and probabilities need one."""
    pair_N = torch.linspace(0, val.pairs - 1, min(val.pairs, TAU_PAIRS)).round().long().to(val.text_TC.device)
    image_N = val.text_image_T[pair_N]
    adapters.eval()
    img_NE, txt_NE = adapters.image.body(val.image_ID[image_N]), adapters.text.body(val.text_TC[pair_N])

    def loss(tau: float) -> Tensor:
        scale = torch.tensor(1 / tau, device=img_NE.device)
        return contrastive(Loss.infonce, img_NE, txt_NE, scale, keys_KN=image_N[None]).loss

    low, high = (math.log(bound) for bound in TAU_RANGE)
    grid = [math.exp(low + (high - low) * step / (TAU_STEPS - 1)) for step in range(TAU_STEPS)]
    return min(grid, key=lambda tau: loss(tau).item())
