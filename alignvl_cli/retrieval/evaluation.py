"""What an evaluation is: the values that tables, JSON and studies are views of."""

from dataclasses import dataclass
from typing import Any

from alignvl_cli.retrieval.bootstrap import Resampled
from alignvl_cli.retrieval.calibration import Modesty
from alignvl_cli.retrieval.eccv import BeyondPairs
from alignvl_cli.retrieval.hubness import Hubness
from alignvl_cli.retrieval.metrics import QueryRanks, RetrievalMetrics
from alignvl_cli.retrieval.nearest import FLAT, Agreement
from alignvl_cli.retrieval.protocol import DEFAULT_PROTOCOL, Protocol

SCHEMA, TABLE_SCHEMA = "alignvl.eval/1", "alignvl.eval-table/1"


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
    protocol: Protocol = DEFAULT_PROTOCOL
    resampled: Resampled | None = None
    """None without `--bootstrap`."""
    modesty: Modesty | None = None
    """None without `--calibration`."""
    hubness: Hubness | None = None
    """None without `--hubness`."""
    beyond: BeyondPairs | None = None
    """None without `--eccv`."""

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
            "folds": self.protocol.folds,
            "identical_hits": self.protocol.identical_hits,
            "protocol": self.protocol.text,
            "metrics": self.metrics.to_json(),
            "ci95": self.resampled and self.resampled.ci95(),
            "calibration": self.modesty and self.modesty.to_json(),
            "hubness": self.hubness and self.hubness.to_json(),
            "eccv": self.beyond and self.beyond.to_json(),
            "index": {"factory": FLAT, "agreement_at_10": self.agreement.share, "queries": self.agreement.queries},
            "warnings": list(self.warnings),
            "evaluation_set": self.evaluation_set,
            "provenance": self.provenance,
        }


@dataclass(frozen=True)
class EvaluationTable:
    """Several runs on one evaluation set, in the order asked; the first is what the others are compared with."""

    evaluations: tuple[Evaluation, ...]

    def differences(self) -> list[dict[str, Any] | None]:
        """Interval of each run's difference to the first, resampled together; None for the first, and without
        `--bootstrap`."""
        first = self.evaluations[0].resampled
        return [
            evaluation.resampled.less(first).ci95() if number and first and evaluation.resampled else None
            for number, evaluation in enumerate(self.evaluations)
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": TABLE_SCHEMA,
            "results": [evaluation.to_json() for evaluation in self.evaluations],
            "difference_to_first_ci95": self.differences(),
        }
