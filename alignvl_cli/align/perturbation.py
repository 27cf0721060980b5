"""Random Perturbation (RP): zero-mean noise of a stated standard deviation.

Letters: N rows of the batch, D width of a latent (or of an embedding).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from alignvl_cli.config import NoiseKind, NoiseMatch

Sampler = Callable[[Tensor, float, torch.Generator], Tensor]
"""(latents (N, D), standard deviation, generator on their device) -> noise to add, (N, D)."""


def gaussian(like_ND: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """N(0, std^2)."""
    return torch.empty_like(like_ND).normal_(0.0, std, generator=generator)


def uniform(like_ND: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """U(-std sqrt(3), +std sqrt(3)), whose standard deviation is `std`."""
    half_range = std * math.sqrt(3)
    return torch.empty_like(like_ND).uniform_(-half_range, half_range, generator=generator)


NOISE: dict[NoiseKind, Sampler] = {NoiseKind.gaussian: gaussian, NoiseKind.uniform: uniform}
assert NOISE.keys() == set(NoiseKind) - {NoiseKind.none}


def standard_deviation(sigma: float, match: NoiseMatch) -> float:
    """The standard deviation that `--noise-std sigma` means: under `range` it is that of U(-sigma, +sigma)."""
    return sigma / math.sqrt(3) if match is NoiseMatch.range else sigma
