"""What a study would take, before anything is run: runs, time, disk, and whether its seeds can settle anything."""

import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from alignvl_cli.ablation.jobs import Job, read_outcome
from alignvl_cli.ablation.setup import TEST, Cell, Setup, begin
from alignvl_cli.ablation.statistics import seeds_for_any_verdict
from alignvl_cli.artifacts import read_json
from alignvl_cli.devices import computing_with, usable_cores, visible_gpus
from alignvl_cli.settings import Device
from alignvl_cli.store.reader import open_store
from alignvl_cli.training.closed_form import solve
from alignvl_cli.training.ingredients import epoch_slices
from alignvl_cli.training.loop import take_step
from alignvl_cli.training.prepare import prepare
from alignvl_cli.training.run_folder import RESULT
from alignvl_cli.training.validation import VALIDATIONS, validate


def default_processes(setup: Setup) -> int:
    """A run at a time on each GPU, or on each share of the processor's cores."""
    if setup.device == Device.cuda:
        return len(visible_gpus())
    if setup.device == Device.mps:
        return 1
    return max(1, usable_cores() // setup.threads)


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
    cells: int
    """Stores and subsets of the data; 1 where a study has one store, whole."""
    runs: int
    finished: int
    processes: int
    threads: int
    device: str
    seconds_by_arm: dict[str, float]
    """Mean over cells."""
    seconds: float
    """Wall time of the runs that are left, `processes` at a time."""
    measured: str
    """What the times come from."""
    disk_bytes: int
    free_bytes: int
    seeds_needed: int
    """The fewest seeds with which a difference could be found at all."""
    notes: tuple[str, ...]
    """What was changed since the folder was begun, and what is left out."""

    @property
    def can_settle(self) -> bool:
        return self.seeds >= self.seeds_needed

    def to_json(self) -> dict[str, Any]:
        return {"schema": "alignvl.plan/1", **asdict(self), "can_settle": self.can_settle}


def plan_study(setup: Setup, folder: Path, processes: int | None = None) -> StudyPlan:
    """Look at what is finished, and time a few steps of each arm of which nothing is. Writes nothing; raises as
    `run_study` does."""
    changed = begin(setup, folder)
    jobs = setup.jobs(folder)
    missing = [job for job in jobs if read_outcome(job) is None]
    seconds, parameters, sources = _expected(setup, jobs, missing)
    count = min(processes or default_processes(setup), max(1, len(missing)))
    queries = {cell.name: sum(len(rows) for rows in _test_rows(cell)) for cell in setup.cells}
    home = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    return StudyPlan(
        name=setup.study.name,
        question=setup.study.question,
        folder=str(folder),
        arms=len(setup.study.arms),
        seeds=len(setup.study.seeds),
        cells=len(setup.cells),
        runs=len(jobs),
        finished=len(jobs) - len(missing),
        processes=count,
        threads=setup.threads,
        device=setup.device,
        seconds_by_arm={
            arm.name: statistics.fmean(seconds[cell.name, arm.name] for cell in setup.cells) for arm in setup.study.arms
        },
        seconds=_wall(seconds, missing, count),
        measured=" and ".join(sources),
        disk_bytes=sum(
            int(parameters[job.cell, job.arm]) * PARAMETER_BYTES + queries[job.cell] * QUERY_BYTES for job in missing
        ),
        free_bytes=shutil.disk_usage(home).free,
        seeds_needed=seeds_for_any_verdict(setup.contrasts),
        notes=(*changed, *setup.left_out),
    )


ByCellAndArm = dict[tuple[str, str], float]


def _expected(
    setup: Setup, jobs: Sequence[Job], missing: Sequence[Job]
) -> tuple[ByCellAndArm, ByCellAndArm, list[str]]:
    """Seconds and parameters of a run of each cell and arm, and where the seconds come from. Timed are all arms in the
    first cell and the first arm in every cell; other cells take their arms as much longer as they take the first."""
    first_of = {(job.cell, job.arm): job for job in reversed(jobs)}
    arms, cells = [arm.name for arm in setup.study.arms], [cell.name for cell in setup.cells]
    timed = {
        (cell, arm): _timed(first_of[cell, arm]) for cell in cells for arm in arms if arm == arms[0] or cell == cells[0]
    }
    left = {(job.cell, job.arm, job.seed) for job in missing}
    seconds, parameters, sources = {}, {}, set()
    for cell, arm in first_of:
        finished = [
            float(read_json(job.folder / RESULT, "run's result")["wall_s"])
            for job in jobs
            if (job.cell, job.arm) == (cell, arm)
            and (cell, arm, job.seed) not in left
            and (job.folder / RESULT).is_file()
        ]
        longer = timed[cell, arms[0]][0] / timed[cells[0], arms[0]][0]
        guess = timed[cells[0], arm][0] * longer
        seconds[cell, arm] = statistics.median(finished) if finished else guess
        parameters[cell, arm] = float(timed[cells[0], arm][1])
        sources.add("finished runs" if finished else "a few steps of each arm")
    return seconds, parameters, sorted(sources)


def _wall(seconds: Mapping[tuple[str, str], float], missing: Sequence[Job], processes: int) -> float:
    """When the last of `processes` is through, each taking the next run when it is free."""
    busy = [0.0] * processes
    for job in missing:
        busy[busy.index(min(busy))] += seconds[job.cell, job.arm]
    return max(busy)


def _timed(job: Job) -> tuple[float, int]:
    """Seconds that a run would take, from a few of its steps and one validation; and its parameters."""
    with computing_with(job.threads):
        store = open_store(job.store)
        began = time.perf_counter()
        plan, state, started = prepare(
            [store], store, job.config, job.device, unpaired=[store] if job.config.unpaired_weight else ()
        )
        prepared = time.perf_counter() - began
        order_P = plan.gather.data.epoch_order(torch.Generator().manual_seed(0))
        if not started.total_steps:  # a closed form: solved, so that nothing is guessed
            list(solve(plan, state))
            return time.perf_counter() - began, started.parameters
        slices = epoch_slices(order_P, job.config.batch_size)
        timed = [next(slices) for _ in range(min(TIMED_STEPS, started.steps_per_epoch))]
        take_step(plan, state, timed[0])  # the first one allocates
        began = time.perf_counter()
        for step in timed:
            take_step(plan, state, step)
            state.adapters.temperature.item()  # waits for the device
        step_s = (time.perf_counter() - began) / len(timed)
        began = time.perf_counter()
        validate(state.adapters, plan.val)
        validate_s = time.perf_counter() - began
    validations = min(started.epochs, VALIDATIONS)
    return prepared + step_s * started.total_steps + validate_s * (validations + 2), started.parameters


def _test_rows(cell: Cell) -> tuple[Any, Any]:
    rows = open_store(cell.store).rows(TEST)
    return rows.image, rows.text
