"""Reliability of an arm: accuracy by confidence, the queries of all its seeds together."""

# B bins of equal width.

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alignvl_cli.errors import DataError
from alignvl_cli.provenance import read_json
from alignvl_cli.retrieval.metrics import DIRECTIONS
from alignvl_cli.retrieval.saving import evaluation_path


@dataclass(frozen=True)
class Reliability:
    """Of one direction, as trained."""

    queries_B: np.ndarray
    confidence_B: np.ndarray
    """Mean of the bin's queries; 0 in an empty bin, and so the accuracy."""
    accuracy_B: np.ndarray


def read_reliability(runs: Sequence[Path], store: Path, split: str) -> dict[str, Reliability]:
    """Direction -> the runs' evaluations on a split, pooled; DataError when one is missing or has no calibration."""
    found: dict[str, list[np.ndarray]] = {direction: [] for direction in DIRECTIONS}
    for run in runs:
        path = evaluation_path(run, store, split)
        calibration = read_json(path, "evaluation").get("calibration")
        if calibration is None:
            raise DataError(f"{path}: no calibration in this evaluation; `alignvl eval --calibration` adds it")
        for direction in DIRECTIONS:
            bins = calibration["raw"][direction]["diagram"]
            found[direction].append(
                np.array([[kept["queries"], kept["confidence"] or 0, kept["accuracy"] or 0] for kept in bins])
            )
    return {direction: _pooled(np.stack(kept)) for direction, kept in found.items() if kept}


def _pooled(bins_SB3: np.ndarray) -> Reliability:
    queries_B = bins_SB3[:, :, 0].sum(axis=0)
    weighted_B2 = (bins_SB3[:, :, 1:] * bins_SB3[:, :, :1]).sum(axis=0) / np.maximum(queries_B, 1)[:, None]
    return Reliability(queries_B.astype(np.int64), weighted_B2[:, 0], weighted_B2[:, 1])
