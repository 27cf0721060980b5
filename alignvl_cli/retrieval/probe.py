"""`alignvl probe`: how alike the two frozen spaces of a store arrange the same pairs, beside what shuffled pairs would
give, and what that says of training on it.

Letters: N pairs, D and C widths of image and text latents, I images, T captions, K neighbours or shared width, B pairs
of layers, S shuffles.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from alignvl_cli.align.closed_forms import CLOSED_FORMS, Maps, Moments, moments, rank
from alignvl_cli.align.ranks import (
    NEIGHBOURS,
    RECALL_AT,
    Ranks,
    image_to_text_ranks,
    nearest_others,
    recalls,
    text_to_image_ranks,
)
from alignvl_cli.errors import DataError
from alignvl_cli.settings import Method
from alignvl_cli.store.reader import Store

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
    image_NK, text_NK = _neighbours(image_ND, NEIGHBOURS), _neighbours(text_NC, NEIGHBOURS)
    return _measured(lambda order_N: _shared(image_NK, text_NK, order_N), len(image_ND), generator)


def _neighbours(x_ND: Tensor, most: int) -> Tensor:
    """Rows nearest each row by cosine, ascending by number: (N, K)."""
    kept = min(most, len(x_ND) - 1)
    return nearest_others(x_ND.__getitem__, len(x_ND), torch.arange(len(x_ND)), kept).sort(dim=1).values


def _shared(image_NK: Tensor, text_NK: Tensor, order_N: Tensor) -> float:
    """Mean share of the neighbours of a row on one side that it has on the other, too, whose rows are in that order."""
    place_N = order_N.argsort()  # where each row of the texts stands once they are shuffled
    moved_NK = place_N[text_NK[order_N]]
    at_NK = torch.searchsorted(image_NK, moved_NK).clamp_(max=image_NK.shape[1] - 1)
    return (image_NK.gather(1, at_NK) == moved_NK).float().mean().item()


LAYER_PERMUTATIONS = 200
"""The authors' number of them: no p is below 1 / 201."""
LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Closest:
    """The two parts that agree most, and how sure it is that they agree at all, given that they were looked for.

    Null calibration of the largest (Gröger et al., arXiv 2602.14486, algorithm 2): the pairs are shuffled, in all
    layers alike, and the largest of all measures is taken again each time.
    """

    image: str
    text: str
    value: float
    p: float
    """Share of the shuffles, this order counted as one of them, whose largest measure is no less."""
    threshold: float
    """The largest measure of shuffled pairs is no larger in 95 % of them."""
    calibrated: float
    """`(value - threshold) / (1 - threshold)`, at least 0: comparable between encoders of more or fewer layers."""
    permutations: int

    @property
    def reading(self) -> str:
        """In words, and how to train on the two."""
        told = (
            f"image {self.image} and text {self.text} agree most: the largest measure of {self.permutations} shuffles "
            f"is as large with p = {self.p:.3f}, and calibrated by it theirs is {self.calibrated:.3f}"
        )
        if self.p > LEVEL:
            return f"{told}: no more than what the best of as many layers has by chance"
        return f"{told}; on them alone: train --image-parts {self.image} --text-parts {self.text}"


@dataclass(frozen=True, slots=True)
class Agreement:
    """Mutual nearest neighbours of each part of the image latents with each of the text latents, on training pairs."""

    neighbours: int
    """The least K of at least 2 N^(1/3): more pairs are looked at more widely, each within a smaller share."""
    pairs: int
    parts: dict[str, dict[str, Measured]]
    """Image part -> text part."""
    closest: Closest


def agreement(
    image_ND: Tensor,
    image_parts: dict[str, slice],
    text_NC: Tensor,
    text_parts: dict[str, slice],
    generator: torch.Generator,
) -> Agreement:
    """Which layers arrange the pairs alike: mutual nearest neighbours of each two of them, by which STRUCTURE (NeurIPS
    2025) chooses layers."""
    pairs = len(image_ND)
    kept = min(next(k for k in itertools.count(1) if k**3 >= 8 * pairs), pairs - 1)
    text = {name: _neighbours(text_NC[:, columns], kept) for name, columns in text_parts.items()}
    image = {name: _neighbours(image_ND[:, columns], kept) for name, columns in image_parts.items()}
    both = list(itertools.product(image, text))

    def measured(order_N: Tensor) -> list[float]:
        return [_shared(image[name], text[other], order_N) for name, other in both]

    value_B = torch.tensor(measured(torch.arange(pairs)))
    orders = (torch.randperm(pairs, generator=generator) for _ in range(LAYER_PERMUTATIONS))
    shuffled_SB = torch.tensor([measured(order_N) for order_N in orders])
    found: dict[str, dict[str, Measured]] = {name: {} for name in image}
    for (name, other), value, shuffled_S in zip(both, value_B.tolist(), shuffled_SB.T, strict=True):
        found[name][other] = Measured(value, shuffled_S.mean().item(), shuffled_S.max().item())
    return Agreement(kept, pairs, found, _closest(both, value_B, shuffled_SB))


def _closest(both: Sequence[tuple[str, str]], value_B: Tensor, shuffled_SB: Tensor) -> Closest:
    """Of measures of B pairs of layers, and the same of S shuffles."""
    largest_S, best = shuffled_SB.amax(dim=1), int(value_B.argmax())
    value, shuffles = value_B[best], len(largest_S)
    every = torch.cat([largest_S, value[None]]).sort().values
    threshold = every[math.ceil((1 - LEVEL) * (shuffles + 1)) - 1].item()
    return Closest(
        image=both[best][0],
        text=both[best][1],
        value=value.item(),
        p=(1 + int((largest_S >= value).sum())) / (shuffles + 1),
        threshold=threshold,
        calibrated=max(0.0, value.item() - threshold) / (1 - threshold) if threshold < 1 else 0.0,
        permutations=shuffles,
    )


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


SAMPLE = 4000
FEWEST = 20
"""Images of a split below which neighbours and recalls say nothing."""
CAPTIONS = 5
"""Of one image, at most."""
BLOCK_PAIRS = 512
HELD_OUT = 5
"""One training pair in so many chooses the ridge."""
ALIGNS, UNRELATED_SE = 0.9, 3.0
"""Ours: a match that beats nine in ten rivals; and standard errors within which it beats no more than half."""


@dataclass(frozen=True)
class Pairs:
    """Sampled images of a split, each with its captions; `first_I` is one caption of each."""

    image_ID: Tensor
    text_TC: Tensor
    text_image_T: Tensor
    first_I: Tensor

    @property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """One caption an image: rows that are independent of each other."""
        return self.image_ID, self.text_TC[self.first_I]


@dataclass(frozen=True)
class LinearRecall:
    """What regularised CCA, fitted to training pairs, finds among validation pairs it has not seen."""

    ridge: float
    image_to_text: dict[str, float]
    text_to_image: dict[str, float]
    chance: dict[str, dict[str, float]]
    """Direction -> recall of a random order."""
    beats: float
    """Share of the other images that a caption's own image scores above, ties losing; half by chance."""
    beats_error: float
    """Standard error of `beats` were every rank random."""


@dataclass(frozen=True)
class Probe:
    """All that was measured of a store."""

    store: str
    vision: str
    text: str
    images: dict[str, int]
    """Split -> images sampled, of `of`."""
    of: dict[str, int]
    captions: dict[str, int]
    mutual_knn: dict[str, Measured]
    cka: dict[str, Measured]
    cca: LinearRecall
    layers: Agreement | None
    """None where both sides are of one part."""

    @property
    def verdict(self) -> str:
        """`aligns`, `weakly` or `unrelated`."""
        if self.cca.beats >= ALIGNS:
            return "aligns"
        return "unrelated" if self.cca.beats <= 0.5 + UNRELATED_SE * self.cca.beats_error else "weakly"

    @property
    def reading(self) -> str:
        """The verdict in words."""
        share = f"a caption's own image scores above {100 * self.cca.beats:.0f} % of the others (50 % by chance)"
        return {
            "aligns": f"these two encoders will align: after one linear map {share}",
            "weakly": f"these two encoders may align weakly: after one linear map {share}; recall is useful from 90 %."
            " More or cleaner pairs, or other encoders, may get there",
            "unrelated": f"these two encoders will not align on these pairs: after one linear map {share}."
            " Look whether the captions belong to the images",
        }[self.verdict]

    def to_json(self) -> dict[str, Any]:
        return {"schema": "alignvl.probe/1", **asdict(self), "verdict": self.verdict, "reading": self.reading}


def probe(store: Store, sample: int = SAMPLE, seed: int = 0) -> Probe:
    """Measure at most `sample` images of the training split and of the validation split (else test), with at
    most five captions each. DataError when a split is absent or too small."""
    held = "val" if "val" in store.split_sizes() else "test"
    generator = torch.Generator().manual_seed(seed)
    found = {split: _sampled(store, split, sample, generator) for split in ("train", held)}
    train, val = found["train"], found[held]
    (image_ND, text_NC), parts = train.pairs, (store.image_parts, store.text_parts)
    return Probe(
        store=str(store.path),
        vision=str(store.vision["about"].get("id")),
        text=str(store.text["about"].get("id")),
        images={split: len(pairs.image_ID) for split, pairs in found.items()},
        of={split: store.split_sizes()[split] for split in found},
        captions={split: len(pairs.text_TC) for split, pairs in found.items()},
        mutual_knn={split: mutual_knn(*pairs.pairs, generator) for split, pairs in found.items()},
        cka={split: cka(*pairs.pairs, generator) for split, pairs in found.items()},
        cca=_linear_recall(train, val),
        layers=agreement(image_ND, parts[0], text_NC, parts[1], generator) if max(map(len, parts)) > 1 else None,
    )


def _sampled(store: Store, split: str, sample: int, generator: torch.Generator) -> Pairs:
    """At most `sample` images that have a caption, copies of one picture counting once, and at most five captions of
    each: what is held is (6 x sample) latents, however large the store."""
    if split not in (sizes := store.split_sizes()):
        there = ", ".join(f"{name} ({count:,} images)" for name, count in sizes.items())
        raise DataError(
            f"{store.path}: no image in split {split!r} (it has {there}); a probe wants train, and val or test"
        )
    rows = store.rows(split)
    _, distinct = np.unique(store.image_sha256[rows.image], axis=0, return_index=True)
    used = np.intersect1d(distinct, rows.text_image)
    if len(used) < FEWEST:
        raise DataError(
            f"{store.path}: split {split!r} has {len(used)} different images with a caption; a probe wants {FEWEST}"
        )
    chosen = np.sort(used[torch.randperm(len(used), generator=generator)[:sample].numpy()])
    position = np.full(len(rows.image), -1)
    position[chosen] = np.arange(len(chosen))
    order = torch.randperm(len(rows.text), generator=generator).numpy()
    order = order[position[rows.text_image[order]] >= 0]
    owner = position[rows.text_image[order]]
    by_owner = np.argsort(owner, kind="stable")
    start = np.searchsorted(owner[by_owner], np.arange(len(chosen)))
    nth = np.arange(len(owner)) - start[owner[by_owner]]
    kept = np.sort(order[by_owner][nth < CAPTIONS])
    text_image = torch.from_numpy(position[rows.text_image[kept]])
    first_I = torch.full((len(chosen),), len(kept)).scatter_reduce_(
        0, text_image, torch.arange(len(kept)), reduce="amin"
    )
    return Pairs(
        torch.from_numpy(store.image_block(rows.image[chosen])),
        torch.from_numpy(store.text_block(rows.text[kept])),
        text_image,
        first_I,
    )


def _linear_recall(train: Pairs, val: Pairs) -> LinearRecall:
    """The ridge is chosen on a fifth of the training images, and the validation images are looked at once."""
    is_held_I = torch.arange(len(train.image_ID)) % HELD_OUT == 0
    is_held_T = is_held_I[train.text_image_T]
    fitted = moments(
        (train.image_ID[train.text_image_T[pair_N]], train.text_TC[pair_N])
        for pair_N in (~is_held_T).nonzero().squeeze(1).split(BLOCK_PAIRS)
    )
    width = rank(fitted)
    if not width:
        raise DataError("the latents of images and captions do not vary together: one side is constant")
    held = _part(train, is_held_I)
    candidates = list(CLOSED_FORMS[Method.cca](fitted, width))
    scores = [_ranks(maps, fitted, held)[1].rank_Q.double().mean() for _, maps in candidates]
    ridge, maps = candidates[int(torch.stack(scores).argmin())]
    image_to_text, text_to_image = _ranks(maps, fitted, val)
    images, captions = len(val.image_ID), len(val.text_TC)
    own_I = torch.bincount(val.text_image_T, minlength=images)
    return LinearRecall(
        ridge=float(ridge or 0.0),
        image_to_text=recalls(image_to_text.rank_Q),
        text_to_image=recalls(text_to_image.rank_Q),
        chance={
            "image_to_text": {
                f"R@{k}": 100 * float(np.mean([_found(captions, int(own), k) for own in own_I])) for k in RECALL_AT
            },
            "text_to_image": {f"R@{k}": 100 * _found(images, 1, k) for k in RECALL_AT},
        },
        beats=1 - text_to_image.rank_Q.double().mean().item() / (images - 1),
        beats_error=1 / math.sqrt(12 * images),
    )


def _part(pairs: Pairs, is_kept_I: Tensor) -> Pairs:
    """Some of the images, with their captions."""
    is_kept_T = is_kept_I[pairs.text_image_T]
    new_I, new_T = (is_kept.long().cumsum(0) - 1 for is_kept in (is_kept_I, is_kept_T))
    return Pairs(
        pairs.image_ID[is_kept_I],
        pairs.text_TC[is_kept_T],
        new_I[pairs.text_image_T[is_kept_T]],
        new_T[pairs.first_I[is_kept_I]],
    )


def _ranks(maps: Maps, fitted: Moments, pairs: Pairs) -> tuple[Ranks, Ranks]:
    """Image to text and text to image, ties losing."""
    img_IK = F.normalize((pairs.image_ID.double() - fitted.image_mean_D) @ maps.image_KD.T, dim=1).float()
    txt_TK = F.normalize((pairs.text_TC.double() - fitted.text_mean_C) @ maps.text_KC.T, dim=1).float()
    return (
        image_to_text_ranks(img_IK, txt_TK, pairs.text_image_T),
        text_to_image_ranks(img_IK, txt_TK, pairs.text_image_T),
    )


def _found(gallery: int, own: int, k: int) -> float:
    """The chance that one of `own` rows is among the first k of a random order: one minus a hypergeometric zero."""
    missed = 1.0
    for place in range(min(k, gallery)):
        missed *= max(0, gallery - own - place) / (gallery - place)
    return 1 - missed
