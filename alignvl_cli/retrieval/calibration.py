"""Is a model as sure as it is right? Probabilities over the gallery's images, and how they compare with the hits.

The probability of a candidate is softmax(cosine / tau) over the whole gallery. The classes are the gallery's *images*:
for an image query the probabilities of one image's captions are summed, or else a perfect model with five captions an
image would look unsure at 0.2. Confidence is the largest class probability; a query is correct when that class is its
image, ties losing as everywhere.
"""

# Q queries, G gallery rows, K classes (images), B queries of a block, N bins.

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import rankdata
from torch import Tensor

from alignvl_cli.align.ranks import TIE, score_blocks
from alignvl_cli.retrieval.embeddings import Embeddings
from alignvl_cli.retrieval.metrics import DIRECTIONS

BINS = 15
BLOCK_ELEMENTS = 1 << 21
"""Scores at a time: a few arrays of this many float64 are held."""
FITTED_RANGE = (1e-3, 10.0)
"""Where the fitted temperature is looked for."""


@dataclass(frozen=True)
class Judged:
    """One direction, query by query: float64 (Q,) but for the booleans."""

    confidence_Q: np.ndarray
    is_correct_Q: np.ndarray
    nll_Q: np.ndarray
    """Nats: minus the log of the probability of the query's own image."""
    brier_Q: np.ndarray
    """Squared distance between the class probabilities and the truth, from 0 to 2."""


@dataclass(frozen=True, slots=True)
class Bin:
    """One bar of a reliability diagram."""

    low: float
    high: float
    queries: int
    confidence: float | None
    """Mean over the bin's queries; None for an empty bin, and so the accuracy."""
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class Calibration:
    """One direction at one temperature. Shares, not percentages."""

    queries: int
    accuracy: float
    confidence: float
    overconfidence: float
    """Mean confidence less accuracy: above 0, the model is surer than it is right."""
    ece: float
    """Expected calibration error over 15 bins of equal width."""
    ece_equal_mass: float
    """The same over 15 bins of (nearly) equally many queries; equal confidences stay in one bin."""
    nll: float
    brier: float
    auroc: float | None
    """Of confidence for correctness; None when every query is correct, or none is."""
    aurc: float
    """Area under the risk-coverage curve: the mean error among the n surest queries, over all n."""
    diagram: tuple[Bin, ...]


@dataclass(frozen=True, slots=True)
class AtTemperature:
    """Both directions at one temperature."""

    temperature: float
    image_to_text: Calibration
    text_to_image: Calibration


@dataclass(frozen=True, slots=True)
class Modesty:
    """The modesty report: as the model is, and after one temperature fitted on another split."""

    gallery_images: int
    """Classes. The level of confidence depends on their number: compare runs on one gallery alone."""
    raw: AtTemperature
    fitted: AtTemperature | None
    """None when there is no split to fit on."""
    fitted_on: str | None
    fitted_gallery_images: int | None

    def to_json(self) -> dict[str, Any]:
        return {"bins": BINS, **asdict(self)}


def modesty(tested: Embeddings, temperature: float, held_out: Embeddings | None, split: str | None) -> Modesty:
    """Judge `tested` at the run's temperature, and at the one that fits `held_out` (the rows of `split`) best."""
    fitted = None if held_out is None else fit_temperature(held_out)
    return Modesty(
        gallery_images=len(tested.img_IE),
        raw=_at(tested, temperature),
        fitted=None if fitted is None else _at(tested, fitted),
        fitted_on=split if held_out is not None else None,
        fitted_gallery_images=None if held_out is None else len(held_out.img_IE),
    )


def fit_temperature(embeddings: Embeddings) -> float:
    """The one tau, for both directions, at which the mean of their two mean NLLs is least."""

    def loss(log_tau: float) -> float:
        judged = judge(embeddings, float(np.exp(log_tau)))
        return float(np.mean([judged[direction].nll_Q.mean() for direction in DIRECTIONS]))

    low, high = np.log(FITTED_RANGE)
    return float(np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-3}).x))


def judge(embeddings: Embeddings, temperature: float) -> dict[str, Judged]:
    """Direction -> every query of it, judged over the whole gallery. Images without captions are classes too."""
    img_IE, txt_TE, rows = embeddings.img_IE, embeddings.txt_TE, embeddings.rows
    text_image_T = torch.from_numpy(rows.text_image).to(img_IE.device)
    every_image_I = torch.arange(len(img_IE), device=img_IE.device)
    asked_Q = torch.bincount(text_image_T, minlength=len(img_IE)).nonzero().squeeze(1)
    return {
        "image_to_text": _judge(img_IE, asked_Q, asked_Q, txt_TE, text_image_T, len(img_IE), temperature),
        "text_to_image": _judge(txt_TE, None, text_image_T, img_IE, every_image_I, len(img_IE), temperature),
    }


def calibration(judged: Judged) -> Calibration:
    """Average what was judged."""
    confidence_Q, is_correct_Q = judged.confidence_Q, judged.is_correct_Q
    width_bin_Q = np.minimum((confidence_Q * BINS).astype(np.int64), BINS - 1)
    mass_bin_Q = ((rankdata(confidence_Q) - 0.5) / len(confidence_Q) * BINS).astype(np.int64)
    return Calibration(
        queries=len(confidence_Q),
        accuracy=float(is_correct_Q.mean()),
        confidence=float(confidence_Q.mean()),
        overconfidence=float(confidence_Q.mean() - is_correct_Q.mean()),
        ece=_ece(width_bin_Q, confidence_Q, is_correct_Q),
        ece_equal_mass=_ece(mass_bin_Q, confidence_Q, is_correct_Q),
        nll=float(judged.nll_Q.mean()),
        brier=float(judged.brier_Q.mean()),
        auroc=_auroc(confidence_Q, is_correct_Q),
        aurc=_aurc(confidence_Q, is_correct_Q),
        diagram=tuple(_bin(number, width_bin_Q, confidence_Q, is_correct_Q) for number in range(BINS)),
    )


def _at(embeddings: Embeddings, temperature: float) -> AtTemperature:
    judged = judge(embeddings, temperature)
    return AtTemperature(temperature, *(calibration(judged[direction]) for direction in DIRECTIONS))


def _judge(
    query_QE: Tensor,
    asked_Q: Tensor | None,
    own_Q: Tensor,
    gallery_GE: Tensor,
    class_G: Tensor,
    classes: int,
    temperature: float,
) -> Judged:
    """Judge the queries at rows `asked_Q` (default: all), whose true classes are `own_Q`."""
    parts = []
    for taken, sim_BG in score_blocks(query_QE, gallery_GE, asked_Q, block_elements=BLOCK_ELEMENTS):
        logit_BG = _double(sim_BG) / temperature
        own_B1 = own_Q[taken, None].to(logit_BG.device)
        class_G = class_G.to(logit_BG.device)
        own_B = logit_BG.masked_fill(class_G != own_B1, -torch.inf).logsumexp(dim=1)
        highest_B1 = logit_BG.amax(dim=1, keepdim=True)
        mass_BK = logit_BG.new_zeros(len(logit_BG), classes)
        mass_BK.index_add_(1, class_G, (logit_BG - highest_B1).exp_())
        total_B = mass_BK.sum(dim=1)
        rival_B = mass_BK.scatter(1, own_B1, -1.0).amax(dim=1).clamp(min=0)
        margin_B = own_B - highest_B1.squeeze(1) - rival_B.log()  # a lone class has no rival: infinite
        probability_BK = mass_BK / total_B[:, None]
        own_probability_B = probability_BK.gather(1, own_B1).squeeze(1)
        parts.append(
            (
                probability_BK.amax(dim=1),
                margin_B > TIE / temperature,
                highest_B1.squeeze(1) + total_B.log() - own_B,
                probability_BK.square().sum(dim=1) - 2 * own_probability_B + 1,
            )
        )
    return Judged(*(torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)))


def _double(sim_BG: Tensor) -> Tensor:
    """In float64, for which MPS has no arithmetic."""
    return (sim_BG.cpu() if sim_BG.device.type == "mps" else sim_BG).double()


def _ece(bin_Q: np.ndarray, confidence_Q: np.ndarray, is_correct_Q: np.ndarray) -> float:
    """Sum over bins of |sum of confidence - sum of hits| / Q (Guo et al., ICML 2017)."""
    gap_N = np.bincount(bin_Q, confidence_Q, BINS) - np.bincount(bin_Q, is_correct_Q, BINS)
    return float(np.abs(gap_N).sum() / len(bin_Q))


def _auroc(confidence_Q: np.ndarray, is_correct_Q: np.ndarray) -> float | None:
    """The chance that a correct query is surer than a wrong one, ties counting half (Mann-Whitney)."""
    correct = int(is_correct_Q.sum())
    wrong = len(is_correct_Q) - correct
    if not correct or not wrong:
        return None
    return float((rankdata(confidence_Q)[is_correct_Q].sum() - correct * (correct + 1) / 2) / (correct * wrong))


def _aurc(confidence_Q: np.ndarray, is_correct_Q: np.ndarray) -> float:
    """Mean over n of the error among the n surest; queries that are equally sure share their errors."""
    _, group_Q = np.unique(-confidence_Q, return_inverse=True)
    error_Q = 1.0 - is_correct_Q
    mean_error = np.bincount(group_Q, error_Q) / np.bincount(group_Q)
    sorted_Q = mean_error[np.sort(group_Q)]
    return float((sorted_Q.cumsum() / np.arange(1, len(sorted_Q) + 1)).mean())


def _bin(number: int, bin_Q: np.ndarray, confidence_Q: np.ndarray, is_correct_Q: np.ndarray) -> Bin:
    inside_Q = bin_Q == number
    low, high, queries = number / BINS, (number + 1) / BINS, int(inside_Q.sum())
    if not queries:
        return Bin(low, high, 0, None, None)
    return Bin(low, high, queries, float(confidence_Q[inside_Q].mean()), float(is_correct_Q[inside_Q].mean()))
