"""Embedding Smoothing (ES): soft targets of the contrastive loss, by tiles, so that no N x N is needed.

Letters: N rows of the batch, R and C rows and columns of a tile; D and C widths of frozen latents; K keys a row.

Of a row's target, 1 - alpha stays on its own entry and alpha is spread over the row by weights w_ij. Where entries are
masked, what they would have got is lost and the rest renormalised: with m_i the unmasked share of the row's weight,
`a_i = alpha m_i / (1 - alpha + alpha m_i)` is spread and `1 - a_i` is the row's own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from alignvl_cli.settings import EsSchedule, EsTarget

SIMILARITY_TAU = 0.1
"""Ours: an entry whose frozen latents are 0.1 nearer in cosine gets e times the weight."""


@dataclass(frozen=True)
class Smoothing:
    """How a batch's target is softened; `alpha` is that of the step."""

    alpha: float = 0.0
    spread: EsTarget = EsTarget.uniform
    by_confidence: bool = False
    """Whether each row's alpha is scaled by the (detached) probability of its positive, in each direction."""


HARD = Smoothing()


class Frozen(NamedTuple):
    """The rows' frozen latents, which say who resembles whom: unit rows (N, D) and (N, C)."""

    image_ND: Tensor
    text_NC: Tensor

    @classmethod
    def of(cls, image_ND: Tensor, text_NC: Tensor) -> "Frozen":
        """Detached and normalised."""
        return cls(F.normalize(image_ND.detach(), dim=1), F.normalize(text_NC.detach(), dim=1))


Weights = tuple[Tensor | None, Tensor | None]
"""Weights (R, C) of a tile's entries, for image queries (along a row) and text queries (along a column); None: ones."""


def uniform(rows: slice, columns: slice, frozen: Frozen | None) -> Weights:
    """Every entry alike, the row's own included: `y_ij = (1 - alpha) [i = j] + alpha / N`."""
    return None, None


def off_diagonal(rows: slice, columns: slice, frozen: Frozen | None) -> Weights:
    """Every entry alike but the row's own: `alpha / (N - 1)` off the diagonal."""
    return None, None


def similarity(rows: slice, columns: slice, frozen: Frozen | None) -> Weights:
    """`exp(s_ij / 0.1)` off the diagonal, s the cosine of the frozen latents of the query's own modality.

    After SoftCLIP (Gao et al., arXiv 2303.17561), whose soft targets are the intra-modal self-similarity too; that the
    own entry is left out, so that alpha keeps its meaning, is ours.
    """
    if frozen is None:
        raise ValueError("the similarity target needs the rows' frozen latents")
    image_RC, text_RC = (unit[rows] @ unit[columns].T for unit in frozen)
    return image_RC.sub_(1.0).div_(SIMILARITY_TAU).exp_(), text_RC.sub_(1.0).div_(SIMILARITY_TAU).exp_()


SPREAD: dict[EsTarget, Callable[[slice, slice, Frozen | None], Weights]] = {
    EsTarget.uniform: uniform,
    EsTarget.off_diagonal: off_diagonal,
    EsTarget.similarity: similarity,
}
assert SPREAD.keys() == set(EsTarget)
SPREADS_TO_OWN = {EsTarget.uniform}
"""Targets that spread a share of alpha to the row's own entry too."""


def spread_alpha(alpha: Tensor | float, kept: Tensor, total: Tensor) -> Tensor:
    """`a` of the module's text: what is in fact spread when `kept` of `total` weight is unmasked (0 of 0: nothing)."""
    share = torch.where(total > 0, kept / total, 0.0)
    spread = alpha * share
    return spread / (1 - alpha + spread)


def constant(alpha: float, progress: float) -> float:
    """`alpha` from the first step to the last."""
    return alpha


def linear(alpha: float, progress: float) -> float:
    """From 0 at the first step up to `alpha`, which the step after the last would have."""
    return alpha * progress


SCHEDULES: dict[EsSchedule, Callable[[float, float], float]] = {
    EsSchedule.constant: constant,
    EsSchedule.linear: linear,
    EsSchedule.confidence: constant,  # scaled again by each row's own probability, in the loss
}
"""(alpha, share of the training done, 0 to 1) -> the alpha of this step."""
assert SCHEDULES.keys() == set(EsSchedule)


def smoothing_at(alpha: float, spread: EsTarget, schedule: EsSchedule, progress: float) -> Smoothing:
    """The smoothing of a step; `progress` runs from 0 to 1."""
    return Smoothing(SCHEDULES[schedule](alpha, progress), spread, schedule is EsSchedule.confidence)
