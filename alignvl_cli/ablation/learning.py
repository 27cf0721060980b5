"""Learning curves: the validations that a run's log holds, and their mean over the seeds of an arm."""

# V validations, S seeds.

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alignvl_cli.ablation.statistics import t_interval
from alignvl_cli.errors import DataError
from alignvl_cli.provenance import check_parts, read_json
from alignvl_cli.runs.folder import METRICS, RESULT, is_complete_run


@dataclass(frozen=True)
class LearningCurve:
    """Mean recall on the selection split after each epoch that all seeds have."""

    epoch_V: np.ndarray
    mean_V: np.ndarray
    ci95_V2: np.ndarray | None
    """Student's t over seeds, low and high; None for one seed."""
    seeds: int


def read_validations(run: Path) -> dict[int, float]:
    """Epoch -> mean recall on the selection split, from a run's log; DataError when it is missing or broken."""
    result = read_json(run / RESULT, "run's result") if is_complete_run(run) else {}
    check_parts(run, result.get("sha256", {}), "run's log")
    try:
        lines = (run / METRICS).read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        return {
            int(record["epoch"]): float(record["metrics"]["mean_recall"])
            for record in records
            if record["kind"] == "validated"
        }
    except OSError as problem:
        raise DataError(f"{run / METRICS}: cannot read this log: {problem.strerror or problem}") from problem
    except (ValueError, KeyError, TypeError) as problem:
        raise DataError(f"{run / METRICS}: not a run's log ({problem!r})") from problem


def learning_curve(runs: Sequence[dict[int, float]]) -> LearningCurve | None:
    """The mean over runs, as far as all of them go: beyond, only those that did not stop early would be left. None
    when they share fewer than two epochs, which are no curve."""
    shared = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
    if len(shared) < 2:
        return None
    value_VS = np.array([[run[epoch] for run in runs] for epoch in shared])
    return LearningCurve(
        epoch_V=np.array(shared),
        mean_V=value_VS.mean(axis=1),
        ci95_V2=t_interval(value_VS) if len(runs) > 1 else None,
        seeds=len(runs),
    )
