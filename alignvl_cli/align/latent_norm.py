"""What is done to stored latents before anything else; the statistics travel with the adapters.

Letters: N rows, D width of a latent, K width that is kept of it.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignvl_cli.settings import LatentNorm

SMALLEST_SCALE = 1e-6
"""A coordinate that hardly varies in training is centred and left at its scale."""


class AsStored(nn.Module):
    """The latents as they are."""

    def __init__(self, width: int) -> None:
        super().__init__()

    def forward(self, latent_ND: Tensor) -> Tensor:
        return latent_ND

    def fit(self, blocks: Iterable[Tensor]) -> None:
        """Nothing to learn from the training latents."""


class UnitLength(AsStored):
    """Each row divided by its Euclidean length."""

    def forward(self, latent_ND: Tensor) -> Tensor:
        return F.normalize(latent_ND, dim=1)


class Standardize(AsStored):
    """Each coordinate centred and divided by its standard deviation over the training latents."""

    mean_D: Tensor
    scale_D: Tensor

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.register_buffer("mean_D", torch.zeros(width))
        self.register_buffer("scale_D", torch.ones(width))

    def reset_parameters(self) -> None:
        """Back to no change at all."""
        self.mean_D.zero_()
        self.scale_D.fill_(1.0)

    def forward(self, latent_ND: Tensor) -> Tensor:
        return (latent_ND - self.mean_D) / self.scale_D

    def fit(self, blocks: Iterable[Tensor]) -> None:
        """Mean and (population) standard deviation over all rows of `blocks`, merged in float64."""
        rows = 0
        mean_D = torch.zeros(len(self.mean_D), dtype=torch.float64)
        square_D = torch.zeros_like(mean_D)
        for block_ND in blocks:
            block_rows = len(block_ND)
            block_64 = block_ND.double()
            shift_D = block_64.mean(dim=0) - mean_D
            block_square_D = (block_64 - block_64.mean(dim=0)).square().sum(dim=0)
            square_D += block_square_D + shift_D.square() * rows * block_rows / (rows + block_rows)
            mean_D += shift_D * block_rows / (rows + block_rows)
            rows += block_rows
        scale_D = (square_D / rows).sqrt()
        self.mean_D.copy_(mean_D)
        self.scale_D.copy_(torch.where(scale_D > SMALLEST_SCALE, scale_D, 1.0))


class PrincipalComponents(AsStored):
    """The leading K principal components of the training latents: centred, rotated, cut, and not rescaled.

    Distances within the kept subspace are those of the latents, so noise of a given size means the same.
    """

    mean_D: Tensor
    basis_DK: Tensor

    def __init__(self, width: int, kept: int) -> None:
        super().__init__(width)
        self.register_buffer("mean_D", torch.zeros(width))
        self.register_buffer("basis_DK", torch.zeros(width, kept))

    def reset_parameters(self) -> None:
        """The first K coordinates as they are."""
        self.mean_D.zero_()
        self.basis_DK.copy_(torch.eye(*self.basis_DK.shape))

    def forward(self, latent_ND: Tensor) -> Tensor:
        return (latent_ND - self.mean_D) @ self.basis_DK

    def fit(self, blocks: Iterable[Tensor]) -> None:
        """Mean and leading eigenvectors of the covariance of all rows of `blocks`, in float64.

        The sign of a component is free: its largest entry is made positive.
        """
        rows, width = 0, len(self.mean_D)
        sum_D = torch.zeros(width, dtype=torch.float64)
        product_DD = torch.zeros(width, width, dtype=torch.float64)
        for block_ND in blocks:
            block_64 = block_ND.double()
            sum_D += block_64.sum(dim=0)
            product_DD.addmm_(block_64.T, block_64)
            rows += len(block_ND)
        mean_D = sum_D / rows
        basis_DK = torch.linalg.eigh(product_DD / rows - mean_D.outer(mean_D)).eigenvectors
        basis_DK = basis_DK.flip(1)[:, : self.basis_DK.shape[1]]
        largest_1K = basis_DK.abs().argmax(dim=0, keepdim=True)
        self.mean_D.copy_(mean_D)
        self.basis_DK.copy_(basis_DK * basis_DK.gather(0, largest_1K).sign())


LATENT_NORM: dict[LatentNorm, Callable[[int], AsStored]] = {
    LatentNorm.none: AsStored,
    LatentNorm.l2: UnitLength,
    LatentNorm.standardize: Standardize,
}
assert LATENT_NORM.keys() == set(LatentNorm)
