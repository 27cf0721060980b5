"""FuseMix: blending each row of a batch with a partner row.

Letters: N rows of the batch, D width of a latent.
"""

import numpy as np
import torch
from torch import Tensor


def mix(anchor_ND: Tensor, partner_ND: Tensor, lam: Tensor) -> Tensor:
    """`lam * anchor + (1 - lam) * partner`, as in FuseMix (arXiv 2312.10144, equation 4).

    `lam` is one coefficient, shape (), or one a row, shape (N, 1); both modalities share it.
    """
    return torch.lerp(partner_ND, anchor_ND, lam)


def draw_coefficient(alpha: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """float32 draws of Beta(alpha, alpha), of `shape`, on the CPU.

    torch samples Beta from the global generator alone, so numpy does, from a seed that `generator` draws.
    """
    seed = torch.randint(2**63 - 1, (), generator=generator).item()
    return torch.from_numpy(np.asarray(np.random.default_rng(int(seed)).beta(alpha, alpha, shape), dtype=np.float32))
