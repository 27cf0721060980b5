"""One run of a study: trained, evaluated, and read back from its folder."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.compute
import pyarrow.parquet

from alignvl_cli.ablation.records import FAILED, Outcome, Ranks
from alignvl_cli.artifacts import fingerprint, read_json, write_json
from alignvl_cli.devices import choose_precision, computing_with
from alignvl_cli.errors import DataError, DivergedError
from alignvl_cli.retrieval import evaluate as saving
from alignvl_cli.retrieval.evaluate import calibrated_path, evaluate, save_evaluation
from alignvl_cli.retrieval.metrics import DIRECTIONS
from alignvl_cli.settings import Init, Method, Precision, TrainConfig
from alignvl_cli.store.reader import Store, open_store
from alignvl_cli.training.checkpoint import has_checkpoint
from alignvl_cli.training.prepare import TRAIN
from alignvl_cli.training.run import resume_run, train_run
from alignvl_cli.training.run_folder import CONFIG, NUMBERS, is_complete_run, load_run
from alignvl_cli.training.run_folder import RESULT as RUN_RESULT
from alignvl_cli.training.state import Record, Warned

JUDGED = ("confidence", "overconfidence", "ece", "nll", "brier", "auroc", "aurc")
"""Of the modesty report, by direction."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """Where one run of a study lies, and what it is evaluated on."""

    cell: str
    """Of the study's data; empty where it has one store, whole."""
    arm: str
    seed: int
    store: Path
    content_hash: str
    """Of the store."""
    split: str
    """Evaluated; never the one that selects the epoch."""
    folder: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Job(Slot):
    """A run to be made, and all that decides its outcome."""

    config: TrainConfig
    given: dict[str, Any]
    """What `config` was resolved of, by flag; kept with the run."""
    device: str
    threads: int

    @property
    def identity(self) -> str:
        """Equal for runs that are equal bit for bit; `identity_of` the run once it is begun."""
        is_solved = self.config.method is not Method.contrastive
        precision = Precision.fp32 if is_solved else choose_precision(self.config.precision, self.device)
        return _identity(
            json.loads(json.dumps(self.config.to_json())),
            self.content_hash,
            {"device": self.device, "precision": precision, "threads": self.threads},
            NUMBERS,
        )


def identity_of(run: Path) -> str:
    """Of a run that is begun or finished, by its own record: resolved settings with the seed, the store's content, what
    of the machine decides a number, and the version of the code's numbers. DataError when the record is damaged."""
    config = read_json(run / CONFIG, "run's configuration")
    stores = [store.get("content_hash") for store in config.get("stores", [])]
    return _identity(
        config.get("settings"), stores[0] if stores else None, config.get("machine", {}), config.get("numbers", 1)
    )


def _identity(settings: Any, store: str | None, machine: Mapping[str, Any], numbers: int) -> str:
    decides = {key: machine.get(key) for key in ("device", "precision", "threads")}
    return fingerprint({"settings": settings, "store": store, "machine": decides, "numbers": numbers})


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What a process says of a job that it finished; everything else is in the folder."""

    cell: str
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
                write_json(job.folder / FAILED, {"reason": str(problem)})
                return Made(cell=job.cell, arm=job.arm, seed=job.seed, mean_recall=None, failure=str(problem))
        run = load_run(job.folder, job.device)
        evaluation = evaluate(run, store, job.split, calibration=True, device=job.device)
        save_evaluation(run, evaluation)
    return Made(
        cell=job.cell,
        arm=job.arm,
        seed=job.seed,
        mean_recall=evaluation.metrics.mean_recall,
        failure=None,
        warnings=tuple(warnings),
    )


def _training(job: Job, store: Store) -> Iterator[Record]:
    """The training of an unfinished job, from its checkpoint or from the first step."""
    if has_checkpoint(job.folder) and identity_of(job.folder) == job.identity:
        return resume_run(job.folder, [job.store])
    return train_run([store], job.folder, job.config, overwrite=True, given=job.given)


def read_outcome(job: Slot) -> Outcome | None:
    """The outcome of a finished run; None when there is something left to do."""
    who: dict[str, Any] = {"cell": job.cell, "arm": job.arm, "seed": job.seed}
    if (job.folder / FAILED).is_file():
        reason = read_json(job.folder / FAILED, "failed run's record").get("reason")
        return Outcome(**who, metrics={}, ranks={}, failure=str(reason))
    if not is_complete_run(job.folder):
        return None
    config = read_json(job.folder / CONFIG, "run's configuration")
    result = read_json(job.folder / RUN_RESULT, "run's result")
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
        **who,
        metrics={
            job.split: _metrics(evaluation),
            evaluation["selection_split"]: _selected(result),
            TRAIN: _positives(result),
        },
        ranks=_ranks(path.with_suffix(".parquet")),
        kept_start=config["settings"]["init"] == Init.cca and result["best"].get("epoch") == 0,
    )


def read_evaluation(job: Slot) -> dict[str, Any]:
    """The evaluation of a finished run, whole."""
    return saving.read_evaluation(calibrated_path(job.folder, job.store, job.content_hash, job.split))


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


@lru_cache(maxsize=8)
def _store(path: Path) -> Store:
    """Opened and verified once in a process, however many runs it makes."""
    return open_store(path)
