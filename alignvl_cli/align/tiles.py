"""The N x N comparison of a batch, one tile at a time: logits, mask and target weights, computed when they are needed.

`losses` sums over the tiles. Under several processes (`ProcessGroup`) each has the tiles of its own rows. Logits, sums
and exponentials are float32; matrix products may be taken in bfloat16 or TF32, if the embeddings were rounded already.

Letters: N rows of the batch, E shared width, K keys a row; R and C rows and columns of a tile; D the two directions,
image queries (along a row of the matrix) first.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from alignvl_cli.align.smoothing import SPREAD, SPREADS_TO_OWN, Frozen, Smoothing, Weights, spread_alpha


@dataclass(frozen=True)
class ProcessGroup:
    """This process's rank among those that share a batch: each compares its own rows with all of them. Alone, nothing
    is exchanged; `training.data_parallel` has the processes of torchrun."""

    rank: int = 0
    world_size: int = 1

    def rows_of(self, rows: int, rank: int) -> range:
        """The rows of a process; `rows` is a multiple of `world_size`."""
        share = rows // self.world_size
        return range(rank * share, (rank + 1) * share)

    def all_reduce(self, *tensors: Tensor) -> None:
        """Sum each over the processes, in place."""

    def all_reduce_logsumexp(self, log: Tensor) -> None:
        """The logarithm of the exponentials' sum over the processes, in place."""


ALONE = ProcessGroup()


class Tile(NamedTuple):
    """A rectangle of the comparison; its diagonal is the matrix's where `rows` equal `columns`, else elsewhere."""

    rows: slice
    columns: slice
    logit_RC: Tensor
    """-inf where masked."""
    masked_RC: Tensor | None
    weights: Weights
    """Of the target's spread, before masking; ones when the target is hard."""

    @property
    def on_diagonal(self) -> bool:
        return self.rows == self.columns

    def spans(self) -> tuple[slice, slice]:
        """Where the tile's sums along its rows and along its columns belong."""
        return self.rows, self.columns


@dataclass(frozen=True)
class Comparison:
    """What every tile is computed from."""

    img_NE: Tensor
    """Unit rows."""
    txt_NE: Tensor
    scale: Tensor
    bias: Tensor | None
    keys_KN: Tensor | None
    """Two rows that share a key are no negatives of each other; None: nothing is masked."""
    smoothing: Smoothing
    frozen: Frozen | None
    tile: int
    """Rows and columns of a tile at most."""
    group: ProcessGroup
    """Whose rows are compared where."""

    def tiles(self) -> Iterator[Tile]:
        """All tiles of this process's rows, row after row."""
        by_rank = [self._spans(rank) for rank in range(self.group.world_size)]
        for row_span in by_rank[self.group.rank]:
            scaled_RE = self.img_NE[row_span] * self.scale
            for column_span in chain(*by_rank):
                logit_RC = scaled_RE @ self.txt_NE[column_span].T
                if self.bias is not None:
                    logit_RC += self.bias
                masked_RC = self._masked(row_span, column_span)
                if masked_RC is not None:
                    logit_RC.masked_fill_(masked_RC, -torch.inf)
                yield Tile(row_span, column_span, logit_RC, masked_RC, self._weights(row_span, column_span))

    def _spans(self, rank: int) -> list[slice]:
        share = self.group.rows_of(len(self.img_NE), rank)
        return [slice(start, min(start + self.tile, share.stop)) for start in share[:: self.tile]]

    def _masked(self, rows: slice, columns: slice) -> Tensor | None:
        if self.keys_KN is None:
            return None
        masked_RC = (self.keys_KN[:, rows, None] == self.keys_KN[:, None, columns]).any(dim=0)
        return masked_RC.fill_diagonal_(False) if rows == columns else masked_RC

    def _weights(self, rows: slice, columns: slice) -> Weights:
        if self.smoothing.alpha == 0:
            return None, None
        weights = SPREAD[self.smoothing.spread](rows, columns, self.frozen)
        if rows == columns:
            for weight_RC in weights:
                if weight_RC is not None:
                    weight_RC.fill_diagonal_(0.0)
        return weights


class SpreadSums:
    """Of each row and direction, over the spread of its target: the sum of weights, of those unmasked, and of the
    unmasked weights times the logits. Collected tile by tile."""

    def __init__(self, like: Comparison) -> None:
        rows = len(like.img_NE)
        self._to_own = like.smoothing.spread in SPREADS_TO_OWN
        self.total_DN, self.kept_DN, self.logit_DN = (like.img_NE.new_zeros(2, rows) for _ in range(3))

    def add(self, tile: Tile) -> None:
        logit_RC = tile.logit_RC if tile.masked_RC is None else tile.logit_RC.masked_fill(tile.masked_RC, 0.0)
        for direction, (span, weight_RC) in enumerate(zip(tile.spans(), tile.weights, strict=True)):
            along = 1 - direction
            if weight_RC is None:
                self._add_ones(direction, span, along, tile, logit_RC)
                continue
            total = weight_RC.sum(dim=along)
            self.total_DN[direction, span] += total
            kept_RC = weight_RC if tile.masked_RC is None else weight_RC.masked_fill(tile.masked_RC, 0.0)
            self.kept_DN[direction, span] += total if tile.masked_RC is None else kept_RC.sum(dim=along)
            self.logit_DN[direction, span] += (kept_RC * logit_RC).sum(dim=along)

    def combine(self, group: ProcessGroup) -> None:
        """Take the other processes' tiles into the sums."""
        group.all_reduce(self.total_DN, self.kept_DN, self.logit_DN)

    def _add_ones(self, direction: int, span: slice, along: int, tile: Tile, logit_RC: Tensor) -> None:
        total, kept, logit = self.total_DN[direction, span], self.kept_DN[direction, span], logit_RC.sum(dim=along)
        total += logit_RC.shape[along]
        kept += logit_RC.shape[along]
        if tile.masked_RC is not None:
            kept -= tile.masked_RC.sum(dim=along)
        if tile.on_diagonal and not self._to_own:
            total -= 1
            kept -= 1
            logit = logit - logit_RC.diagonal()
        self.logit_DN[direction, span] += logit


@dataclass(frozen=True)
class Target:
    """A row's target in each direction: `own_DN` on its own entry, `spread_DN` times the weight on unmasked ones."""

    own_DN: Tensor
    spread_DN: Tensor
    to_own: bool

    @classmethod
    def of(cls, sums: SpreadSums, smoothing: Smoothing, confidence_DN: Tensor) -> "Target":
        """`confidence_DN` is each row's probability of its positive."""
        alpha = smoothing.alpha * confidence_DN if smoothing.by_confidence else smoothing.alpha
        spread_DN = spread_alpha(alpha, sums.kept_DN, sums.total_DN)
        return cls(
            1 - spread_DN,
            torch.where(sums.kept_DN > 0, spread_DN / sums.kept_DN, 0.0),
            smoothing.spread in SPREADS_TO_OWN,
        )

    def expected(self, own_logit_N: Tensor, sums: SpreadSums) -> Tensor:
        """The target's mean logit, (D, N)."""
        return self.own_DN * own_logit_N + self.spread_DN * sums.logit_DN

    def subtract_from(self, tile: Tile, gradient_RC: Tensor) -> None:
        """Take both directions' targets off a tile, in place."""
        row_R1, column_C = self.spread_DN[0, tile.rows, None], self.spread_DN[1, tile.columns]
        row_weight_RC, column_weight_RC = tile.weights
        if row_weight_RC is None or column_weight_RC is None:
            spread_RC = row_R1 + column_C
        else:
            spread_RC = torch.addcmul(row_weight_RC * row_R1, column_weight_RC, column_C)
        if tile.masked_RC is not None:
            spread_RC.masked_fill_(tile.masked_RC, 0.0)
        if tile.on_diagonal:
            own_R = self.own_DN[:, tile.rows].sum(dim=0)
            spread_RC.diagonal().copy_(spread_RC.diagonal() + own_R if self.to_own else own_R)
        gradient_RC -= spread_RC


@contextmanager
def tensor_cores(allowed: bool) -> Iterator[None]:
    """Products of float32 rows may be TF32 on CUDA within the block, if `allowed`; afterwards as before."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = before or allowed
    try:
        yield
    finally:
        matmul.allow_tf32 = before


def rounded(factor: Tensor, allowed: bool) -> Tensor:
    """A factor of a product in bfloat16, if `allowed`: several times as fast where the hardware has it."""
    return factor.to(torch.bfloat16) if allowed else factor


def add_product(into_RE: Tensor, weight_RC: Tensor, rows_CE: Tensor) -> None:
    """`into += weight @ rows`, in place, the product taken in the format of its factors."""
    if rows_CE.dtype is into_RE.dtype:
        into_RE.addmm_(weight_RC, rows_CE)
    else:
        into_RE += weight_RC @ rows_CE
