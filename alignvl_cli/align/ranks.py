"""Exact retrieval ranks by blocks (how many rivals score at least as high as the best match), and nearest others by
cosine, in bounded memory.

Letters: I images, T captions, E shared width, Q queries, G gallery rows, B queries of a block, M and C matches (of
nearest others, M neighbours), D width of a latent.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from alignvl_cli.errors import DataError

TIE = 1e-6
"""A rival whose cosine is within this of the match's is a tie, and ties lose."""

BLOCK_ELEMENTS = 1 << 23
"""Scores held at once: 32 MiB of float32 (one query at least, however large the gallery)."""

RECALL_AT = (1, 5, 10)


class Relevant(NamedTuple):
    """The gallery rows that answer each of Q queries, ragged: the first `count_Q[0]` of `row_M` are query 0's, and so
    on. A query that nothing answers is not asked."""

    row_M: Tensor
    count_Q: Tensor


class Ranks(NamedTuple):
    """Of each query that was asked: its row, the rivals at or above its best match (0 is a hit at 1), and its average
    precision at R, R being the number of its matches."""

    rank_Q: Tensor
    row_Q: Tensor
    precision_Q: Tensor


def captions_of_images(text_image_T: Tensor, images: int) -> Relevant:
    """Each image is answered by its own captions. `text_image_T` holds the image row of each caption."""
    return Relevant(torch.argsort(text_image_T, stable=True), torch.bincount(text_image_T, minlength=images))


def images_of_captions(text_image_T: Tensor) -> Relevant:
    """Each caption is answered by its own image."""
    return Relevant(text_image_T, torch.ones_like(text_image_T))


def image_to_text_ranks(
    img_IE: Tensor, txt_TE: Tensor, text_image_T: Tensor, block_elements: int = BLOCK_ELEMENTS
) -> Ranks:
    """Rank of each image's best own caption among the captions of other images; see `rank_queries`."""
    return rank_queries(img_IE, txt_TE, captions_of_images(text_image_T, len(img_IE)), block_elements=block_elements)


def text_to_image_ranks(
    img_IE: Tensor, txt_TE: Tensor, text_image_T: Tensor, block_elements: int = BLOCK_ELEMENTS
) -> Ranks:
    """Rank of each caption's own image among all images, those without captions included; see `rank_queries`."""
    return rank_queries(txt_TE, img_IE, images_of_captions(text_image_T), block_elements=block_elements)


def rank_queries(
    query_QE: Tensor,
    gallery_GE: Tensor,
    relevant: Relevant,
    *,
    penalty_G: Tensor | None = None,
    block_elements: int = BLOCK_ELEMENTS,
) -> Ranks:
    """Rank the best match of each query among the gallery rows that do not answer it.

    Scores are inner products less `penalty_G`. The match's score is read from the same product as its rivals'
    (computed apart it would differ in the last bits). Raises DataError if a score is not finite: NaN would compare
    as a perfect rank.
    """
    query_Q = relevant.count_Q.nonzero().squeeze(1)
    end_Q = relevant.count_Q.cumsum(0)
    rank_Q = torch.empty_like(query_Q)
    precision_Q = torch.empty(len(query_Q), device=query_Q.device)
    for taken, sim_BG in score_blocks(query_QE, gallery_GE, query_Q, penalty_G, block_elements):
        block_B = query_Q[taken]
        count_B = relevant.count_Q[block_B]
        # Queries ascend, and one that nothing answers adds nothing: their matches are one run of `row_M`.
        own_C = relevant.row_M[end_Q[block_B[0]] - count_B[0] : end_Q[block_B[-1]]]
        own_row_C = torch.repeat_interleave(
            torch.arange(len(block_B), device=block_B.device), count_B, output_size=len(own_C)
        )
        own_sim_C = sim_BG[own_row_C, own_C]
        best_B = sim_BG.new_full((len(block_B),), -torch.inf).scatter_reduce_(0, own_row_C, own_sim_C, "amax")
        # Bytes summed into int32: four times as fast as torch's sum of booleans.
        reached_B = (sim_BG >= best_B[:, None] - TIE).view(torch.uint8).sum(dim=1, dtype=torch.int32).long()
        own_reached_C = (own_sim_C >= best_B[own_row_C] - TIE).long()
        rank_B = reached_B.index_add(0, own_row_C, own_reached_C, alpha=-1)
        rank_Q[taken] = rank_B
        precision_Q[taken] = _average_precision(sim_BG, own_row_C, own_sim_C, rank_B, count_B)
    return Ranks(rank_Q, query_Q, precision_Q)


def score_blocks(
    query_QE: Tensor,
    gallery_GE: Tensor,
    row_N: Tensor | None = None,
    penalty_G: Tensor | None = None,
    block_elements: int = BLOCK_ELEMENTS,
) -> Iterator[tuple[slice, Tensor]]:
    """Scores (B, G) of a few queries at a time, with the stretch of `row_N` (default: every query) that they are.

    Raises DataError when one is not finite.
    """
    total = len(query_QE) if row_N is None else len(row_N)
    size = max(1, block_elements // max(1, len(gallery_GE)))
    for start in range(0, total, size):
        taken = slice(start, min(start + size, total))
        sim_BG = query_QE[taken if row_N is None else row_N[taken]] @ gallery_GE.T
        if penalty_G is not None:
            sim_BG -= penalty_G
        if not all(torch.isfinite(bound) for bound in torch.aminmax(sim_BG)):
            raise DataError(
                "similarities hold NaN or infinity, so no rank means anything; "
                "check the store and the run with `alignvl inspect --check`"
            )
        yield taken, sim_BG


def recalls(rank_Q: Tensor, ks: Sequence[int] = RECALL_AT) -> dict[str, float]:
    """Percentage of queries with a match among the first K results, as `R@K`."""
    return {f"R@{k}": 100.0 * (rank_Q < k).cpu().double().mean().item() for k in ks}


def _average_precision(sim_BG: Tensor, own_row_C: Tensor, own_sim_C: Tensor, rank_B: Tensor, count_B: Tensor) -> Tensor:
    """AP@R of each query (Musgrave et al., "A Metric Learning Reality Check", 2020), ties losing: (B,).

    With R matches, the j-th best of which has place p_j: 1/R times the sum of j / p_j over those with p_j <= R.
    """
    precision_B = ((rank_B == 0) & (count_B == 1)).float()
    asked_N = ((rank_B < count_B) & (count_B > 1)).nonzero().squeeze(1)  # the others' first match lies beyond R
    if not len(asked_N):
        return precision_B
    most = int(count_B[asked_N].max())
    start_B = count_B.cumsum(0) - count_B
    own_BR = sim_BG.new_full((len(count_B), int(count_B.max())), -torch.inf)
    own_BR[own_row_C, torch.arange(len(own_row_C), device=own_row_C.device) - start_B[own_row_C]] = own_sim_C
    own_NR = own_BR[asked_N].sort(dim=1, descending=True).values[:, :most]
    # A match with fewer than R rivals at or above it is among the first 2R, and so are they.
    # (Of all rows, and then picked: a copy of the picked rows takes longer than the rest of them.)
    top_NK = sim_BG.topk(min(2 * most, sim_BG.shape[1]), dim=1).values[asked_N]
    rivals_NR = _at_least(top_NK, own_NR - TIE) - _at_least(own_NR, own_NR - TIE)
    number_R = torch.arange(1, most + 1, device=sim_BG.device)
    place_NR = number_R + rivals_NR
    count_N1 = count_B[asked_N, None]
    counted_NR = (place_NR <= count_N1) & (number_R <= count_N1)
    precision_B[asked_N] = (counted_NR * (number_R / place_NR)).sum(dim=1) / count_N1.squeeze(1)
    return precision_B


def _at_least(falling_NK: Tensor, bound_NR: Tensor) -> Tensor:
    """How many of each row of `falling_NK`, sorted from high to low, are at or above each bound of that row."""
    rising_NK = falling_NK.flip(1).contiguous()
    return falling_NK.shape[1] - torch.searchsorted(rising_NK, bound_NR.contiguous(), right=False)


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
