"""Random Perturbation (RP): zero-mean noise of a stated standard deviation.

Letters: N rows of the batch, D width of a latent (or of an embedding).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from alignvl_cli.settings import NoiseKind, NoiseMatch

Sampler = Callable[[Tensor, float, torch.Generator], Tensor]
"""(latents (N, D), standard deviation, generator on their device) -> noise (N, D), whatever the latents' values."""


def gaussian(like_ND: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """N(0, std^2)."""
    return torch.empty_like(like_ND).normal_(0.0, std, generator=generator)


def uniform(like_ND: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """U(-std sqrt(3), +std sqrt(3)), whose standard deviation is `std`."""
    half_range = std * math.sqrt(3)
    return torch.empty_like(like_ND).uniform_(-half_range, half_range, generator=generator)


def laplace(like_ND: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Laplace with scale std / sqrt(2), whose standard deviation is `std`: the difference of two exponentials."""
    one_ND, other_ND = (torch.empty_like(like_ND).exponential_(generator=generator) for _ in range(2))
    return one_ND.sub_(other_ND).mul_(std / math.sqrt(2))


def dropout(like_ND: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Bernoulli / (1 - p) less its mean: -1 with probability p = std^2 / (1 + std^2), else p / (1 - p)."""
    dropped = std**2 / (1 + std**2)
    kept_ND = torch.empty_like(like_ND).uniform_(generator=generator) >= dropped
    return kept_ND.to(like_ND.dtype).mul_(1 + std**2).sub_(1.0)


NOISE: dict[NoiseKind, Sampler] = {
    NoiseKind.gaussian: gaussian,
    NoiseKind.uniform: uniform,
    NoiseKind.laplace: laplace,
    NoiseKind.dropout: dropout,
}
MULTIPLICATIVE = {NoiseKind.dropout}
"""Noise that multiplies: `z + z * noise` with standard deviation sigma / RMS, so that sigma is added on average."""
assert NOISE.keys() == set(NoiseKind) - {NoiseKind.none}


def standard_deviation(sigma: float, match: NoiseMatch) -> float:
    """The standard deviation that `--noise-std sigma` means: under `range` it is that of U(-sigma, +sigma)."""
    return sigma / math.sqrt(3) if match is NoiseMatch.range else sigma
