"""How alike two spaces arrange the same pairs, row by row; each measure with what shuffled pairs would give.

Letters: N pairs, D and C widths of image and text latents, K neighbours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from alignvl_cli.align.neighbours import NEIGHBOURS, nearest_others

PERMUTATIONS = 20


@dataclass(frozen=True, slots=True)
class Measured:
    """A measure, and the same of pairs that are shuffled."""

    value: float
    shuffled_mean: float
    shuffled_max: float
    """Of `PERMUTATIONS` shuffles."""


def mutual_knn(image_ND: Tensor, text_NC: Tensor, generator: torch.Generator) -> Measured:
    """Mean share of a pair's ten nearest others by image cosine that are among the ten by text cosine, 0 to 1; chance
    is 10 / (N - 1). After Huh et al., "The Platonic Representation Hypothesis" (ICML 2024), section 2."""
    kept = min(NEIGHBOURS, len(image_ND) - 1)
    every_N = torch.arange(len(image_ND))
    image_NK, text_NK = (nearest_others(x.__getitem__, len(x), every_N, kept) for x in (image_ND, text_NC))

    def overlap(order_N: Tensor) -> float:
        place_N = order_N.argsort()  # where each row of the texts stands once they are shuffled
        moved_NK = place_N[text_NK[order_N]]
        return (image_NK[:, :, None] == moved_NK[:, None, :]).any(dim=2).float().mean().item()

    return _measured(overlap, len(image_ND), generator)


def cka(image_ND: Tensor, text_NC: Tensor, generator: torch.Generator) -> Measured:
    """Linear CKA with the unbiased HSIC: at most 1, and 0 on average for unrelated spaces whatever their widths, where
    the plain one grows with D / N. Kornblith et al. (ICML 2019); Song et al. (JMLR 2012), equation 4.

    In float64 and from D x C products, so that no N x N matrix is made.
    """
    image_ND, text_NC = image_ND.double(), text_NC.double()
    image_ND, text_NC = image_ND - image_ND.mean(dim=0), text_NC - text_NC.mean(dim=0)
    own = (_hsic(image_ND, image_ND) * _hsic(text_NC, text_NC)).clamp(min=0).sqrt()
    if not own > 0:
        return Measured(0.0, 0.0, 0.0)  # one side does not vary: nothing is shared
    return _measured(lambda order_N: (_hsic(image_ND, text_NC[order_N]) / own).item(), len(image_ND), generator)


def _hsic(x_ND: Tensor, y_NC: Tensor) -> Tensor:
    """The unbiased estimator for linear kernels, whose Gram matrices have their diagonals set to zero."""
    n = len(x_ND)
    own_x_N, own_y_N = x_ND.square().sum(dim=1), y_NC.square().sum(dim=1)
    sum_x_N, sum_y_N = x_ND @ x_ND.sum(dim=0) - own_x_N, y_NC @ y_NC.sum(dim=0) - own_y_N
    trace = (x_ND.T @ y_NC).square().sum() - own_x_N @ own_y_N
    total = sum_x_N.sum() * sum_y_N.sum() / ((n - 1) * (n - 2))
    return (trace + total - 2 / (n - 2) * (sum_x_N @ sum_y_N)) / (n * (n - 3))


def _measured(measure: Callable[[Tensor], float], pairs: int, generator: torch.Generator) -> Measured:
    shuffled = [measure(torch.randperm(pairs, generator=generator)) for _ in range(PERMUTATIONS)]
    return Measured(measure(torch.arange(pairs)), sum(shuffled) / PERMUTATIONS, max(shuffled))
