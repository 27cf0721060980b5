"""Retrieval metrics: which gallery rows are relevant to a query, its rank, R@K and the other figures, their intervals.

A rank is the number of wrong candidates that score at least as well as the match: 0 is a hit at 1.
What papers on image-text retrieval call R@K is the hit rate: the share of queries with any relevant item among the
first K. It is called so in code and R@K where it is shown. (Information retrieval's recall, found over total,
could not exceed 20 % at K = 1 with five captions per image.)

Intervals, of one run's figures and of the difference between two, resample images: an image and its captions move
together, in both directions at once; the gallery is never resampled, so every resample asks queries whose ranks are
known. Percentile intervals; within folds, each fold's images are resampled.
"""

# S resamples, Q queries, I images, M metrics.

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from alignvl_cli.align.ranks import Relevant, captions_of_images, images_of_captions
from alignvl_cli.errors import DataError, UsageError, check_flag
from alignvl_cli.store.reader import SplitRows

RECALL_AT = (1, 5, 10)
"""The K of RSUM and of every default table."""
TIE = "1e-06"


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """What counts as a hit, and among how many."""

    recall_at: tuple[int, ...] = RECALL_AT
    """K of the recalls that are reported; RSUM is always of 1, 5 and 10 (`--recall-k`)."""
    folds: int = 1
    """Galleries into which the images are cut, in their order; figures are means over them (`--folds`)."""
    identical_hits: bool = False
    """Whether a caption of the very same text is a match too (`--identical-hits`)."""

    def __post_init__(self) -> None:
        if not self.recall_at or min(self.recall_at) < 1 or len(set(self.recall_at)) < len(self.recall_at):
            raise UsageError(f"--recall-k: wanted distinct numbers from 1, e.g. 1,5,10, got {_listed(self.recall_at)}")
        check_flag(self.folds >= 1, "folds", "at least 1", self.folds)

    @classmethod
    def parse(cls, recall_k: str, *, folds: int = 1, identical_hits: bool = False) -> "Protocol":
        """The protocol for `recall_k` as it is typed, `1,5,10`; UsageError for what is no list of numbers."""
        try:
            recall_at = tuple(int(part) for part in recall_k.split(","))
        except ValueError as problem:
            raise UsageError(f"--recall-k: wanted numbers with commas, e.g. 1,5,10, got '{recall_k}'") from problem
        return cls(recall_at=recall_at, folds=folds, identical_hits=identical_hits)

    @property
    def text(self) -> str:
        """The protocol in words, printed under every table."""
        return "; ".join(self._sentences())

    def _sentences(self) -> Iterator[str]:
        yield (
            "R@K = share of queries with a match among the first K: for an image any of its captions, for a caption "
            "its image"
        )
        if self.identical_hits:
            yield "IDENTICAL HITS: a caption of the very same text is a match too, and so is such a caption's image"
        if self.folds > 1:
            yield (
                f"the gallery is every caption, or every image, of a fold: means over {self.folds} folds of "
                "consecutive images"
            )
        else:
            yield "the gallery is every caption, or every image, of the split"
        yield f"exact cosines, and a tie (within {TIE} of the match) loses"
        yield "ranks count from 1"


DEFAULT_PROTOCOL = Protocol()


def _listed(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers)) or "nothing"


DIRECTIONS = ("image_to_text", "text_to_image")
RECALL_SUM = "recall_sum"
NORMAL_95 = 1.959964


@dataclass(frozen=True)
class QueryRanks:
    """One direction, query by query."""

    rank_Q: np.ndarray
    """int64, from 0: a hit at 1."""
    precision_Q: np.ndarray
    """Average precision at R, from 0 to 1."""
    row_Q: np.ndarray
    """The query's row in the store's `/image` or `/text`."""
    id_Q: list[str]
    """The query's image id; of a caption, the id of its image."""
    fold_Q: np.ndarray
    """The gallery that it was asked of; all 0 without folds."""


@dataclass(frozen=True, slots=True)
class DirectionMetrics:
    """One direction of retrieval, averaged over its queries; with folds, the mean over them."""

    hit_rate: dict[str, float]
    """`R@K` -> percentage of queries with a relevant item among the first K."""
    recall_sum: float
    """R@1 + R@5 + R@10, whatever other K are reported."""
    median_rank: float
    """Counted from 1, as the field reports it: 1.0 means that half of the queries or more are hits at 1."""
    mean_rank: float
    """Counted from 1."""
    mrr: float
    """Mean of 1 / (rank counted from 1), from 0 to 1."""
    map_at_r: float
    """Mean of the average precision among the first R, R being the number of matches: a percentage. With one match
    it is R@1."""

    def to_json(self) -> dict[str, float]:
        return {
            **self.hit_rate,
            "median_rank": self.median_rank,
            "mean_rank": self.mean_rank,
            "mrr": self.mrr,
            "mAP@R": self.map_at_r,
        }


@dataclass(frozen=True, slots=True)
class RetrievalMetrics:
    """Both directions, with the same K in each."""

    image_to_text: DirectionMetrics
    text_to_image: DirectionMetrics

    @property
    def rsum(self) -> float:
        """Sum of the recalls at 1, 5 and 10 of both directions; 600 is perfect."""
        return self.image_to_text.recall_sum + self.text_to_image.recall_sum

    @property
    def mean_recall(self) -> float:
        """RSUM / 6: a percentage."""
        return self.rsum / (2 * len(RECALL_AT))

    def to_json(self) -> dict[str, Any]:
        return {
            "image_to_text": self.image_to_text.to_json(),
            "text_to_image": self.text_to_image.to_json(),
            "rsum": self.rsum,
            "mean_recall": self.mean_recall,
        }


def query_values(ranks: QueryRanks, recall_at: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Each metric that is a mean over queries -> its value (Q,) for each of them."""
    hits = {f"R@{k}": 100.0 * (ranks.rank_Q < k) for k in recall_at}
    return {
        **hits,
        RECALL_SUM: np.sum([100.0 * (ranks.rank_Q < k) for k in RECALL_AT], axis=0),
        "mean_rank": ranks.rank_Q + 1.0,
        "mrr": 1 / (ranks.rank_Q + 1.0),
        "mAP@R": 100.0 * ranks.precision_Q,
    }


def direction_metrics(ranks: QueryRanks, recall_at: tuple[int, ...] = RECALL_AT) -> DirectionMetrics:
    """Average Q >= 1 queries within each fold, and the folds; ValueError without queries or with a negative rank."""
    if len(ranks.rank_Q) == 0 or ranks.rank_Q.min() < 0:
        raise ValueError("metrics need at least one query, and ranks that count from 0")
    folds = [ranks.fold_Q == fold for fold in np.unique(ranks.fold_Q)]
    mean = {
        name: float(np.mean([value_Q[fold_Q].mean() for fold_Q in folds]))
        for name, value_Q in query_values(ranks, recall_at).items()
    }
    return DirectionMetrics(
        hit_rate={f"R@{k}": mean[f"R@{k}"] for k in recall_at},
        recall_sum=mean[RECALL_SUM],
        median_rank=float(np.mean([np.median(ranks.rank_Q[fold_Q]) + 1 for fold_Q in folds])),
        mean_rank=mean["mean_rank"],
        mrr=mean["mrr"],
        map_at_r=mean["mAP@R"],
    )


def predicted(share: float, trials: float) -> tuple[float, float]:
    """Where 95 % of the shares of as many new trials fall, from 0 to 1; never of width 0.

    Both shares vary, and near 0 and 1 the variance depends on the new one too: the interval holds the shares that
    differ from `share` by at most 1.96 standard deviations at the mean of the two (Krishnamoorthy and Peng, "Improved
    closed-form prediction intervals for binomial and Poisson distributions", J. Statistical Planning and Inference
    2011, joint sampling).
    """
    square = 2 * NORMAL_95 * NORMAL_95 / trials
    tilt, scale = square * (1 - 2 * share) / 2, 1 + square / 4
    half = np.sqrt(tilt * tilt + 4 * scale * square * share * (1 - share))
    low, high = share + (tilt - half) / (2 * scale), share + (tilt + half) / (2 * scale)
    return float(max(0.0, low)), float(min(1.0, high))


@dataclass(frozen=True)
class Fold:
    """One gallery: positions within a split."""

    image_I: np.ndarray
    text_T: np.ndarray
    text_image_T: np.ndarray
    """Position of each caption's image *within* `image_I`."""


def cut_folds(rows: SplitRows, folds: int) -> list[Fold]:
    """The split as `folds` galleries of consecutive images, equal up to one; DataError when one has no caption."""
    if folds > len(rows.image):
        raise DataError(f"--folds {folds}: the split has only {len(rows.image)} images")
    made = []
    for image_I in np.array_split(np.arange(len(rows.image)), folds):
        text_T = np.flatnonzero((rows.text_image >= image_I[0]) & (rows.text_image <= image_I[-1]))
        if not len(text_T):
            raise DataError(f"--folds {folds}: a fold of {len(image_I)} images has no caption; use fewer folds")
        made.append(Fold(image_I, text_T, rows.text_image[text_T] - image_I[0]))
    return made


def relevance(fold: Fold, captions: Sequence[str], protocol: Protocol, device: torch.device) -> dict[str, Relevant]:
    """Direction -> what answers its queries. `captions` are those of the fold."""
    text_image_T = torch.from_numpy(fold.text_image_T).to(device)
    if not protocol.identical_hits:
        return {
            "image_to_text": captions_of_images(text_image_T, len(fold.image_I)),
            "text_to_image": images_of_captions(text_image_T),
        }
    by_image, by_text = _identical(fold.text_image_T, captions, len(fold.image_I))
    return {
        direction: Relevant(torch.from_numpy(row_M).to(device), torch.from_numpy(count_Q).to(device))
        for direction, (row_M, count_Q) in (("image_to_text", by_image), ("text_to_image", by_text))
    }


def _identical(
    text_image_T: np.ndarray, captions: Sequence[str], images: int
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Matches by text, ragged: (rows, count of each query) of images asking captions, and of captions asking images."""
    number_of: dict[str, int] = {}
    group_T = np.array([number_of.setdefault(caption, len(number_of)) for caption in captions])
    groups = len(number_of)
    texts_by_group, texts_in_G = np.argsort(group_T, kind="stable"), np.bincount(group_T, minlength=groups)
    # Distinct (group, image) pairs: an image that has one text twice has it once here.
    pair_P = np.unique(group_T * images + text_image_T)
    group_P, image_P = pair_P // images, pair_P % images
    images_in_G = np.bincount(group_P, minlength=groups)

    by_image_P = np.argsort(image_P, kind="stable")
    asked_P = group_P[by_image_P]
    row_M = texts_by_group[_ragged((texts_in_G.cumsum() - texts_in_G)[asked_P], texts_in_G[asked_P])]
    count_I = np.bincount(image_P, weights=texts_in_G[group_P], minlength=images).astype(np.int64)
    image_M = image_P[_ragged((images_in_G.cumsum() - images_in_G)[group_T], images_in_G[group_T])]
    return (row_M, count_I), (image_M, images_in_G[group_T])


def _ragged(first_P: np.ndarray, count_P: np.ndarray) -> np.ndarray:
    """`first`, `first + 1`, ... `count` of them, one stretch after the other."""
    end_P = count_P.cumsum()
    return np.arange(end_P[-1]) + np.repeat(first_P - (end_P - count_P), count_P)


RESAMPLES = 2000
SEED = 0
"""Fixed: the same ranks, the same interval; and runs on one evaluation set are resampled alike, which pairs them."""
LEVEL = (2.5, 97.5)
CHUNK_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Resampled:
    """Direction -> metric -> its value in each resample, (S,)."""

    directions: dict[str, dict[str, np.ndarray]]

    @property
    def rsum_S(self) -> np.ndarray:
        return self.directions[DIRECTIONS[0]][RECALL_SUM] + self.directions[DIRECTIONS[1]][RECALL_SUM]

    def less(self, other: "Resampled") -> "Resampled":
        """The differences to another run, resample by resample."""
        return Resampled(
            {
                direction: {name: value_S - other.directions[direction][name] for name, value_S in metrics.items()}
                for direction, metrics in self.directions.items()
            }
        )

    def ci95(self) -> dict[str, Any]:
        """[low, high] of every metric that is a mean, in the shape of `metrics`; the median rank has none."""
        by_direction = {
            direction: {name: _interval(value_S) for name, value_S in metrics.items() if name != RECALL_SUM}
            for direction, metrics in self.directions.items()
        }
        rsum_S = self.rsum_S
        return {
            **by_direction,
            "rsum": _interval(rsum_S),
            "mean_recall": _interval(rsum_S / (2 * len(RECALL_AT))),
            "method": "percentile bootstrap over images, galleries fixed",
            "resamples": len(rsum_S),
        }


def resample(by_image: QueryRanks, by_text: QueryRanks, recall_at: tuple[int, ...]) -> Resampled:
    """Resample the images of both directions' queries `RESAMPLES` times."""
    ranks = dict(zip(DIRECTIONS, (by_image, by_text), strict=True))
    values = {direction: query_values(found, recall_at) for direction, found in ranks.items()}
    totals = {direction: np.zeros((RESAMPLES, len(metrics))) for direction, metrics in values.items()}
    draw = np.random.default_rng(SEED)
    folds = np.unique(by_text.fold_Q)
    for fold in folds:
        mine = {direction: np.flatnonzero(found.fold_Q == fold) for direction, found in ranks.items()}
        ids = {direction: np.array([ranks[direction].id_Q[q] for q in mine[direction]]) for direction in DIRECTIONS}
        image_I = np.unique(np.concatenate(list(ids.values())))
        sums = {}
        for direction in DIRECTIONS:
            image_Q = np.searchsorted(image_I, ids[direction])
            columns = [value_Q[mine[direction]] for value_Q in values[direction].values()]
            weights = [np.ones(len(image_Q)), *columns]
            sums[direction] = np.stack([np.bincount(image_Q, weight, len(image_I)) for weight in weights], axis=1)
        size = max(1, CHUNK_ELEMENTS // len(image_I))
        for start in range(0, RESAMPLES, size):
            rows = slice(start, min(start + size, RESAMPLES))
            times_SI = draw.multinomial(len(image_I), np.full(len(image_I), 1 / len(image_I)), rows.stop - rows.start)
            for direction in DIRECTIONS:
                sum_SM = times_SI @ sums[direction]
                totals[direction][rows] += sum_SM[:, 1:] / sum_SM[:, :1] / len(folds)
    return Resampled(
        {
            direction: {name: totals[direction][:, column] for column, name in enumerate(values[direction])}
            for direction in DIRECTIONS
        }
    )


def _interval(value_S: np.ndarray) -> list[float]:
    return [float(bound) for bound in np.percentile(value_S, LEVEL)]
