"""One run of a study: trained, evaluated, and read back from its folder."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.compute
import pyarrow.parquet

from alignvl_cli.ablation.records import FAILED, Outcome, Ranks
from alignvl_cli.artifacts import read_json, write_json
from alignvl_cli.devices import computing_with
from alignvl_cli.errors import DataError, DivergedError, MismatchError
from alignvl_cli.retrieval import evaluate as saving
from alignvl_cli.retrieval.evaluate import calibrated_path, evaluate, save_evaluation
from alignvl_cli.retrieval.metrics import DIRECTIONS
from alignvl_cli.settings import Init, TrainConfig
from alignvl_cli.store.reader import Store, open_store
from alignvl_cli.training.checkpoint import has_checkpoint
from alignvl_cli.training.prepare import TRAIN
from alignvl_cli.training.run import resume_run, train_run
from alignvl_cli.training.run_folder import CONFIG, is_complete_run, load_run
from alignvl_cli.training.run_folder import RESULT as RUN_RESULT
from alignvl_cli.training.state import Record, Warned

JUDGED = ("confidence", "overconfidence", "ece", "nll", "brier", "auroc", "aurc")
"""Of the modesty report, by direction."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One arm with one seed, and all that decides its outcome."""

    arm: str
    config: TrainConfig
    given: dict[str, Any]
    """What `config` was resolved of, by flag; kept with the run."""
    store: Path
    content_hash: str
    """Of the store."""
    split: str
    """Evaluated; never the one that selects the epoch."""
    device: str
    threads: int
    folder: Path

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def decides(self) -> dict[str, Any]:
        """What a finished run must have been made of to stand for this job."""
        settings = json.loads(json.dumps(self.config.to_json()))
        return {**settings, "store": self.content_hash, "trained on": self.device, "threads": self.threads}


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What a process says of a job that it finished; everything else is in the folder."""

    arm: str
    seed: int
    mean_recall: float | None
    """On the evaluated split; None when the run failed."""
    failure: str | None
    warnings: tuple[str, ...] = ()
    """What its training warned of."""
    seconds: float = 0.0


def make(job: Job) -> Made:
    """Train the run unless it is complete, and evaluate it unless that was done. An unfinished run goes on from its
    checkpoint, if it has one.

    A diverged training is recorded in the folder, and is an outcome like any other. Raises as `train_run` and
    `evaluate` do otherwise.
    """
    store = _store(job.store)
    warnings: list[str] = []
    with computing_with(job.threads):
        if not is_complete_run(job.folder):
            try:
                warnings += [record.text for record in _training(job, store) if isinstance(record, Warned)]
            except DivergedError as problem:
                write_json(job.folder / FAILED, {"reason": str(problem), "decides": job.decides})
                return Made(arm=job.arm, seed=job.seed, mean_recall=None, failure=str(problem))
        run = load_run(job.folder, job.device)
        evaluation = evaluate(run, store, job.split, calibration=True, device=job.device)
        save_evaluation(run, evaluation)
    return Made(
        arm=job.arm,
        seed=job.seed,
        mean_recall=evaluation.metrics.mean_recall,
        failure=None,
        warnings=tuple(warnings),
    )


def _training(job: Job, store: Store) -> Iterator[Record]:
    """The training of an unfinished job, from its checkpoint or from the first step."""
    if has_checkpoint(job.folder) and _made_of(read_json(job.folder / CONFIG, "run's configuration")) == job.decides:
        return resume_run(job.folder, [job.store])
    return train_run([store], job.folder, job.config, overwrite=True, given=job.given)


def read_outcome(job: Job) -> Outcome | None:
    """The outcome of a finished job; None when there is something left to do. MismatchError for a run of other
    settings, of another store, or of another machine share."""
    if (job.folder / FAILED).is_file():
        failed = read_json(job.folder / FAILED, "failed run's record")
        _require_same(job, failed.get("decides", {}))
        return Outcome(arm=job.arm, seed=job.seed, metrics={}, ranks={}, failure=str(failed.get("reason")))
    if not is_complete_run(job.folder):
        return None
    config = read_json(job.folder / CONFIG, "run's configuration")
    result = read_json(job.folder / RUN_RESULT, "run's result")
    _require_same(job, _made_of(config))
    path = calibrated_path(job.folder, job.store, job.content_hash, job.split)
    if not path.is_file() or not path.with_suffix(".parquet").is_file():
        return None
    try:
        evaluation = saving.read_evaluation(path)
    except DataError:  # damaged: the run is evaluated again
        return None
    if evaluation.get("calibration") is None:  # evaluated again since, with other options
        return None
    if evaluation["provenance"]["adapters_sha256"] != config["adapters_sha256"]:
        return None
    return Outcome(
        arm=job.arm,
        seed=job.seed,
        metrics={
            job.split: _metrics(evaluation),
            evaluation["selection_split"]: _selected(result),
            TRAIN: _positives(result),
        },
        ranks=_ranks(path.with_suffix(".parquet")),
        kept_start=job.config.init is Init.cca and result["best"].get("epoch") == 0,
    )


def read_evaluation(job: Job) -> dict[str, Any]:
    """The evaluation of a finished run, whole."""
    return saving.read_evaluation(calibrated_path(job.folder, job.store, job.content_hash, job.split))


def _made_of(config: dict[str, Any]) -> dict[str, Any]:
    """`Job.decides` of a run, from its `config.json`."""
    machine = config.get("machine", {})
    return {
        **config.get("settings", {}),
        "store": config["stores"][0]["content_hash"],
        "trained on": machine.get("device"),
        "threads": machine.get("threads"),
    }


def differences(made_of: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """`key was X and is Y` for every key that differs."""
    return [
        f"{key.replace('_', '-')} was {made_of.get(key)} and is {wanted.get(key)}"
        for key in sorted(made_of.keys() | wanted.keys())
        if made_of.get(key) != wanted.get(key)
    ]


def _require_same(job: Job, made_of: dict[str, Any]) -> None:
    changed = differences(made_of, job.decides)
    if changed:
        raise MismatchError(
            f"{job.folder}: the run there is not the one that the study asks for ({'; '.join(changed)}); "
            "remove that folder to have it made again, or name another study folder with -o"
        )


def _metrics(evaluation: dict[str, Any]) -> dict[str, float | None]:
    found = {"mean_recall": evaluation["metrics"]["mean_recall"], "rsum": evaluation["metrics"]["rsum"]}
    for direction in DIRECTIONS:
        found |= {f"{direction}.{name}": value for name, value in evaluation["metrics"][direction].items()}
        for at, suffix in (("raw", ""), ("fitted", "_fitted")):
            judged = evaluation["calibration"][at]
            if judged is not None:
                found |= {f"{direction}.{name}{suffix}": judged[direction][name] for name in JUDGED}
    return found


def _selected(result: dict[str, Any]) -> dict[str, float | None]:
    return {name: result["best"].get(name) for name in ("mean_recall", "rsum")}


def _positives(result: dict[str, Any]) -> dict[str, float | None]:
    """What the run makes of its clean and its corrupted training pairs; nothing unless pairs were corrupted."""
    return {
        f"positives.{which}.{name}": found[name]
        for which, found in result.get("positives", {}).items()
        for name in ("similarity", "probability")
    }


def _ranks(path: Path) -> dict[str, Ranks]:
    table = pyarrow.parquet.read_table(path)
    parts = {}
    for direction in DIRECTIONS:
        mine = table.filter(pyarrow.compute.equal(table["direction"], direction))
        parts[direction] = Ranks(
            query_row_Q=mine["query_row"].to_numpy(),
            query_id_Q=mine["query_id"].to_pylist(),
            rank_Q=mine["rank"].to_numpy(),
        )
    return parts


@lru_cache(maxsize=1)
def _store(path: Path) -> Store:
    """Opened and verified once in a process, however many runs it makes."""
    return open_store(path)
