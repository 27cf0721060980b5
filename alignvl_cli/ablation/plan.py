"""What a study would take, before it is run: runs, time, disk, and whether its seeds can settle anything."""

import shutil
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from alignvl_cli.ablation.jobs import Job, read_outcome
from alignvl_cli.ablation.setup import TEST, Setup, begin, default_processes
from alignvl_cli.ablation.statistics import seeds_for_any_verdict
from alignvl_cli.devices import computing_with
from alignvl_cli.provenance import read_json
from alignvl_cli.runs.folder import RESULT
from alignvl_cli.store.reader import open_store
from alignvl_cli.training.batches import epoch_slices
from alignvl_cli.training.closed_form import solve
from alignvl_cli.training.loop import take_step
from alignvl_cli.training.prepare import prepare
from alignvl_cli.training.validation import VALIDATIONS, validate

TIMED_STEPS = 3
PARAMETER_BYTES = 4
QUERY_BYTES = 40
"""Of a run's ranks, and again in the study's, roughly."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyPlan:
    """Times are of one run and of what is left, in seconds; a guess from what was measured."""

    name: str
    question: str
    folder: str
    arms: int
    seeds: int
    runs: int
    finished: int
    processes: int
    threads: int
    device: str
    seconds_by_arm: dict[str, float]
    seconds: float
    """Wall time of the runs that are left, `processes` at a time."""
    measured: str
    """What the times come from."""
    disk_bytes: int
    free_bytes: int
    seeds_needed: int
    """The fewest seeds with which a difference could be found at all."""

    @property
    def can_settle(self) -> bool:
        return self.seeds >= self.seeds_needed

    def to_json(self) -> dict[str, Any]:
        return {"schema": "alignvl.plan/1", **asdict(self), "can_settle": self.can_settle}


def plan_study(setup: Setup, folder: Path, processes: int | None = None) -> StudyPlan:
    """Look at what is finished, and time a few steps of each arm of which nothing is. Writes nothing; raises as
    `run_study` does."""
    setup = begin(setup, folder)
    jobs = setup.jobs(folder)
    missing = [job for job in jobs if read_outcome(job) is None]
    by_arm: dict[str, float] = {}
    sources = set()
    bytes_by_arm = {}
    for arm in setup.study.arms:
        mine = [job for job in jobs if job.arm == arm.name]
        finished = [_seconds(job) for job in mine if job not in missing and (job.folder / RESULT).is_file()]
        seconds, parameters = _timed(setup, mine[0])
        by_arm[arm.name] = statistics.median(finished) if finished else seconds
        bytes_by_arm[arm.name] = parameters * PARAMETER_BYTES
        sources.add("finished runs" if finished else "a few steps of each arm")
    count = min(processes or default_processes(setup), max(1, len(missing)))
    queries = sum(len(rows) for rows in _test_rows(setup))
    home = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    return StudyPlan(
        name=setup.study.name,
        question=setup.study.question,
        folder=str(folder),
        arms=len(setup.study.arms),
        seeds=len(setup.study.seeds),
        runs=len(jobs),
        finished=len(jobs) - len(missing),
        processes=count,
        threads=setup.threads,
        device=setup.device,
        seconds_by_arm=by_arm,
        seconds=_wall(by_arm, missing, count),
        measured=" and ".join(sorted(sources)),
        disk_bytes=sum(bytes_by_arm[job.arm] + queries * QUERY_BYTES for job in missing),
        free_bytes=shutil.disk_usage(home).free,
        seeds_needed=seeds_for_any_verdict(len(setup.study.arms) - 1),
    )


def _wall(by_arm: Mapping[str, float], missing: list[Job], processes: int) -> float:
    """When the last of `processes` is through, each taking the next run when it is free."""
    busy = [0.0] * processes
    for job in missing:
        busy[busy.index(min(busy))] += by_arm[job.arm]
    return max(busy)


def _seconds(job: Job) -> float:
    return float(read_json(job.folder / RESULT, "run's result")["wall_s"])


def _timed(setup: Setup, job: Job) -> tuple[float, int]:
    """Seconds that a run would take, from a few of its steps and one validation; and its parameters."""
    with computing_with(job.threads):
        store = open_store(job.store)
        began = time.perf_counter()
        plan, state, started = prepare([store], store, job.config, job.device)
        prepared = time.perf_counter() - began
        order_P = plan.gather.data.epoch_order(torch.Generator().manual_seed(0))
        if not started.total_steps:  # a closed form: solved, so that nothing is guessed
            list(solve(plan, state))
            return time.perf_counter() - began, started.parameters
        slices = epoch_slices(order_P, job.config.batch_size)
        chosen = [next(slices) for _ in range(min(TIMED_STEPS, started.steps_per_epoch))]
        take_step(plan, state, chosen[0])  # the first one allocates
        began = time.perf_counter()
        for step in chosen:
            take_step(plan, state, step)
            state.adapters.temperature.item()  # waits for the device
        step_s = (time.perf_counter() - began) / len(chosen)
        began = time.perf_counter()
        validate(state.adapters, plan.val)
        validate_s = time.perf_counter() - began
    validations = min(started.epochs, VALIDATIONS)
    return prepared + step_s * started.total_steps + validate_s * (validations + 2), started.parameters


def _test_rows(setup: Setup) -> tuple[Any, Any]:
    rows = open_store(setup.store).rows(TEST)
    return rows.image, rows.text
