"""Embedding Smoothing (ES): soft targets of the contrastive loss, kept factored so that no N x N is needed.

Letters: N rows of the batch; K keys a row.
A target row is `own_i` on its own entry plus `spread_i` on every unmasked entry (its own included).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from alignvl_cli.config import EsSchedule, EsTarget


class SoftTarget(NamedTuple):
    """Row i of the target is `own_N[i] * e_i + spread_N[i] * unmasked_i`, which sums to one."""

    own_N: Tensor
    spread_N: Tensor


def uniform(alpha: float, kept_N: Tensor) -> SoftTarget:
    """`(1 - alpha) [i = j] + alpha / N`, renormalised over each row's `kept_N` unmasked entries."""
    spread = alpha / len(kept_N)
    total_N = (1 - alpha) + spread * kept_N
    return SoftTarget((1 - alpha) / total_N, spread / total_N)


SMOOTHING: dict[EsTarget, Callable[[float, Tensor], SoftTarget]] = {EsTarget.uniform: uniform}
assert SMOOTHING.keys() == set(EsTarget)


def constant(alpha: float, progress: float) -> float:
    """`alpha` from the first step to the last."""
    return alpha


SCHEDULES: dict[EsSchedule, Callable[[float, float], float]] = {EsSchedule.constant: constant}
"""(alpha, share of the training done, 0 to 1) -> the alpha of this step."""
assert SCHEDULES.keys() == set(EsSchedule)


def kept_entries(keys_KN: Tensor) -> Tensor:
    """(N, N) true where an entry stays in the softmax: its rows share no key, or are one row.

    A row's keys say what it shows, say its image's and its caption's number; two rows with an equal key
    are no negatives of each other.
    """
    kept_NN = (keys_KN[:, :, None] != keys_KN[:, None, :]).all(dim=0)
    return kept_NN.fill_diagonal_(True)


def dense_target(target: SoftTarget, kept_NN: Tensor) -> Tensor:
    """The (N, N) matrix that `target` stands for; for tests and small views."""
    return torch.diag(target.own_N) + target.spread_N[:, None] * kept_NN
