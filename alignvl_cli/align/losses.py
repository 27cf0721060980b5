"""The contrastive losses, in nats and float32.

Letters: N rows of the batch, E shared width; K keys a row.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from alignvl_cli.align.smoothing import SMOOTHING, SoftTarget, kept_entries
from alignvl_cli.config import EsTarget, Loss


class LossParts(NamedTuple):
    """Scalars in nats: the loss that is minimised, and (detached) the loss against the hard target.

    A smoothed loss has a floor above zero, the target's entropy; the hard one compares arms.
    """

    loss: Tensor
    hard_loss: Tensor


def info_nce(
    img_NE: Tensor,
    txt_NE: Tensor,
    tau: Tensor,
    alpha: float = 0.0,
    es_target: EsTarget = EsTarget.uniform,
    keys_KN: Tensor | None = None,
) -> LossParts:
    """Symmetric InfoNCE: mean over both directions and all rows of CE(target, softmax(C / tau)).

    `C` is the cosine of the embeddings, which need not have unit length; row i of one side belongs to row i
    of the other. `alpha` of the target's mass is spread as `es_target` says. With `keys_KN`, off-diagonal
    entries whose rows share a key leave softmax and target.
    """
    with torch.autocast(img_NE.device.type, enabled=False):
        logit_NN = F.normalize(_exact(img_NE), dim=1) @ F.normalize(_exact(txt_NE), dim=1).T / tau
    kept_NN = None if keys_KN is None else kept_entries(keys_KN)
    if kept_NN is None:
        kept_N = logit_NN.new_full((len(logit_NN),), len(logit_NN))
        softmax_NN = spread_NN = logit_NN
    else:
        kept_N = kept_NN.sum(dim=1).to(logit_NN.dtype)
        softmax_NN = logit_NN.masked_fill(~kept_NN, -torch.inf)
        spread_NN = logit_NN.masked_fill(~kept_NN, 0.0)
    own_N = logit_NN.diagonal()
    normaliser_DN = torch.stack([softmax_NN.logsumexp(dim=1), softmax_NN.logsumexp(dim=0)])  # image, text queries
    hard_loss = (normaliser_DN - own_N).detach().mean()
    if alpha == 0:
        return LossParts((normaliser_DN - own_N).mean(), hard_loss)
    target: SoftTarget = SMOOTHING[es_target](alpha, kept_N)  # the mask is symmetric, so one serves both directions
    spread_DN = torch.stack([spread_NN.sum(dim=1), spread_NN.sum(dim=0)])
    expected_DN = target.own_N * own_N + target.spread_N * spread_DN
    return LossParts((normaliser_DN - expected_DN).mean(), hard_loss)


def _exact(rows: Tensor) -> Tensor:
    """float32 at least: half precision cannot hold a logit of 1 / 0.001."""
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


LOSSES: dict[Loss, Callable[[Tensor, Tensor, Tensor, float, EsTarget, Tensor | None], LossParts]] = {
    Loss.infonce: info_nce
}
assert LOSSES.keys() == set(Loss)
