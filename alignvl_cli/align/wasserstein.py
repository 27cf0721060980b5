"""Wasserstein-Procrustes: the rotation between two clouds of rows of which it is not known which belong together.

Grave et al. (AISTATS 2019, arXiv 1805.11222) alternate a matching of the rows and the rotation that it asks for;
Schnaus et al. (*Shared Geometry as a Rosetta Stone*, arXiv 2610.09411) start that from the clouds' shapes: k-means
centres are matched so that their similarities agree, several times, and the mean of what the matches say is the start.
So it is here, read from the authors' code (`unpaired_rosetta`). Ours: the rows are reduced to principal components, a
matching of centres is found by FAQ (Vogelstein et al., 2015) from several starts, and the whole is done from several
seeds, of which the one is taken whose rotation matches rows best that had no part in it. No pair is needed for that.

Letters: N images, M captions, W width of a modality, K principal components, C centres, P known pairs.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment, quadratic_assignment
from torch import Tensor

COMPONENTS = 64
CENTRES, CLUSTERINGS = 30, 30
"""The authors'."""
LLOYD_STEPS = 20
FAQ_STARTS = 6
ROUNDS = 20
"""Of matching and rotation; the authors take 100."""
BATCH_ROWS = 1000
"""Matched at a time: twice as many take five times the time. The authors take 10,000."""
SET_ASIDE = 5
"""One row in so many has no part in a rotation, and judges it."""
SEEDED_PAIRS = 200
"""Of the known pairs at most so many take part in the matching of centres."""


class Clouds(NamedTuple):
    """Unit rows of both modalities in as many principal components each, and those of known pairs, row by row."""

    img_NK: Tensor
    txt_MK: Tensor
    paired_img_PK: Tensor
    paired_txt_PK: Tensor


def clouds_of(image_ND: Tensor, text_MC: Tensor, paired_PD: Tensor, paired_PC: Tensor) -> Clouds:
    """Of latents whose pairing is not known, which say what the principal components are, and of known pairs."""
    components = min(COMPONENTS, image_ND.shape[1], text_MC.shape[1])
    reduced = []
    for rows_NW, paired_PW in ((image_ND, paired_PD), (text_MC, paired_PC)):
        mean_W = rows_NW.mean(dim=0)
        centred_NW = (rows_NW - mean_W).double()
        _, axes_WW = torch.linalg.eigh(centred_NW.T @ centred_NW)
        axes_WK = axes_WW[:, -components:].to(rows_NW)
        reduced.append([F.normalize((rows - mean_W) @ axes_WK, dim=1) for rows in (rows_NW, paired_PW)])
    (img_NK, paired_img_PK), (txt_MK, paired_txt_PK) = reduced
    return Clouds(img_NK, txt_MK, paired_img_PK, paired_txt_PK)


def parted(clouds: Clouds, generator: torch.Generator) -> tuple[Clouds, Clouds]:
    """Rows to fit to, and a fifth of either side that is set aside."""
    parts = []
    for rows in (clouds.img_NK, clouds.txt_MK):
        first = max(1, len(rows) // SET_ASIDE)
        parts.append(rows[torch.randperm(len(rows), generator=generator)].split([first, len(rows) - first]))
    (aside_img_NK, img_NK), (aside_txt_MK, txt_MK) = parts
    fitted = clouds._replace(img_NK=img_NK, txt_MK=txt_MK)
    return fitted, clouds._replace(img_NK=aside_img_NK, txt_MK=aside_txt_MK)


def rotate(clouds: Clouds, share: float, generator: torch.Generator) -> Tensor:
    """The rotation (K, K) that takes images' rows to captions', from the shapes of the clouds. Known pairs have `share`
    of the weight in each solution (the authors': a half)."""
    map_KK = torch.stack([_by_centres(clouds, share, generator) for _ in range(CLUSTERINGS)]).mean(dim=0)
    for _ in range(1 + ROUNDS):
        map_KK = _step(clouds, map_KK, share, generator)
    return map_KK


def objective(clouds: Clouds, map_KK: Tensor) -> float:
    """Mean cosine of the best one-to-one matching under the rotation: of rows set aside, it judges without pairs."""
    found_N, found_M = matched(clouds.img_NK @ map_KK, clouds.txt_MK)
    return (clouds.img_NK[found_N] @ map_KK * clouds.txt_MK[found_M]).sum(dim=1).mean().item()


def matched(img_NK: Tensor, txt_MK: Tensor) -> tuple[Tensor, Tensor]:
    """The one-to-one matching of the largest sum of products: min(N, M) rows of either side, each with its match."""
    rows, columns = linear_sum_assignment((img_NK @ txt_MK.T).numpy(), maximize=True)
    return torch.from_numpy(rows), torch.from_numpy(columns)


def _step(clouds: Clouds, map_KK: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Match a batch under `map_KK`, and take the rotation that brings matches, and known pairs, nearest each other."""
    img_NK, txt_MK = (
        rows[torch.randperm(len(rows), generator=generator)[:BATCH_ROWS]] for rows in (clouds.img_NK, clouds.txt_MK)
    )
    found_N, found_M = matched(img_NK @ map_KK, txt_MK)
    cross_KK = (1 - share) * img_NK[found_N].T @ txt_MK[found_M] / len(found_N)
    if share:
        cross_KK = cross_KK + share * clouds.paired_img_PK.T @ clouds.paired_txt_PK / len(clouds.paired_img_PK)
    left_KK, _, right_KK = torch.linalg.svd(cross_KK.double())
    return (left_KK @ right_KK).to(map_KK)


def _by_centres(clouds: Clouds, share: float, generator: torch.Generator) -> Tensor:
    """What one clustering of either side says of the cross-covariance, (K, K): its centres, matched so that the linear
    kernels agree. Known pairs are further centres, whose match is fixed."""
    count = min(CENTRES, len(clouds.img_NK), len(clouds.txt_MK))
    centres = [_centres(rows, count, generator) for rows in (clouds.img_NK, clouds.txt_MK)]
    seeds = min(SEEDED_PAIRS, len(clouds.paired_img_PK)) if share else 0
    known_P = torch.randperm(len(clouds.paired_img_PK), generator=generator)[:seeds]
    kernels = [
        _kernel(torch.cat([own_CK, paired_PK[known_P]]))
        for own_CK, paired_PK in zip(centres, (clouds.paired_img_PK, clouds.paired_txt_PK), strict=True)
    ]
    fixed = np.arange(count, count + seeds)
    best = None
    for start in range(FAQ_STARTS):
        order = torch.randperm(count, generator=generator).numpy()
        flat = np.full((count, count), 1 / count)
        options = {
            "maximize": True,
            "partial_match": np.stack([fixed, fixed], axis=1),
            "P0": (np.eye(count)[order] + flat) / 2 if start else flat,
            "rng": np.random.default_rng(0),  # draws nothing here, but keeps scipy from the global generator
        }
        found = quadratic_assignment(*kernels, method="faq", options=options)
        if best is None or found.fun > best.fun:
            best = found
    assert best is not None
    return centres[0].T @ centres[1][torch.from_numpy(best.col_ind[:count])] / count


def _kernel(rows_CK: Tensor) -> np.ndarray:
    centred_CK = (rows_CK - rows_CK.mean(dim=0)).double()
    return (centred_CK @ centred_CK.T).numpy()


def _centres(rows_NK: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """k-means, from k-means++ (Arthur and Vassilvitskii, 2007)."""
    first = int(torch.randint(len(rows_NK), (), generator=generator))
    chosen, distance_N = [first], (rows_NK - rows_NK[first]).square().sum(dim=1)
    for _ in range(count - 1):
        chosen.append(int(torch.multinomial(distance_N + 1e-12, 1, generator=generator)))
        distance_N = torch.minimum(distance_N, (rows_NK - rows_NK[chosen[-1]]).square().sum(dim=1))
    centres_CK = rows_NK[chosen]
    for _ in range(LLOYD_STEPS):
        nearest_N = torch.cdist(rows_NK, centres_CK).argmin(dim=1)
        size_C1 = torch.bincount(nearest_N, minlength=count)[:, None]
        total_CK = torch.zeros_like(centres_CK).index_add_(0, nearest_N, rows_NK)
        centres_CK = torch.where(size_C1 > 0, total_CK / size_C1.clamp(min=1), centres_CK)
    return centres_CK
