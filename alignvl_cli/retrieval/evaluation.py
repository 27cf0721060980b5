"""What an evaluation is: the values that tables, JSON and studies are views of."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from alignvl_cli.align.ranks import TIE
from alignvl_cli.retrieval.metrics import RetrievalMetrics
from alignvl_cli.retrieval.nearest import FACTORY, Agreement

SCHEMA, TABLE_SCHEMA = "alignvl.eval/1", "alignvl.eval-table/1"
PROTOCOL = (
    "R@K = share of queries with a match among the first K: for an image any of its captions, for a caption its image; "
    "the gallery is every caption, or every image, of the split; exact cosines, and a tie "
    f"(within {TIE:g} of the match) loses; ranks count from 1"
)


@dataclass(frozen=True)
class QueryRanks:
    """One direction, query by query."""

    rank_Q: np.ndarray
    """int64, from 0: a hit at 1."""
    row_Q: np.ndarray
    """The query's row in the store's `/image` or `/text`."""
    id_Q: list[str]
    """The query's image id; of a caption, the id of its image."""


@dataclass(frozen=True)
class Evaluation:
    """What `alignvl eval` found for one run on one split."""

    run: str
    store: str
    split: str
    selection_split: str
    images: int
    """In the gallery; those without a caption are never queries."""
    captions: int
    repeated_captions: int
    """Captions less distinct captions: each is a tie for another one of the very same text."""
    captions_per_image: tuple[int, int]
    """Fewest and most."""
    metrics: RetrievalMetrics
    agreement: Agreement
    image_to_text: QueryRanks
    text_to_image: QueryRanks
    warnings: tuple[str, ...]
    evaluation_set: str
    """Hash of the split's images and captions, whatever encoders made the latents: equal means comparable."""
    provenance: dict[str, Any]

    protocol: str = PROTOCOL

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "run": self.run,
            "store": self.store,
            "split": self.split,
            "selection_split": self.selection_split,
            "images": self.images,
            "captions": self.captions,
            "repeated_captions": self.repeated_captions,
            "captions_per_image": list(self.captions_per_image),
            "queries": {
                "image_to_text": len(self.image_to_text.rank_Q),
                "text_to_image": len(self.text_to_image.rank_Q),
            },
            "protocol": self.protocol,
            "metrics": self.metrics.to_json(),
            "ci95": None,
            "calibration": None,
            "index": {"factory": FACTORY, "agreement_at_10": self.agreement.share, "queries": self.agreement.queries},
            "warnings": list(self.warnings),
            "evaluation_set": self.evaluation_set,
            "provenance": self.provenance,
        }


@dataclass(frozen=True)
class EvaluationTable:
    """Several runs on one evaluation set, in the order asked; the first is what the others are compared with."""

    evaluations: tuple[Evaluation, ...]

    def to_json(self) -> dict[str, Any]:
        return {"schema": TABLE_SCHEMA, "results": [evaluation.to_json() for evaluation in self.evaluations]}
