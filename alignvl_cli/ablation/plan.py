"""A study on a store: what each run gets, whether a folder was begun with the same study, and, before anything is run,
what it would take: runs, time, disk, and whether its seeds can settle anything.
"""

import json
import shutil
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from alignvl_cli.ablation.jobs import Job, differences, read_outcome
from alignvl_cli.ablation.records import STUDY, STUDY_FAMILY, STUDY_SCHEMA, run_folder
from alignvl_cli.ablation.statistics import seeds_for_any_verdict
from alignvl_cli.ablation.study import Arm, Settings, Study
from alignvl_cli.artifacts import made_by, read_json
from alignvl_cli.devices import choose_device, computing_with, usable_cores, visible_gpus
from alignvl_cli.errors import MismatchError, UsageError
from alignvl_cli.settings import Device, subset_of
from alignvl_cli.store.reader import open_store
from alignvl_cli.training.closed_form import solve
from alignvl_cli.training.data import require_split
from alignvl_cli.training.ingredients import epoch_slices, steps_per_epoch
from alignvl_cli.training.loop import take_step
from alignvl_cli.training.prepare import VAL, prepare
from alignvl_cli.training.run import count_pairs
from alignvl_cli.training.run_folder import RESULT
from alignvl_cli.training.validation import VALIDATIONS, validate

TEST = "test"
FIXED = ("name", "reference", "base", "factors", "store", "split", "device", "threads")
"""What a study folder was begun with and keeps; arms too, one by one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """A study on a store, with what of the machine a run gets."""

    study: Study
    store: Path
    content_hash: str
    encoder_hash: str
    pairs: int
    device: str
    threads: int
    given: Settings = field(default_factory=dict)
    """The flags of `ablate` that are no default."""

    def job(self, folder: Path, arm: Arm, seed: int) -> Job:
        return Job(
            arm=arm.name,
            config=self.study.config(arm, seed, device=Device(self.device), pairs=self.pairs),
            given=self.study.given(arm, seed, Device(self.device)),
            store=self.store,
            content_hash=self.content_hash,
            split=TEST,
            device=self.device,
            threads=self.threads,
            folder=run_folder(folder, arm.name, seed),
        )

    def jobs(self, folder: Path) -> list[Job]:
        """Seed by seed, so that a study that was stopped has whole seeds."""
        return [self.job(folder, arm, seed) for seed in self.study.seeds for arm in self.study.arms]

    def record(self) -> dict[str, Any]:
        """`study.json`, see `ablation.records`."""
        arms = {}
        for arm in self.study.arms:
            settings = self.study.config(arm, device=Device(self.device), pairs=self.pairs).to_json()
            del settings["seed"]
            arms[arm.name] = {"layers": list(arm.layers), "levels": list(arm.levels), "settings": settings}
        study = self.study
        record = {
            "schema": STUDY_SCHEMA,
            "name": study.name,
            "question": study.question,
            "reference": study.reference,
            "seeds": list(study.seeds),
            "margin": study.margin,
            "base": study.base,
            "factors": {factor: list(levels) for factor, levels in study.factors.items()},
            "arms": arms,
            "store": {
                "path": str(self.store.resolve()),
                "content_hash": self.content_hash,
                "encoder_hash": self.encoder_hash,
            },
            "split": TEST,
            "selection_split": VAL,
            "device": self.device,
            "threads": self.threads,
            "given": self.given,
            "made_by": made_by("ablate", {}),
        }
        return dict(json.loads(json.dumps(record)))


def set_up(study: Study, store_path: Path, device: Device, threads: int, given: Settings | None = None) -> Setup:
    """Check a study against a store. UsageError for an arm that the store has too few pairs for, or a device that is
    not there; DataError for a store that is unreadable or lacks a split."""
    store = open_store(store_path)
    for split in (VAL, TEST):
        require_split(store, split, f"a study selects on {VAL} and compares on {TEST}: name a store with both (--data)")
    pairs = count_pairs([store_path])
    place = choose_device(device)
    for arm in study.arms:
        config = study.config(arm, pairs=pairs)
        kept = subset_of(config.subset)
        try:
            steps_per_epoch(pairs if kept is None else min(pairs, kept[1]), config.batch_size)
        except UsageError as problem:
            raise UsageError(f"arm '{arm.name}': {problem}") from problem
    return Setup(
        study=study,
        store=store_path,
        content_hash=store.content_hash,
        encoder_hash=store.encoder_hash,
        pairs=pairs,
        device=place,
        threads=threads,
        given=given or {},
    )


def begin(setup: Setup, folder: Path) -> Setup:
    """`setup` with the seeds that `folder` has already besides; the folder stays as it is. Raises as `run_study`."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {folder}: a study is a folder, and this is a file; name another place")
    before = read_json(folder / STUDY, "study") if (folder / STUDY).is_file() else {}
    if not str(before.get("schema")).startswith(STUDY_FAMILY):
        if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise UsageError(f"--output {folder}: the folder holds something that is no study; name another place")
        return setup
    now = setup.record()
    changed = _changed(before, now)
    if changed:
        raise MismatchError(
            f"{folder}: a study was begun there with other settings ({'; '.join(changed)}); "
            "ask for those, or name another folder with -o"
        )
    kept = [seed for seed in before["seeds"] if seed not in setup.study.seeds]
    return replace(setup, study=setup.study.changed((*setup.study.seeds, *kept)))


def default_processes(setup: Setup) -> int:
    """A run at a time on each GPU, or on each share of the processor's cores."""
    if setup.device == Device.cuda:
        return len(visible_gpus())
    if setup.device == Device.mps:
        return 1
    return max(1, usable_cores() // setup.threads)


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    changed = []
    for key in FIXED:
        one, other = before.get(key), now[key]
        if key == "store":
            one, other = dict(one or {}).get("content_hash"), other["content_hash"]
        if one != other:
            changed.append(f"{key} was {_short(one)} and is {_short(other)}")
    arms_before, arms_now = before.get("arms", {}), now["arms"]
    for name in [*arms_before, *(name for name in arms_now if name not in arms_before)]:
        if name not in arms_now or name not in arms_before:
            changed.append(f"arm '{name}' {'is gone' if name in arms_before else 'is new'}")
        else:
            settings = differences(arms_before[name]["settings"], arms_now[name]["settings"])
            changed += [f"arm '{name}': {difference}" for difference in settings]
    return changed


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else text[:12] + "..."


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


def _test_rows(setup: Setup) -> tuple[Any, Any]:
    rows = open_store(setup.store).rows(TEST)
    return rows.image, rows.text
