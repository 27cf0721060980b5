"""STRUCTURE: a regulariser that keeps in the adapters' output who resembles whom in their input.

Gröger et al., *With Limited Data for Multimodal Alignment, Let the STRUCTURE Guide You* (NeurIPS 2025, arXiv
2506.16895). Steps and constants are those of the authors' code (`src/loss/clip_loss.py`); its divergence is not the
Jensen-Shannon one that paper and code name, and both are here.

Letters: N rows of a batch, W width of a modality's latents or of the shared space.
"""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from alignvl_cli.settings import StructureDivergence

STRUCTURE_TAU = 0.05
"""The authors': fixed, though ours of the loss is learned."""
MAX_ROWS = 4096
"""Of a batch, the authors' batch size: of a larger one its first rows, which are drawn at random as all are."""
EPSILON = 1e-12
"""Added where a logarithm is taken."""


def resemblance(rows_NW: Tensor) -> Tensor:
    """Row i is a distribution over the batch, of who resembles row i: softmax(Z Z' / tau), (N, N), with Z the rows at
    unit length, less their mean in the batch."""
    unit_NW = F.normalize(rows_NW, dim=1)
    centred_NW = unit_NW - unit_NW.mean(dim=0)
    return (centred_NW @ centred_NW.T / STRUCTURE_TAU).softmax(dim=1)


def jensen_shannon(one_NN: Tensor, other_NN: Tensor) -> Tensor:
    """(KL(P || M) + KL(Q || M)) / 2 in nats, the mean over rows; M = (P + Q) / 2."""
    log_middle_NN = ((one_NN + other_NN) / 2 + EPSILON).log()
    of_one_NN = one_NN * ((one_NN + EPSILON).log() - log_middle_NN)
    of_other_NN = other_NN * ((other_NN + EPSILON).log() - log_middle_NN)
    return (of_one_NN + of_other_NN).sum() / (2 * len(one_NN))


def reverse_jensen_shannon(one_NN: Tensor, other_NN: Tensor) -> Tensor:
    """(KL(M || P) + KL(M || Q)) / 2: what the authors' code computes, whose `kl_div` takes its arguments the other way
    round. It is not bounded by log 2: what one side sees near and the other does not costs its logarithm."""
    middle_NN = (one_NN + other_NN) / 2 + EPSILON
    logs_NN = (one_NN + EPSILON).log() + (other_NN + EPSILON).log()
    return (middle_NN * (2 * middle_NN.log() - logs_NN)).sum() / (2 * len(one_NN))


DIVERGENCES: dict[StructureDivergence, Callable[[Tensor, Tensor], Tensor]] = {
    StructureDivergence.paper: jensen_shannon,
    StructureDivergence.code: reverse_jensen_shannon,
}
assert DIVERGENCES.keys() == set(StructureDivergence)


def structure_loss(
    before: Sequence[Tensor], after: Sequence[Tensor], levels: int, divergence: StructureDivergence
) -> Tensor:
    """How much less the rows `after`, (N, E) a modality, resemble each other as those `before`, (N, W), do: the mean
    over modalities and levels l of the divergence of the l-th matrix powers (neighbours of neighbours) over l. In nats;
    0 where they resemble each other alike. At most `MAX_ROWS` rows are compared."""
    differ = DIVERGENCES[divergence]
    total = after[0].new_zeros(())
    for before_NW, after_NE in zip(before, after, strict=True):
        wanted_NN = resemblance(before_NW[:MAX_ROWS].detach())
        found_NN = resemblance(after_NE[:MAX_ROWS])
        wanted_power_NN, found_power_NN = wanted_NN, found_NN
        total = total + differ(found_power_NN, wanted_power_NN)
        for level in range(2, levels + 1):
            wanted_power_NN, found_power_NN = wanted_power_NN @ wanted_NN, found_power_NN @ found_NN
            total = total + differ(found_power_NN, wanted_power_NN) / level
    return total / (len(before) * levels)


def weight_at(weight: float, warmup: float, progress: float) -> float:
    """From 0 at the first step up to `weight`, which it has from the share `warmup` of the training on."""
    return weight * min(1.0, progress / warmup) if warmup else weight
