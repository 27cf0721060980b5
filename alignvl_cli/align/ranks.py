"""Exact retrieval ranks by blocks: how many rivals score at least as high as the best match.

Letters: I images, T captions, E shared width, Q queries, G gallery rows.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from alignvl_cli.errors import DataError

TIE = 1e-6
"""A rival whose cosine is within this of the match's is a tie, and ties lose."""

BLOCK_ELEMENTS = 1 << 23
"""Scores held at once: 32 MiB of float32 (one query at least, however large the gallery)."""

RECALL_AT = (1, 5, 10)


class Ranks(NamedTuple):
    """`rank_Q`: rivals at or above the best match, 0 being a hit at 1. `row_Q`: each query's row."""

    rank_Q: Tensor
    row_Q: Tensor


def image_to_text_ranks(
    img_IE: Tensor, txt_TE: Tensor, text_image_T: Tensor, block_elements: int = BLOCK_ELEMENTS
) -> Ranks:
    """Rank of each image's best own caption among the captions of other images.

    `text_image_T` holds the image row of each caption. Images without captions are no queries.
    The match's score is read from the same product as its rivals' (computed apart it would differ in the
    last bits). Raises DataError if a score is not finite: NaN would compare as a perfect rank.
    """
    order_T = torch.argsort(text_image_T, stable=True)
    captions_I = torch.bincount(text_image_T, minlength=len(img_IE))
    end_I = captions_I.cumsum(0)
    query_Q = captions_I.nonzero().squeeze(1)
    rank_Q = torch.empty_like(query_Q)
    for start in range(0, len(query_Q), _block_rows(len(txt_TE), block_elements)):
        block_B = query_Q[start : start + _block_rows(len(txt_TE), block_elements)]
        sim_BT = _scores(img_IE[block_B], txt_TE)
        # Queries ascend, and an image without captions adds nothing: their captions are one run of `order_T`.
        own_C = order_T[end_I[block_B[0]] - captions_I[block_B[0]] : end_I[block_B[-1]]]
        own_row_C = torch.repeat_interleave(
            torch.arange(len(block_B), device=block_B.device), captions_I[block_B], output_size=len(own_C)
        )
        own_sim_C = sim_BT[own_row_C, own_C]
        best_B = sim_BT.new_full((len(block_B),), -torch.inf).scatter_reduce_(0, own_row_C, own_sim_C, "amax")
        reached_B = (sim_BT >= best_B[:, None] - TIE).sum(dim=1)
        own_reached_C = (own_sim_C >= best_B[own_row_C] - TIE).long()
        rank_Q[start : start + len(block_B)] = reached_B.index_add(0, own_row_C, own_reached_C, alpha=-1)
    return Ranks(rank_Q, query_Q)


def text_to_image_ranks(
    img_IE: Tensor, txt_TE: Tensor, text_image_T: Tensor, block_elements: int = BLOCK_ELEMENTS
) -> Ranks:
    """Rank of each caption's own image among all images, those without captions included.

    Same conventions and errors as `image_to_text_ranks`; every caption is a query.
    """
    rank_T = torch.empty_like(text_image_T)
    block_rows = _block_rows(len(img_IE), block_elements)
    for start in range(0, len(txt_TE), block_rows):
        own_B1 = text_image_T[start : start + block_rows, None]
        sim_BI = _scores(txt_TE[start : start + block_rows], img_IE)
        own_sim_B1 = sim_BI.gather(1, own_B1)
        rank_T[start : start + block_rows] = (sim_BI >= own_sim_B1 - TIE).sum(dim=1) - 1
    return Ranks(rank_T, torch.arange(len(txt_TE), device=text_image_T.device))


def recalls(rank_Q: Tensor) -> dict[str, float]:
    """Percentage of queries with a match among the first K results, as `R@K`."""
    return {f"R@{k}": 100.0 * (rank_Q < k).double().mean().item() for k in RECALL_AT}


def _block_rows(gallery_rows: int, block_elements: int) -> int:
    return max(1, block_elements // max(1, gallery_rows))


def _scores(query_BE: Tensor, gallery_GE: Tensor) -> Tensor:
    sim_BG = query_BE @ gallery_GE.T
    if not torch.isfinite(sim_BG).all():
        raise DataError(
            "similarities hold NaN or infinity, so no rank means anything; "
            "check the store and the run with `alignvl inspect --check`"
        )
    return sim_BG
