"""The contrastive losses, in nats and at least float32, computed and differentiated tile by tile.

Both compare every row of the batch with every other, and neither ever holds more of that than one tile: the forward
pass sums over tiles (log-sum-exp online, both directions in the same sweep), the backward pass computes them again.
A batch within one tile keeps it instead. Among several processes each takes the tiles of its own rows; what is summed
over columns, and the gradient of the texts, is then summed over the processes too.

Letters: N rows of the batch, E shared width, K keys a row; R and C rows and columns of a tile; D the two directions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from alignvl_cli.align.smoothing import HARD, Frozen, Smoothing
from alignvl_cli.align.tiles import (
    ALONE,
    Comparison,
    ProcessGroup,
    SpreadSums,
    Target,
    Tile,
    add_product,
    rounded,
    tensor_cores,
)
from alignvl_cli.settings import Loss

SHORTEST = 1e-12
"""A row shorter than this is divided by this, as torch's `normalize` does."""


class LossParts(NamedTuple):
    """Scalars in nats: the loss that is minimised, and (detached) the loss against the hard target.

    A smoothed loss has a floor above zero, the target's entropy; the hard one compares arms.
    """

    loss: Tensor
    hard_loss: Tensor


def contrastive(
    loss: Loss,
    img_NE: Tensor,
    txt_NE: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    smoothing: Smoothing = HARD,
    *,
    keys_KN: Tensor | None = None,
    frozen: Frozen | None = None,
    tile: int | None = None,
    group: ProcessGroup = ALONE,
    rounds: bool = False,
) -> LossParts:
    """The loss of N pairs, row i of one side belonging to row i of the other; embeddings need not have unit length.

    The logits are `scale * C + bias`, C the cosine. With y the mean of both directions' targets (see `smoothing`):

    - `infonce`: mean over both directions and all rows of CE(target, softmax(logits)); the bias cancels. The scale is
      1 / tau.
    - `sigmoid` (SigLIP, Zhai et al., arXiv 2303.15343): sum over all entries of `softplus(l) - y l`, over N.

    With `keys_KN`, off-diagonal entries whose rows share a key leave the comparison and the target. `frozen` is what
    the `similarity` target compares. `tile` is the side of the largest square held at once; None: all of it.

    Each of the processes of a `group` calls this with the whole batch, and has the whole loss; the gradients of `scale`
    and `bias` are whole too, those of the embeddings are so for the rows that are its own, and no use for others.

    With `rounds` the gradient's products are of bfloat16 rows, and those of the logits TF32 on CUDA: for embeddings
    that come from bfloat16 and whose gradients go back into it.
    """
    with torch.autocast(img_NE.device.type, enabled=False):
        return LossParts(
            *_Tiled.apply(
                _exact(img_NE),
                _exact(txt_NE),
                scale,
                bias,
                CRITERIA[loss],
                keys_KN,
                smoothing,
                frozen,
                tile or len(img_NE),
                group,
                rounds,
            )
        )


def _exact(rows: Tensor) -> Tensor:
    """float32 at least: half precision cannot hold a logit of 1 / 0.001."""
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


class Criterion(Protocol):
    """What one loss sums over the tiles, and what its gradient needs of it."""

    def __init__(self, like_NE: Tensor) -> None: ...

    def add(self, tile: Tile) -> None:
        """Take a tile into the sums."""

    def combine(self, group: ProcessGroup) -> None:
        """Take the other processes' tiles into the sums."""

    def cost(self) -> Tensor:
        """The part of the loss that no target touches, (D, N); the loss is the mean of `cost - expected logit`."""

    def confidence(self, own_logit_N: Tensor) -> Tensor:
        """Probability of each row's positive, (D, N)."""

    def probabilities(self, tile: Tile) -> Tensor:
        """Both directions' probabilities of a tile's entries, added, (R, C); 0 where masked."""


class InfoNce:
    """-log softmax of the positive, along rows and along columns."""

    def __init__(self, like_NE: Tensor) -> None:
        self._normaliser_DN = like_NE.new_full((2, len(like_NE)), -torch.inf)

    def add(self, tile: Tile) -> None:
        for direction, span in enumerate(tile.spans()):
            normaliser_N = self._normaliser_DN[direction, span]
            torch.logaddexp(normaliser_N, tile.logit_RC.logsumexp(dim=1 - direction), out=normaliser_N)

    def combine(self, group: ProcessGroup) -> None:
        group.all_reduce_logsumexp(self._normaliser_DN)

    def cost(self) -> Tensor:
        return self._normaliser_DN

    def confidence(self, own_logit_N: Tensor) -> Tensor:
        return (own_logit_N - self._normaliser_DN).exp()

    def probabilities(self, tile: Tile) -> Tensor:
        along_rows_RC = (tile.logit_RC - self._normaliser_DN[0, tile.rows, None]).exp_()
        return along_rows_RC.add_((tile.logit_RC - self._normaliser_DN[1, tile.columns]).exp_())


class Sigmoid:
    """-log sigmoid of +logit or -logit, entry by entry."""

    def __init__(self, like_NE: Tensor) -> None:
        self._cost_N = like_NE.new_zeros(len(like_NE))

    def add(self, tile: Tile) -> None:
        self._cost_N[tile.rows] -= F.logsigmoid(-tile.logit_RC).sum(dim=1)

    def combine(self, group: ProcessGroup) -> None:
        group.all_reduce(self._cost_N)

    def cost(self) -> Tensor:
        return self._cost_N.expand(2, -1)

    def confidence(self, own_logit_N: Tensor) -> Tensor:
        return own_logit_N.sigmoid().expand(2, -1)

    def probabilities(self, tile: Tile) -> Tensor:
        return tile.logit_RC.sigmoid().mul_(2)


CRITERIA: dict[Loss, Callable[[Tensor], Criterion]] = {Loss.infonce: InfoNce, Loss.sigmoid: Sigmoid}
assert CRITERIA.keys() == set(Loss)


class _Tiled(torch.autograd.Function):
    """Loss and hard loss from one sweep over the tiles; the gradient from another."""

    @staticmethod
    def forward(
        ctx: Any,
        img_NE: Tensor,
        txt_NE: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        criterion_of: Callable[[Tensor], Criterion],
        keys_KN: Tensor | None,
        smoothing: Smoothing,
        frozen: Frozen | None,
        tile: int,
        group: ProcessGroup,
        rounds: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.lengths = [
            torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_(min=SHORTEST) for rows in (img_NE, txt_NE)
        ]
        img_NE, txt_NE = img_NE / ctx.lengths[0], txt_NE / ctx.lengths[1]
        comparison = Comparison(img_NE, txt_NE, scale, bias, keys_KN, smoothing, frozen, tile, group)
        criterion = criterion_of(img_NE)
        sums = SpreadSums(comparison) if smoothing.alpha else None
        own_N = img_NE.new_zeros(len(img_NE))
        ctx.rounds = rounds
        with tensor_cores(rounds):
            ctx.kept = list(comparison.tiles()) if tile >= len(img_NE) else None
            for piece in ctx.kept or comparison.tiles():
                criterion.add(piece)
                if piece.on_diagonal:
                    own_N[piece.rows] = piece.logit_RC.diagonal()
                if sums:
                    sums.add(piece)
        group.all_reduce(own_N)
        criterion.combine(group)
        if sums:
            sums.combine(group)
        ctx.comparison, ctx.criterion = comparison, criterion
        ctx.target = Target.of(sums, smoothing, criterion.confidence(own_N)) if sums else None
        hard_loss = (criterion.cost() - own_N).mean()
        ctx.mark_non_differentiable(hard_loss)
        if sums is None:
            return hard_loss.clone(), hard_loss
        return (criterion.cost() - ctx.target.expected(own_N, sums)).mean(), hard_loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        comparison = ctx.comparison
        img_NE, txt_NE = comparison.img_NE, comparison.txt_NE
        grad_img_NE, grad_txt_NE = torch.zeros_like(img_NE), torch.zeros_like(txt_NE)
        total = torch.zeros_like(grad)
        img_rows_NE, txt_rows_NE = rounded(img_NE, ctx.rounds), rounded(txt_NE, ctx.rounds)
        with tensor_cores(ctx.rounds):
            for tile in ctx.kept or comparison.tiles():
                gradient_RC = ctx.criterion.probabilities(tile)
                if ctx.target is not None:
                    ctx.target.subtract_from(tile, gradient_RC)
                elif tile.on_diagonal:
                    gradient_RC.diagonal().sub_(2.0)
                if comparison.bias is not None:
                    total += gradient_RC.sum()
                gradient_RC = rounded(gradient_RC, ctx.rounds)
                add_product(grad_img_NE[tile.rows], gradient_RC, txt_rows_NE[tile.columns])
                add_product(grad_txt_NE[tile.columns], gradient_RC.T, img_rows_NE[tile.rows])
        along_img_N = torch.einsum("ne,ne->n", grad_img_NE, img_NE)
        by_cosine = along_img_N.sum()  # over all entries, of gradient times cosine
        comparison.group.all_reduce(grad_txt_NE, by_cosine, total)
        along_txt_N = torch.einsum("ne,ne->n", grad_txt_NE, txt_NE)
        per_entry = grad / (2 * len(img_NE))
        grad_scale = by_cosine * per_entry
        grad_bias = None if comparison.bias is None else total * per_entry
        to_rows = per_entry * comparison.scale
        for rows_NE, unit_NE, along_N, length_N1 in zip(
            (grad_img_NE, grad_txt_NE), (img_NE, txt_NE), (along_img_N, along_txt_N), ctx.lengths, strict=True
        ):
            # Through the normalisation, in place: what points along the row does not change it.
            rows_NE.addcmul_(unit_NE, along_N[:, None], value=-1).mul_(to_rows / length_N1)
        return grad_img_NE, grad_txt_NE, grad_scale, grad_bias, *[None] * 7
