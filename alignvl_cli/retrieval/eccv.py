"""COCO 5K with relevance beyond its pairs: ECCV Caption and CxC, through the package `eccv_caption` (extra `eccv`).

COCO counts a caption as an answer to the one image that it was written for; most others that fit are counted wrong.
ECCV Caption (Chun et al., ECCV 2022) has people's and machines' verdict on more of them for about a quarter of the
queries, CxC (Parekh et al., EACL 2021) for all. Its own measure is mAP@R. Ties lose, as everywhere.
"""

# Q queries, M matches.

import re
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alignvl_cli.align.ranks import Relevant, rank_queries, recalls
from alignvl_cli.artifacts import read_json
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.retrieval.embeddings import Embeddings
from alignvl_cli.retrieval.metrics import DIRECTIONS
from alignvl_cli.store.reader import Store

COCO_NUMBER = re.compile(r"(\d+)(?:\.\w+)?$")
MAY_BE_GONE = 0.001
SIDES = {"image_to_text": "i2t", "text_to_image": "t2i"}


@dataclass(frozen=True, slots=True)
class Judgement:
    """One direction under one set of verdicts. Percentages."""

    queries: int
    hit_rate: dict[str, float]
    map_at_r: float


@dataclass(frozen=True)
class BeyondPairs:
    """Verdicts (`eccv`, `cxc`) -> direction -> figures."""

    verdicts: dict[str, dict[str, Judgement]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)["verdicts"]


def beyond_pairs(embeddings: Embeddings, store: Store, annotations: Path) -> BeyondPairs:
    """Figures of COCO's 5K test split under both sets of verdicts.

    `annotations` is Karpathy's `dataset_coco.json`, which tells the number of each caption. Raises UsageError without
    the package, DataError for another file, and when the split lacks a query or an answer that the verdicts name.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about optional packages of its own
            from eccv_caption import Metrics
    except ImportError as problem:
        raise UsageError('--eccv needs the package eccv_caption: pip install "alignvl[eccv]"') from problem

    truth = Metrics()
    rows = embeddings.rows
    image_at = {_coco_number(store.image_id[row]): position for position, row in enumerate(rows.image.tolist())}
    text_at = _text_positions(embeddings, store, annotations)
    places = {
        "image_to_text": (embeddings.img_IE, image_at, embeddings.txt_TE, text_at),
        "text_to_image": (embeddings.txt_TE, text_at, embeddings.img_IE, image_at),
    }
    found: dict[str, dict[str, Judgement]] = {}
    for name, verdict in (("eccv", truth.eccv_gts), ("cxc", truth.cxc_gts)):
        found[name] = {}
        for direction in DIRECTIONS:
            query_QE, query_at, gallery_GE, gallery_at = places[direction]
            verdicts, where = verdict[SIDES[direction]], f"{store.path}, {name}"
            relevant = _relevant(verdicts, query_at, gallery_at, len(query_QE), where)
            relevant = Relevant(*(part.to(query_QE.device) for part in relevant))
            ranks = rank_queries(query_QE, gallery_GE, relevant)
            precision = 100 * ranks.precision_Q.cpu().double().mean().item()
            found[name][direction] = Judgement(len(ranks.rank_Q), recalls(ranks.rank_Q), precision)
    return BeyondPairs(found)


def _relevant(
    verdict: dict[int, list[int]], query_at: dict[int, int], gallery_at: dict[int, int], queries: int, where: str
) -> Relevant:
    """The verdicts as positions; a query that they do not judge is not asked.

    A few answers are captions beyond an image's first five, which many drop: they may be absent.
    """
    absent = [number for number in verdict if number not in query_at]
    answers = [number for found in verdict.values() for number in found]
    gone = [number for number in answers if number not in gallery_at]
    if absent or len(gone) > MAY_BE_GONE * len(answers):
        raise DataError(
            f"{where}: {len(absent)} queries and {len(gone)} answers that were judged are not in this split, "
            f"e.g. {[*absent, *gone][0]}; evaluate the whole of Karpathy's COCO test split"
        )
    rows_of = {
        query_at[number]: sorted({gallery_at[other] for other in found if other in gallery_at})
        for number, found in verdict.items()
    }
    row_M = [row for position in sorted(rows_of) for row in rows_of[position]]
    count_Q = np.zeros(queries, dtype=np.int64)
    count_Q[list(rows_of)] = [len(found) for found in rows_of.values()]
    return Relevant(torch.tensor(row_M), torch.from_numpy(count_Q))


def _text_positions(embeddings: Embeddings, store: Store, annotations: Path) -> dict[int, int]:
    """COCO's number of each caption -> its position in the split, joined by image and text."""
    numbers: dict[tuple[int, str], list[int]] = {}
    for image, caption, number in _sentences(annotations):
        numbers.setdefault((image, caption.strip()), []).append(number)
    rows = embeddings.rows
    positions = {}
    for position, (row, owner) in enumerate(zip(rows.text.tolist(), rows.text_image.tolist(), strict=True)):
        image = _coco_number(store.image_id[rows.image[owner]])
        if waiting := numbers.get((image, store.text_caption[row].strip())):
            positions[waiting.pop(0)] = position
    return positions


def _sentences(annotations: Path) -> Iterator[tuple[int, str, int]]:
    """(image's number, caption, caption's number) of Karpathy's file."""
    try:
        for image in read_json(annotations, "annotation file")["images"]:
            for sentence in image["sentences"]:
                yield image["cocoid"], sentence["raw"], sentence["sentid"]
    except (KeyError, TypeError) as problem:
        raise DataError(
            f"{annotations}: not Karpathy's dataset_coco.json (cocoid of images, sentid of sentences): {problem!r}"
        ) from problem


def _coco_number(identity: str) -> int:
    """391895 of `val2014/COCO_val2014_000000391895.jpg`."""
    match = COCO_NUMBER.search(identity)
    if match is None:
        raise DataError(f"image id {identity!r} ends in no COCO number, so --eccv does not know the image")
    return int(match[1])
