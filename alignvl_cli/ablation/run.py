"""A whole study: study file and store in, a folder of runs, records and verdicts out, events in between."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignvl_cli.ablation import jobs
from alignvl_cli.ablation.jobs import Job, Made
from alignvl_cli.ablation.plan import default_processes
from alignvl_cli.ablation.processes import make_all
from alignvl_cli.ablation.records import RANKS, RESULTS, STUDY, VERDICTS, creation_counter, write_outcomes
from alignvl_cli.ablation.setup import TEST, Setup, begin, runs_there
from alignvl_cli.ablation.verdicts import StudyVerdicts, judge
from alignvl_cli.artifacts import file_sha256, held, read_json, write_json
from alignvl_cli.devices import visible_gpus
from alignvl_cli.errors import DataError, DivergedError
from alignvl_cli.settings import Device
from alignvl_cli.training.run_folder import is_complete_run

LOCK = ".lock"


@dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """Said once, before the first run."""

    runs: int
    reused: int
    """Of them, those that were finished before."""
    hidden: int
    """Finished runs of the folder that the study does not ask for now; they stay, and are in no table."""
    changed: tuple[str, ...]
    """Of what runs are made of, since the folder was begun."""
    left_out: tuple[str, ...]
    """Cells that the study asks for and no store has."""
    left: dict[str, int]
    """Arm -> its runs that are to be made."""
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
    """Said once, when all is written."""

    verdicts: StudyVerdicts


Event = Begun | RunMade | Finished


def run_study(setup: Setup, folder: Path, processes: int | None = None) -> Iterator[Event]:
    """Make every run of the study that `folder` lacks, then its records and verdicts.

    A run that the folder has of the same content is reused, wherever it lies there; one that the study no longer asks
    for stays, and is in no table. So a study comes out the same, whether it was extended or run at once. Raises
    UsageError when the folder holds something else; DataError when another process is at it; DivergedError when every
    run diverged. Abandoning the iterator leaves a folder that the same call resumes.
    """
    changed = begin(setup, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise DataError(f"--output {folder}: cannot write there ({problem.strerror or problem})") from problem
    busy = f"{folder}: another process is running this study; wait for it, or name another folder with -o"
    with held(folder / LOCK, busy):
        every = setup.jobs(folder)
        missing = [job for job in every if jobs.read_outcome(job) is None]
        record = {"counter": _counter(folder), **setup.record(), "runs": [_place(job, folder) for job in every]}
        if missing or not (folder / STUDY).is_file() or read_json(folder / STUDY, "study") != record:
            (folder / VERDICTS).unlink(missing_ok=True)  # they are of the study that was
        write_json(folder / STUDY, record)
        asked = {job.folder for job in every}
        gpus = visible_gpus() if setup.device == Device.cuda else []
        count = min(processes or default_processes(setup), max(1, len(missing)))
        done = len(every) - len(missing)
        yield Begun(
            runs=len(every),
            reused=done,
            hidden=sum(place not in asked and is_complete_run(place) for place in runs_there(folder).values()),
            changed=changed,
            left_out=setup.left_out,
            left=dict(Counter(job.arm for job in missing)),
            processes=count,
            threads=setup.threads,
            device=setup.device,
        )
        for made in make_all(missing, count, gpus):
            done += 1
            yield RunMade(made=made, done=done, runs=len(every), processes=count)
        yield Finished(verdicts=_conclude(setup, folder, every))


def _place(job: Job, folder: Path) -> dict[str, Any]:
    place = job.folder.relative_to(folder).as_posix()
    return {"cell": job.cell, "arm": job.arm, "seed": job.seed, "folder": place}


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
    facts |= {"protocol": evaluation["protocol"], "store": setup.cells[0].store.name}
    verdicts = judge(setup.study, outcomes, TEST, facts)
    verdicts = replace(verdicts, warnings=(*verdicts.warnings, *evaluation["warnings"]))
    sha256 = {name: file_sha256(folder / name) for name in (RESULTS, RANKS)}
    write_json(folder / VERDICTS, {**verdicts.to_json(), "sha256": sha256})
    return verdicts


def _counter(folder: Path) -> int:
    """Which study of its parent folder this is; one that was begun before stays what it was."""
    siblings = (creation_counter(path) for path in folder.absolute().parent.iterdir() if path.is_dir())
    return creation_counter(folder) or 1 + max(siblings, default=0)
