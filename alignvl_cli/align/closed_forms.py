"""Linear alignments that need no training: one solution of the pairs' covariances each, in float64.

Letters: P pairs, D and C widths of image and text latents, K shared width.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from alignvl_cli.settings import Method

GRID = (0.01, 0.1, 1.0, 10.0)
"""Ridges tried, in units of the mean variance of the latents that they are added to."""
CSA_GRID = (0.01, 0.1, 1.0, 10.0, 100.0)
NULL = 1e-9
"""A direction with less than this share of the largest variance or covariance is none."""


class Moments(NamedTuple):
    """Means and (co)variances over the pairs, float64."""

    image_mean_D: Tensor
    text_mean_C: Tensor
    image_DD: Tensor
    text_CC: Tensor
    cross_DC: Tensor


class Maps(NamedTuple):
    """Linear maps into the shared space, of centred latents: (K, D) and (K, C)."""

    image_KD: Tensor
    text_KC: Tensor
    correlation_K: Tensor | None = None
    """Of the pairs of directions, falling, where they are not part of the maps."""


def moments(blocks: Iterable[tuple[Tensor, Tensor]]) -> Moments:
    """Of image (N, D) and text (N, C) rows of pairs, block by block, on the CPU.

    Sums are of differences to the first block's mean, so that a large mean costs no digits.
    """
    shift = total = outer = None
    pairs = 0
    for image_ND, text_NC in blocks:
        both_NW = torch.cat([image_ND, text_NC], dim=1).cpu().double()  # MPS has no float64
        if shift is None or total is None or outer is None:
            shift = both_NW.mean(dim=0)
            total, outer = torch.zeros_like(shift), torch.zeros(len(shift), len(shift), dtype=torch.float64)
            width = image_ND.shape[1]
        both_NW -= shift
        total += both_NW.sum(dim=0)
        outer.addmm_(both_NW.T, both_NW)
        pairs += len(both_NW)
    if shift is None or total is None or outer is None:
        raise ValueError("no pairs")
    mean = total / pairs
    covariance = outer / pairs - mean.outer(mean)
    mean += shift
    image, text = slice(0, width), slice(width, None)
    return Moments(mean[image], mean[text], covariance[image, image], covariance[text, text], covariance[image, text])


def procrustes(found: Moments, width: int) -> Iterator[tuple[float | None, Maps]]:
    """The rotations that bring both sides nearest each other (Schönemann, 1966): the singular vectors of the
    cross-covariance, its `width` largest."""
    left_DR, _, right_RC = torch.linalg.svd(found.cross_DC, full_matrices=False)
    yield None, Maps(left_DR.T[:width], right_RC[:width])


def cca(found: Moments, width: int) -> Iterator[tuple[float | None, Maps]]:
    """Regularised canonical correlation (Hotelling, 1936; Vinod, 1976). Each pair of directions is scaled by the root
    of its correlation, so that what the sides do not share hardly counts (Gong et al., 2014, use another power)."""
    for ridge, maps in _canonical(found, width, GRID):
        assert maps.correlation_K is not None
        root_K1 = maps.correlation_K[:, None].sqrt()
        yield ridge, Maps(root_K1 * maps.image_KD, root_K1 * maps.text_KC)


def csa(found: Moments, width: int) -> Iterator[tuple[float | None, Maps]]:
    """Canonical directions and correlations for the score of CSA (Li et al., ICLR 2025), which weighs by these after
    normalising (`adapters.Canonical`). Its authors add no ridge: with fewer pairs than dimensions every correlation is
    1."""
    yield from _canonical(found, width, CSA_GRID)


def _canonical(found: Moments, width: int, grid: tuple[float, ...]) -> Iterator[tuple[float, Maps]]:
    image_variance_D, image_axes_DD = torch.linalg.eigh(found.image_DD)
    text_variance_C, text_axes_CC = torch.linalg.eigh(found.text_CC)
    for ridge in grid:
        image_DD = _whitening(image_variance_D, image_axes_DD, ridge)
        text_CC = _whitening(text_variance_C, text_axes_CC, ridge)
        left_DR, correlation_R, right_RC = torch.linalg.svd(image_DD @ found.cross_DC @ text_CC, full_matrices=False)
        yield ridge, Maps(left_DR.T[:width] @ image_DD, right_RC[:width] @ text_CC, correlation_R[:width])


def ridge_regression(found: Moments, width: int) -> Iterator[tuple[float | None, Maps]]:
    """Images regressed on texts (Hoerl and Kennard, 1970); both then in the `width` principal directions of the
    predictions, outside of which the predictions do not vary."""
    for ridge in GRID:
        added = ridge * found.text_CC.diagonal().mean() * torch.eye(len(found.text_CC), dtype=torch.float64)
        map_DC = torch.linalg.solve(found.text_CC + added, found.cross_DC.T).T
        _, axes_DD = torch.linalg.eigh(map_DC @ found.text_CC @ map_DC.T)
        axes_KD = axes_DD.T.flip(0)[:width]
        yield ridge, Maps(axes_KD, axes_KD @ map_DC)


def _whitening(variance_D: Tensor, axes_DD: Tensor, ridge: float) -> Tensor:
    """The inverse square root of the covariance with a ridge added."""
    variance_D = variance_D.clamp(min=0)
    return axes_DD * (variance_D + ridge * variance_D.mean()).rsqrt() @ axes_DD.T


CLOSED_FORMS: dict[Method, Callable[[Moments, int], Iterator[tuple[float | None, Maps]]]] = {
    Method.procrustes: procrustes,
    Method.cca: cca,
    Method.ridge: ridge_regression,
    Method.csa: csa,
}
"""(moments, width) -> each ridge tried (None: there is none to choose) and the maps that it gives."""
assert CLOSED_FORMS.keys() == set(Method) - {Method.contrastive, Method.wasserstein_procrustes}


def rank(found: Moments) -> int:
    """Directions in which both sides vary together: the rank of the cross-covariance."""
    strength_R = torch.linalg.svdvals(found.cross_DC)
    return int((strength_R > NULL * strength_R.max()).sum()) if strength_R.max() > 0 else 0
