"""What the views of a study show beyond its verdicts: learning curves, reliability, and the queries on which two arms
disagree.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute
import pyarrow.parquet

from alignvl_cli.ablation.records import RANKS
from alignvl_cli.ablation.statistics import t_interval
from alignvl_cli.artifacts import check_parts, read_json
from alignvl_cli.errors import DataError
from alignvl_cli.retrieval.evaluate import calibrated_path
from alignvl_cli.retrieval.metrics import DIRECTIONS
from alignvl_cli.training.run_folder import METRICS, RESULT, is_complete_run


@dataclass(frozen=True)
class LearningCurve:
    """Mean recall on the selection split after each epoch that all seeds have."""

    epoch_V: np.ndarray
    mean_V: np.ndarray
    ci95_V2: np.ndarray | None
    """Student's t over seeds, low and high; None for one seed."""
    seeds: int


def read_validations(run: Path) -> list[dict[int, float]]:
    """Epoch -> mean recall on the selection split, of each pair of adapters that the run trained, from its log;
    DataError when it is missing or broken."""
    result = read_json(run / RESULT, "run's result") if is_complete_run(run) else {}
    check_parts(run, result.get("sha256", {}), "run's log")
    pairs: list[dict[int, float]] = [{}]
    try:
        for record in map(json.loads, (run / METRICS).read_text(encoding="utf-8").splitlines()):
            if record["kind"] == "member" and pairs[-1]:
                pairs.append({})
            if record["kind"] == "validated":
                pairs[-1][int(record["epoch"])] = float(record["metrics"]["mean_recall"])
    except OSError as problem:
        raise DataError(f"{run / METRICS}: cannot read this log: {problem.strerror or problem}") from problem
    except (ValueError, KeyError, TypeError) as problem:
        raise DataError(f"{run / METRICS}: not a run's log ({problem!r})") from problem
    return pairs


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


@dataclass(frozen=True)
class Ranked:
    """The ranks of one direction in all runs of an arm."""

    query_row_Q: np.ndarray
    """In the store's `/image` or `/text`, ascending."""
    query_id_Q: np.ndarray
    by_seed: dict[int, np.ndarray]
    """Seed -> rank (Q,), 0 being a hit at 1."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One query, and its ranks in two arms; 0 is a hit at 1."""

    query_row: int
    query_id: str
    reference_rank: int
    """With the seed that is shown."""
    arm_rank: int
    reference_median: float
    """Over the common seeds."""
    arm_median: float


@dataclass(frozen=True)
class Disagreements:
    """Of all queries of a direction, and the extreme ones, the greatest first."""

    seeds: tuple[int, ...]
    """That both arms have."""
    seed: int
    """Of the ranks that are shown."""
    queries: int
    sooner: int
    """Queries that the arm finds sooner, by the median of their ranks over seeds."""
    later: int
    gains: tuple[Disagreement, ...]
    losses: tuple[Disagreement, ...]


def read_ranks(study: Path, arm: str, direction: str) -> Ranked:
    """All runs of one arm; DataError when the file is missing, broken, or its runs were asked different queries."""
    path = study / RANKS
    try:
        table = pyarrow.parquet.read_table(path, filters=[("arm", "=", arm), ("direction", "=", direction)])
    except (OSError, pyarrow.ArrowException) as problem:
        raise DataError(f"{path}: cannot read the ranks of this study: {problem}") from problem
    table = table.sort_by([("seed", "ascending"), ("query_row", "ascending")])
    seed_N = table["seed"].to_numpy()
    row_N, rank_N = table["query_row"].to_numpy(), table["rank"].to_numpy()
    seeds = np.unique(seed_N)
    rows = [row_N[seed_N == seed] for seed in seeds]
    if any(not np.array_equal(row_Q, rows[0]) for row_Q in rows):
        raise DataError(f"{path}: the runs of arm {arm} were asked different queries; run the study again")
    queries = len(rows[0]) if rows else 0
    return Ranked(
        query_row_Q=rows[0] if rows else np.empty(0, np.int64),
        query_id_Q=np.array(table["query_id"].slice(0, queries).to_pylist(), dtype=object),
        by_seed={int(seed): rank_N[seed_N == seed] for seed in seeds},
    )


def disagreements(reference: Ranked, arm: Ranked, seed: int, count: int) -> Disagreements:
    """The `count` queries that each of the two finds most sooner, one an image: with `seed`, whose answers can be
    shown, and by the median over all common seeds, so that it is not that seed's luck. Both arms must have `seed`.

    A query counts by the ratio of its ranks from 1: from 1 to 3 is as much as from 10 to 30.
    """
    seeds = tuple(other for other in reference.by_seed if other in arm.by_seed)
    reference_Q = np.median([reference.by_seed[other] for other in seeds], axis=0)
    arm_Q = np.median([arm.by_seed[other] for other in seeds], axis=0)
    gain_Q = np.log2((1 + reference_Q) / (1 + arm_Q))
    shown_Q = np.log2((1 + reference.by_seed[seed]) / (1 + arm.by_seed[seed]))

    def extreme(sign: int) -> tuple[Disagreement, ...]:
        strength_Q = np.minimum(sign * gain_Q, sign * shown_Q)
        found: dict[str, Disagreement] = {}
        for query in np.argsort(-strength_Q, kind="stable"):
            if len(found) == count or strength_Q[query] <= 0:
                break
            made = Disagreement(
                query_row=int(arm.query_row_Q[query]),
                query_id=str(arm.query_id_Q[query]),
                reference_rank=int(reference.by_seed[seed][query]),
                arm_rank=int(arm.by_seed[seed][query]),
                reference_median=float(reference_Q[query]),
                arm_median=float(arm_Q[query]),
            )
            found.setdefault(made.query_id, made)
        return tuple(found.values())

    return Disagreements(
        seeds=seeds,
        seed=seed,
        queries=len(gain_Q),
        sooner=int((gain_Q > 0).sum()),
        later=int((gain_Q < 0).sum()),
        gains=extreme(1),
        losses=extreme(-1),
    )


@dataclass(frozen=True)
class Reliability:
    """Of one direction, as trained."""

    queries_B: np.ndarray
    confidence_B: np.ndarray
    """Mean of the bin's queries; 0 in an empty bin, and so the accuracy."""
    accuracy_B: np.ndarray


def read_reliability(runs: Sequence[Path], store: Path, content_hash: str, split: str) -> dict[str, Reliability]:
    """Direction -> the runs' evaluations on a split, pooled; DataError when one is missing or has no calibration."""
    found: dict[str, list[np.ndarray]] = {direction: [] for direction in DIRECTIONS}
    for run in runs:
        path = calibrated_path(run, store, content_hash, split)
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
