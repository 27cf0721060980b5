"""Nearest others by cosine, in bounded memory.

Letters: U rows, Q of them asked about, B of those at a time, M neighbours, D width.
"""

import torch
from torch import Tensor

NEIGHBOURS = 10
"""Of mutual-kNN agreement, as Huh et al. have it ("The Platonic Representation Hypothesis", ICML 2024)."""
SCORES = 1 << 23
"""Cosines held at once: 32 MiB."""


def nearest_others(unit_UD: Tensor, asked_Q: Tensor, kept: int) -> Tensor:
    """The `kept` rows nearest each row asked about by cosine, itself left out: (Q, M)."""
    found = []
    for row_B in asked_Q.split(max(1, SCORES // len(unit_UD))):
        sim_BU = (unit_UD[row_B] @ unit_UD.T).scatter_(1, row_B[:, None], -torch.inf)
        found.append(sim_BU.topk(kept, dim=1).indices)
    return torch.cat(found)
