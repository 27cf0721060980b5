"""Hubs: gallery rows that are near to everything; how bad they are, and what helps.

N_k of a gallery row is the number of queries that have it among their first k. Its skewness measures hubness
(Radovanovic et al., JMLR 2010); a row with N_k = 0 is an anti-hub: no query of the split ever finds it.

Both corrections subtract a penalty from each gallery row's cosine. Nearest-neighbour normalisation (NNN, Chowdhury et
al., EMNLP 2024): alpha times the row's mean cosine to its k nearest queries of a *bank*, here the training split's.
Inverted softmax (Smith et al., ICLR 2017): tau times the log of the row's summed exp(cosine / tau) over *all queries
asked*; it is transductive, since an answer depends on what else is asked, and so a row of its own in every table.
"""

# Q queries, G gallery rows, N bank rows, E shared width, K nearest.

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import skew
from torch import Tensor

from alignvl_cli.align.ranks import (
    Relevant,
    captions_of_images,
    images_of_captions,
    rank_queries,
    recalls,
    score_blocks,
)
from alignvl_cli.retrieval.embeddings import Embeddings
from alignvl_cli.retrieval.metrics import DIRECTIONS, RetrievalMetrics

BANK_SPLIT = "train"
"""Whose queries tell NNN which gallery rows are hubs."""
OCCURRENCE_K = 10
ALPHAS = (0.25, 0.5, 0.75, 1.0)
BANK_KS = (1, 4, 16, 64)
"""What validation chooses among, besides no correction."""


@dataclass(frozen=True, slots=True)
class Occurrence:
    """How unevenly the rows of a gallery occur among the queries' first k."""

    k: int
    skewness: float | None
    """0 is even; None when every row occurs equally often."""
    antihubs: float
    """Share of the gallery that occurs nowhere."""
    largest: int
    """Queries that have the greatest hub among their first k."""


@dataclass(frozen=True, slots=True)
class Normalisation:
    """The parameters of NNN for one direction; alpha 0 is no correction."""

    alpha: float
    k: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Correction:
    """A penalty (G,) for each gallery row of each direction, and where it comes from."""

    name: str
    transductive: bool
    parameters: dict[str, dict[str, Any]]
    penalties: dict[str, Tensor]


@dataclass(frozen=True)
class Corrected:
    """What a correction made of it."""

    name: str
    transductive: bool
    parameters: dict[str, dict[str, Any]]
    """By direction."""
    metrics: RetrievalMetrics
    occurrence: dict[str, Occurrence]


@dataclass(frozen=True)
class Hubness:
    """The hubness report of one evaluation, by direction."""

    occurrence: dict[str, Occurrence]
    corrected: Corrected | None

    def to_json(self) -> dict[str, Any]:
        corrected = self.corrected and {
            "name": self.corrected.name,
            "transductive": self.corrected.transductive,
            "parameters": self.corrected.parameters,
            "metrics": self.corrected.metrics.to_json(),
            "occurrence": {direction: asdict(found) for direction, found in self.corrected.occurrence.items()},
        }
        return {
            "occurrence": {direction: asdict(found) for direction, found in self.occurrence.items()},
            "corrected": corrected,
        }


def sides(embeddings: Embeddings) -> dict[str, tuple[Tensor, Tensor]]:
    """Direction -> its queries and its gallery."""
    img_IE, txt_TE = embeddings.img_IE, embeddings.txt_TE
    return {"image_to_text": (img_IE, txt_TE), "text_to_image": (txt_TE, img_IE)}


def asking(embeddings: Embeddings) -> dict[str, tuple[Tensor, Tensor]]:
    """As `sides`, less the images without a caption: they are in the gallery, never a query."""
    asked_I = torch.from_numpy(captioned(embeddings)).to(embeddings.img_IE.device)
    found = sides(embeddings)
    return {**found, "image_to_text": (found["image_to_text"][0][asked_I], found["image_to_text"][1])}


def captioned(embeddings: Embeddings) -> np.ndarray:
    """Positions of the images that have a caption, ascending."""
    return np.unique(embeddings.rows.text_image)


def owners(embeddings: Embeddings) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Direction -> the store's image row of each query and of each gallery row."""
    image_I, image_T = embeddings.rows.image, embeddings.rows.image[embeddings.rows.text_image]
    return {"image_to_text": (image_I, image_T), "text_to_image": (image_T, image_I)}


def occurrence(query_QE: Tensor, gallery_GE: Tensor, penalty_G: Tensor | None = None) -> Occurrence:
    """Count how often each gallery row is among the first 10 (fewer in a smaller gallery)."""
    k = min(OCCURRENCE_K, len(gallery_GE))
    count_G = torch.zeros(len(gallery_GE), dtype=torch.long, device=gallery_GE.device)
    for _, sim_BG in score_blocks(query_QE, gallery_GE, penalty_G=penalty_G):
        count_G += torch.bincount(sim_BG.topk(k, dim=1).indices.flatten(), minlength=len(gallery_GE))
    count = count_G.cpu().numpy()
    return Occurrence(
        k=k,
        skewness=float(skew(count)) if count.min() < count.max() else None,
        antihubs=float((count == 0).mean()),
        largest=int(count.max()),
    )


def bank_means(
    gallery_GE: Tensor, owner_G: np.ndarray, bank_NE: Tensor, owner_N: np.ndarray, ks: tuple[int, ...] = BANK_KS
) -> dict[int, Tensor]:
    """k -> the mean cosine (G,) of each gallery row to its k nearest rows of the bank, or to all if they are fewer.

    A gallery row's own pairs (equal owners) are left out of its bank: a training image must not be penalised for
    being near to its captions.
    """
    most = min(max(ks), len(bank_NE))
    owner_bank_N = torch.from_numpy(owner_N).to(bank_NE.device)
    owner_gallery_G1 = torch.from_numpy(owner_G).to(bank_NE.device)[:, None]
    found: dict[int, list[Tensor]] = {k: [] for k in ks}
    for taken, sim_BN in score_blocks(gallery_GE, bank_NE):
        own_BN = owner_gallery_G1[taken] == owner_bank_N
        top_BK = sim_BN.masked_fill_(own_BN, -torch.inf).topk(most, dim=1).values
        for k, means in found.items():
            nearest_BK = top_BK[:, :k]
            there_BK = nearest_BK.isfinite()
            summed_B = nearest_BK.masked_fill(~there_BK, 0).sum(dim=1)
            means.append(summed_B / there_BK.sum(dim=1).clamp(min=1))
    return {k: torch.cat(means) for k, means in found.items()}


def choose_normalisation(held_out: Embeddings, bank: Embeddings) -> dict[str, Normalisation]:
    """Direction -> the alpha and k with the best mean of R@1, R@5 and R@10 on `held_out`; of equals the mildest."""
    text_image_T = torch.from_numpy(held_out.rows.text_image).to(held_out.img_IE.device)
    relevant = {
        "image_to_text": captions_of_images(text_image_T, len(held_out.img_IE)),
        "text_to_image": images_of_captions(text_image_T),
    }
    return {direction: _choose(direction, held_out, bank, relevant[direction]) for direction in DIRECTIONS}


def normalisation_penalties(
    gallery: Embeddings, bank: Embeddings, chosen: dict[str, Normalisation]
) -> dict[str, Tensor]:
    """Direction -> the penalty (G,) of each gallery row."""
    penalties = {}
    for direction, (alpha, k) in {name: (choice.alpha, choice.k) for name, choice in chosen.items()}.items():
        _, gallery_GE = sides(gallery)[direction]
        means = bank_means(gallery_GE, owners(gallery)[direction][1], *_bank(bank, direction), (k,))
        penalties[direction] = alpha * means[k]
    return penalties


def inverted_softmax_penalties(asked: Embeddings, temperature: float) -> dict[str, Tensor]:
    """Direction -> tau times the log-sum-exp over all queries of cosine / tau, (G,), computed block by block."""
    penalties = {}
    for direction, (query_QE, gallery_GE) in asking(asked).items():
        sum_G = gallery_GE.new_full((len(gallery_GE),), -torch.inf)
        for _, sim_BG in score_blocks(query_QE, gallery_GE):
            sum_G = torch.logaddexp(sum_G, (sim_BG / temperature).logsumexp(dim=0))
        penalties[direction] = temperature * sum_G
    return penalties


def hubness(
    embeddings: Embeddings, correction: Correction | None, measure: Callable[[dict[str, Tensor]], RetrievalMetrics]
) -> Hubness:
    """The report; with a correction also what `measure` finds under its penalties."""
    plain = {direction: occurrence(query, gallery) for direction, (query, gallery) in asking(embeddings).items()}
    if correction is None:
        return Hubness(plain, None)
    after = {
        direction: occurrence(query, gallery, correction.penalties[direction])
        for direction, (query, gallery) in asking(embeddings).items()
    }
    metrics = measure(correction.penalties)
    return Hubness(plain, Corrected(correction.name, correction.transductive, correction.parameters, metrics, after))


def _bank(bank: Embeddings, direction: str) -> tuple[Tensor, np.ndarray]:
    """The queries of a bank, and the store's image row of each."""
    owner_N = owners(bank)[direction][0]
    return asking(bank)[direction][0], owner_N[captioned(bank)] if direction == "image_to_text" else owner_N


def _choose(direction: str, held_out: Embeddings, bank: Embeddings, relevant: Relevant) -> Normalisation:
    query_QE, gallery_GE = sides(held_out)[direction]
    means = bank_means(gallery_GE, owners(held_out)[direction][1], *_bank(bank, direction))

    def mean_recall(penalty_G: Tensor | None) -> float:
        return sum(recalls(rank_queries(query_QE, gallery_GE, relevant, penalty_G=penalty_G).rank_Q).values())

    best, chosen = mean_recall(None), Normalisation(0.0, BANK_KS[0])
    for alpha in ALPHAS:
        for k in BANK_KS:
            found = mean_recall(alpha * means[k])
            if found > best:
                best, chosen = found, Normalisation(alpha, k)
    return chosen
