"""Nearest others by cosine, in bounded memory.

Letters: U rows, Q of them asked about, B of those at a time, G rows that they are compared with at a time, M
neighbours, D width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS = 10
"""Of mutual-kNN agreement, as Huh et al. have it ("The Platonic Representation Hypothesis", ICML 2024)."""
ASKED, OTHERS = 2048, 4096
"""Sides of a block of cosines: 32 MiB. They stay the same however much is held, and so do the last bits."""

Read = Callable[[Tensor], Tensor]
"""Rows (N, D) by their numbers (N,), of any length."""


def itself(row_B: Tensor, other_G: Tensor) -> Tensor:
    """(B, G): where a row would meet itself."""
    return row_B[:, None] == other_G


def nearest_others(
    read: Read,
    rows: int,
    asked_Q: Tensor,
    kept: int,
    *,
    left_out: Callable[[Tensor, Tensor], Tensor] = itself,
    held: int | None = None,
) -> Tensor:
    """The `kept` of `rows` rows nearest each row asked about by cosine, nearest first: (Q, M).

    `left_out` says which rows are no others of which; at least `kept` must be left. No more than `held` of the rows
    asked about (None: all of them; never fewer than a block) are in memory at once, beside a block of others: all rows
    are read as many times as that takes.
    """
    share = len(asked_Q) if held is None else max(ASKED, held // ASKED * ASKED)
    found = [asked_Q.new_empty(0, kept)]
    for row_Q in asked_Q.split(max(1, share)):
        unit_QD = F.normalize(read(row_Q), dim=1)
        best_QM = torch.full((len(row_Q), kept), -torch.inf)
        nearest_QM = torch.zeros(len(row_Q), kept, dtype=torch.int64)
        for other_G in torch.arange(rows).split(OTHERS):
            unit_GD = F.normalize(read(other_G), dim=1)
            for block in torch.arange(len(row_Q)).split(ASKED):
                sim_BG = (unit_QD[block] @ unit_GD.T).masked_fill_(left_out(row_Q[block], other_G), -torch.inf)
                here = sim_BG.topk(min(kept, len(other_G)), dim=1)
                both = torch.cat([best_QM[block], here.values], dim=1).topk(kept, dim=1)
                number = torch.cat([nearest_QM[block], other_G[here.indices]], dim=1)
                best_QM[block], nearest_QM[block] = both.values, number.gather(1, both.indices)
        found.append(nearest_QM)
    return torch.cat(found)
