"""What a run finds for single queries, for somebody to look at; and its best and worst queries."""

# Q queries, G gallery rows, K shown, C chosen queries.

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from alignvl_cli.align.ranks import score_blocks
from alignvl_cli.retrieval.embeddings import Embeddings
from alignvl_cli.retrieval.hubness import owners, sides
from alignvl_cli.retrieval.metrics import QueryRanks


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer."""

    row: int
    """In the store's `/image` or `/text`."""
    is_match: bool


@dataclass(frozen=True, slots=True)
class Extreme:
    """A query worth looking at."""

    query_row: int
    rank: int
    """0 is a hit at 1."""


def first_answers(
    embeddings: Embeddings, direction: str, query_rows: Sequence[int], count: int
) -> list[list[Candidate]]:
    """The nearest `count` gallery rows of each query, best first. `query_rows` are rows of the store in its split."""
    query_QE, gallery_GE = sides(embeddings)[direction]
    owner_Q, owner_G = owners(embeddings)[direction]
    query_row_Q, gallery_row_G = _rows(embeddings, direction)
    chosen_C = np.searchsorted(query_row_Q, np.asarray(query_rows, dtype=np.int64))
    found: list[list[Candidate]] = []
    for taken, sim_BG in score_blocks(query_QE, gallery_GE, torch.from_numpy(chosen_C).to(query_QE.device)):
        top_BK = sim_BG.topk(min(count, sim_BG.shape[1]), dim=1).indices.cpu().numpy()
        for query, top_K in zip(chosen_C[taken], top_BK, strict=True):
            found.append(
                [Candidate(int(gallery_row_G[place]), bool(owner_G[place] == owner_Q[query])) for place in top_K]
            )
    return found


def best_and_worst(
    embeddings: Embeddings, direction: str, ranks: QueryRanks, count: int
) -> tuple[list[Extreme], list[Extreme]]:
    """The hits at 1 that leave their best rival furthest behind, and the queries whose match comes last; one query an
    image in each."""
    query_QE, gallery_GE = sides(embeddings)[direction]
    owner_Q, owner_G = owners(embeddings)[direction]
    query_row_Q, _ = _rows(embeddings, direction)
    asked_A = np.searchsorted(query_row_Q, ranks.row_Q)
    hits_H = asked_A[ranks.rank_Q == 0]
    lead_H = np.empty(len(hits_H))
    gallery_owner_G = torch.from_numpy(owner_G).to(query_QE.device)
    for taken, sim_BG in score_blocks(query_QE, gallery_GE, torch.from_numpy(hits_H).to(query_QE.device)):
        owner_B = torch.from_numpy(owner_Q[hits_H[taken]]).to(query_QE.device)
        is_own_BG = gallery_owner_G[None, :] == owner_B[:, None]
        own_B = sim_BG.masked_fill(~is_own_BG, -torch.inf).amax(dim=1)
        lead_H[taken] = (own_B - sim_BG.masked_fill(is_own_BG, -torch.inf).amax(dim=1)).cpu().numpy()
    rank_of = dict(zip(asked_A.tolist(), ranks.rank_Q.tolist(), strict=True))
    best = hits_H[np.argsort(-lead_H, kind="stable")]
    worst = asked_A[np.argsort(-ranks.rank_Q, kind="stable")]
    worst = np.array([query for query in worst if rank_of[int(query)] > 0], dtype=np.int64)

    def first(order: np.ndarray) -> list[Extreme]:
        chosen: dict[int, Extreme] = {}
        for query in order:
            if len(chosen) == count:
                break
            chosen.setdefault(int(owner_Q[query]), Extreme(int(query_row_Q[query]), rank_of[int(query)]))
        return list(chosen.values())

    return first(best), first(worst)


def _rows(embeddings: Embeddings, direction: str) -> tuple[np.ndarray, np.ndarray]:
    """The store's rows of the queries and of the gallery, both ascending."""
    rows = (embeddings.rows.image, embeddings.rows.text)
    return rows if direction == "image_to_text" else rows[::-1]
