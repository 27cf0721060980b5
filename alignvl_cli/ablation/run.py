"""A whole study: study file and store in, a folder of runs, records and verdicts out, events in between."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignvl_cli.ablation import jobs, pool
from alignvl_cli.ablation.jobs import Job, Made
from alignvl_cli.ablation.judging import judge
from alignvl_cli.ablation.records import (
    RANKS,
    RESULTS,
    STUDY,
    STUDY_SCHEMA,
    VERDICTS,
    creation_counter,
    run_folder,
    write_outcomes,
)
from alignvl_cli.ablation.study import Arm, Study
from alignvl_cli.ablation.verdicts import StudyVerdicts
from alignvl_cli.config import Device
from alignvl_cli.devices import choose_device, usable_cores
from alignvl_cli.errors import DataError, DivergedError, MismatchError, UsageError
from alignvl_cli.grammar import subset_of
from alignvl_cli.locks import held
from alignvl_cli.provenance import file_sha256, made_by, read_json, write_json
from alignvl_cli.store.reader import Store, open_store
from alignvl_cli.training.batches import steps_per_epoch
from alignvl_cli.training.prepare import VAL
from alignvl_cli.training.run import count_pairs

TEST = "test"
LOCK = ".lock"
FIXED = ("name", "reference", "base", "factors", "store", "split", "device", "threads")
"""What a study folder was begun with and keeps; arms too, one by one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """Said once, before the first run."""

    runs: int
    reused: int
    """Of them, those that were finished before."""
    processes: int
    threads: int
    device: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RunMade:
    """One run more is finished."""

    made: Made
    done: int
    runs: int
    processes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    verdicts: StudyVerdicts


Event = Begun | RunMade | Finished


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

    def job(self, folder: Path, arm: Arm, seed: int) -> Job:
        return Job(
            arm=arm.name,
            config=self.study.config(arm, seed, device=Device(self.device), pairs=self.pairs),
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
            "made_by": made_by("ablate", {}),
        }
        return dict(json.loads(json.dumps(record)))


def set_up(study: Study, store_path: Path, device: Device, threads: int) -> Setup:
    """Check a study against a store. UsageError for an arm that the store has too few pairs for, or a device that is
    not there; DataError for a store that is unreadable or lacks a split."""
    store: Store = open_store(store_path)
    for split in (VAL, TEST):
        store.rows(split)
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
    )


def run_study(setup: Setup, folder: Path, processes: int | None = None) -> Iterator[Event]:
    """Make every run of the study that `folder` lacks, then its records and verdicts.

    Seeds that the folder has stay in the study, whichever are asked for now: none is dropped once it is measured.
    Raises MismatchError when the folder was begun with other settings, on another store, device or number of threads;
    UsageError when it holds something else; DataError when another process is at it; DivergedError when every run
    diverged. Abandoning the iterator leaves a folder that goes on where it stopped.
    """
    setup = begin(setup, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise DataError(f"--output {folder}: cannot write there ({problem.strerror or problem})") from problem
    busy = f"{folder}: another process is running this study; wait for it, or name another folder with -o"
    with held(folder / LOCK, busy):
        write_json(folder / STUDY, {"counter": _counter(folder), **setup.record()})
        every = setup.jobs(folder)
        missing = [job for job in every if jobs.read_outcome(job) is None]
        if missing:
            (folder / VERDICTS).unlink(missing_ok=True)
        gpus = visible_gpus() if setup.device == Device.cuda else []
        count = min(processes or default_processes(setup), max(1, len(missing)))
        done = len(every) - len(missing)
        yield Begun(runs=len(every), reused=done, processes=count, threads=setup.threads, device=setup.device)
        for made in pool.make_all(missing, count, gpus):
            done += 1
            yield RunMade(made=made, done=done, runs=len(every), processes=count)
        yield Finished(verdicts=_conclude(setup, folder, every))


def _conclude(setup: Setup, folder: Path, every: Sequence[Job]) -> StudyVerdicts:
    """Write the records of finished runs."""
    outcomes = [outcome for job in every if (outcome := jobs.read_outcome(job)) is not None]
    assert len(outcomes) == len(every)
    write_outcomes(folder, outcomes)
    finished = [job for job, outcome in zip(every, outcomes, strict=True) if outcome.failure is None]
    if not finished:
        raise DivergedError(f"{folder}: every run of this study failed; the first: {outcomes[0].failure}")
    evaluation = jobs.read_evaluation(finished[0])
    facts = {key: evaluation[key] for key in ("split", "selection_split", "images", "captions", "repeated_captions")}
    facts |= {"protocol": evaluation["protocol"], "store": setup.store.name}
    verdicts = judge(setup.study, outcomes, TEST, facts)
    verdicts = replace(verdicts, warnings=(*verdicts.warnings, *evaluation["warnings"]))
    sha256 = {name: file_sha256(folder / name) for name in (RESULTS, RANKS)}
    write_json(folder / VERDICTS, {**verdicts.to_json(), "sha256": sha256})
    return verdicts


def begin(setup: Setup, folder: Path) -> Setup:
    """`setup` with the seeds that `folder` has already besides; the folder stays as it is. Raises as `run_study`."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {folder}: a study is a folder, and this is a file; name another place")
    if not (folder / STUDY).is_file():
        if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise UsageError(f"--output {folder}: the folder holds something that is no study; name another place")
        return setup
    before, now = read_json(folder / STUDY, "study"), setup.record()
    changed = _changed(before, now)
    if changed:
        raise MismatchError(
            f"{folder}: a study was begun there with other settings ({'; '.join(changed)}); "
            "go on with those, or name another folder with -o"
        )
    kept = [seed for seed in before["seeds"] if seed not in setup.study.seeds]
    return replace(setup, study=setup.study.with_seeds((*setup.study.seeds, *kept)))


def _counter(folder: Path) -> int:
    """Which study of its parent folder this is; one that was begun before stays what it was."""
    siblings = (creation_counter(path) for path in folder.absolute().parent.iterdir() if path.is_dir())
    return creation_counter(folder) or 1 + max(siblings, default=0)


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
            settings = jobs.differences(arms_before[name]["settings"], arms_now[name]["settings"])
            changed += [f"arm '{name}': {difference}" for difference in settings]
    return changed


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else text[:12] + "..."


def visible_gpus() -> list[str]:
    import torch

    named = [part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part]
    return named or [str(number) for number in range(torch.cuda.device_count())]


def default_processes(setup: Setup) -> int:
    """A run at a time on each GPU, or on each share of the processor's cores."""
    if setup.device == Device.cuda:
        return len(visible_gpus())
    if setup.device == Device.mps:
        return 1
    return max(1, usable_cores() // setup.threads)
