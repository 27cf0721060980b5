"""From which score on are hits right? Precision by score, measured with the validation split's queries.

A hit is right when its picture (by content) and its caption (by text) are a pair of the store. The gallery is what is
indexed, with the validation split's own rows beside it where the index lacks them, so that it is as dense as the one
that is searched.
"""

# Q queries, G gallery rows, E shared width, B queries of a block, K nearest, H hits, N steps.

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from torch import Tensor

from alignvl_cli.align.ranks import score_blocks
from alignvl_cli.retrieval.embeddings import Embeddings
from alignvl_cli.retrieval.nearest import spaced
from alignvl_cli.settings import Gallery
from alignvl_cli.store.joined import AnyStore

HUNDREDTHS = np.arange(101) / 100
DEPTH = 100
"""Nearest rows of a query that count; copies among them are one hit."""
MOST_QUERIES = 2000
"""Of a direction, evenly spaced."""
LEAST_HITS = 20
"""What fewer hits show is not called a precision."""
DIGITS = 6
"""Of a stored score, rounded down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """One gallery's: of the hits that score `score[n]` or more, the share `precision[n]` is right."""

    split: str
    queries: int
    gallery: int
    """Rows that were searched."""
    score: tuple[float, ...]
    """Ascending, and the precision with it."""
    precision: tuple[float, ...]
    hits: tuple[int, ...]
    """That tell the share."""

    @classmethod
    def read(cls, stored: dict[str, Any]) -> "Precision":
        """From JSON; TypeError or KeyError when a field is missing or unknown."""
        columns = {key: tuple(stored[key]) for key in ("score", "precision", "hits")}
        return cls(**{**stored, **columns})

    def step(self, wanted: float) -> int | None:
        """The lowest step that has the wanted precision; None when none has."""
        return next((step for step, precision in enumerate(self.precision) if precision >= wanted), None)


def measure_precision(store: AnyStore, indexed: Embeddings, held_out: Embeddings, split: str) -> dict[str, Precision]:
    """Gallery -> precision over scores, asked by the rows of `split` (`held_out`), of the other modality."""
    new_image = ~np.isin(held_out.rows.image, indexed.rows.image)
    new_text = ~np.isin(held_out.rows.text, indexed.rows.text)
    image_row = np.concatenate([indexed.rows.image, held_out.rows.image[new_image]])
    text_row = np.concatenate([indexed.rows.text, held_out.rows.text[new_text]])
    img_GE = _joined(indexed.img_IE, held_out.img_IE, new_image)
    txt_GE = _joined(indexed.txt_TE, held_out.txt_TE, new_text)
    content: dict[str | bytes, int] = {}

    def codes(of: Iterable[str | bytes]) -> np.ndarray:
        return np.array([content.setdefault(one, len(content)) for one in of], dtype=np.int64)

    def images(row_N: np.ndarray) -> np.ndarray:
        return codes(store.image_sha256[row].tobytes() for row in row_N)

    def texts(row_N: np.ndarray) -> np.ndarray:
        return codes(store.text_caption[row] for row in row_N)

    image_G, text_G = images(image_row), texts(text_row)
    owner_G = images(store.text_image[text_row])
    asking = np.unique(held_out.rows.text_image)
    asking = asking[spaced(len(asking), MOST_QUERIES)]
    worded = spaced(len(held_out.rows.text), MOST_QUERIES)
    by_words = _hits(held_out.txt_TE[worded], texts(held_out.rows.text[worded]), img_GE, image_G, (text_G, owner_G))
    by_picture = _hits(held_out.img_IE[asking], images(held_out.rows.image[asking]), txt_GE, text_G, (owner_G, text_G))
    about = {
        Gallery.image: (by_words, len(worded), len(img_GE), len(indexed.rows.image)),
        Gallery.text: (by_picture, len(asking), len(txt_GE), len(indexed.rows.text)),
    }
    return {
        gallery.value: curve(*hits, wrong=rows / searched, split=split, queries=queries, gallery=searched)
        for gallery, (hits, queries, searched, rows) in about.items()
    }


def curve(
    score_H: np.ndarray, is_right_H: np.ndarray, *, split: str, queries: int, gallery: int, wrong: float = 1.0
) -> Precision:
    """The lowest score for each hundredth of precision, the share of right hits among all from that score on.

    The share is of the isotonic regression of right on score (Barlow et al., Statistical Inference under Order
    Restrictions, 1972): it rises with the score, and where a block of pooled scores begins it is the plain share.
    A wrong hit counts as `wrong`: where the index lacks the validation split, which is searched beside it, there are
    as many fewer wrong rows in the index as it is smaller, and as many right ones to a query. Scores with fewer than
    `LEAST_HITS` hits from there on are left out.
    """
    score_U, group_H, hits_U = np.unique(score_H, return_inverse=True, return_counts=True)
    right_U = np.bincount(group_H, is_right_H, len(score_U))
    weight_U = right_U + wrong * (hits_U - right_U)
    fitted_U = isotonic_regression(right_U / weight_U, weights=weight_U).x
    from_U = [one_U[::-1].cumsum()[::-1] for one_U in (fitted_U * weight_U, weight_U)]
    hits_U = hits_U[::-1].cumsum()[::-1]
    known = int((hits_U >= LEAST_HITS).sum())
    precision_U = np.maximum.accumulate(from_U[0] / from_U[1])[:known]
    step_N = np.unique(np.searchsorted(precision_U, HUNDREDTHS))
    step_N = step_N[step_N < known]
    floor_N = np.floor(score_U[step_N] * 10**DIGITS) / 10**DIGITS
    return Precision(
        split=split,
        queries=queries,
        gallery=gallery,
        score=tuple(floor_N.tolist()),
        precision=tuple(np.minimum(precision_U[step_N], 1).tolist()),
        hits=tuple(hits_U[step_N].tolist()),
    )


def _joined(indexed_NE: Tensor, held_out_NE: Tensor, is_new_N: np.ndarray) -> Tensor:
    return torch.cat([indexed_NE, held_out_NE[torch.from_numpy(is_new_N).to(held_out_NE.device)]])


def _hits(
    query_QE: Tensor, content_Q: np.ndarray, gallery_GE: Tensor, content_G: np.ndarray, pairs: tuple[np.ndarray, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (H,) of the first hits of every query, copies folded, and which of them are right; `pairs` has the
    contents of query and answer, pair by pair."""
    most = 1 + max(int(content.max()) for content in (content_Q, content_G, *pairs))
    right = np.unique(pairs[0] * most + pairs[1])
    scores, rights = [], []
    for taken, sim_BG in score_blocks(query_QE, gallery_GE):
        score_BK, row_BK = (found.cpu().numpy() for found in sim_BG.topk(min(DEPTH, sim_BG.shape[1]), dim=1))
        content_BK = content_G[row_BK]
        query_BK = np.broadcast_to(np.arange(len(score_BK))[:, None], score_BK.shape)
        _, first = np.unique(query_BK * most + content_BK, return_index=True)  # of copies, the best one
        pair_BK = content_Q[taken][:, None] * most + content_BK
        scores.append(score_BK.flat[first].astype(np.float64))
        rights.append(np.isin(pair_BK.flat[first], right))
    return np.concatenate(scores), np.concatenate(rights)
