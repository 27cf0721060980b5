"""A whole study: study file and store in, a folder of runs, records and verdicts out, events in between."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignvl_cli.ablation import jobs
from alignvl_cli.ablation.jobs import Job, Made, Slot
from alignvl_cli.ablation.plan import default_processes
from alignvl_cli.ablation.processes import make_all
from alignvl_cli.ablation.records import (
    RANKS,
    RESULTS,
    STUDY,
    VERDICTS,
    Outcome,
    creation_counter,
    read_begun,
    run_folders,
    write_outcomes,
)
from alignvl_cli.ablation.setup import TEST, Setup, begin, runs_there
from alignvl_cli.ablation.study import Study, study_of
from alignvl_cli.ablation.verdicts import CellFacts, StudyVerdicts, judge
from alignvl_cli.artifacts import file_sha256, held, read_json, write_json
from alignvl_cli.devices import visible_gpus
from alignvl_cli.errors import DataError, DivergedError
from alignvl_cli.settings import Device
from alignvl_cli.training.run_folder import is_complete_run

LOCK = ".lock"
SAME_IN_CELLS = ("split", "selection_split", "protocol")
EVALUATED = (*SAME_IN_CELLS, "images", "captions", "repeated_captions")
"""Of an evaluation, what verdicts keep."""


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
    if all(outcome.failure is not None for outcome in outcomes):
        raise DivergedError(f"{folder}: every run of this study failed; the first: {outcomes[0].failure}")
    verdicts = _judged(setup.study, every, outcomes, [cell.record() for cell in setup.cells])
    sha256 = {name: file_sha256(folder / name) for name in (RESULTS, RANKS)}
    write_json(folder / VERDICTS, {**verdicts.to_json(), "sha256": sha256})
    return verdicts


def _judged(
    study: Study, slots: Sequence[Slot], outcomes: Sequence[Outcome], cells: Sequence[Mapping[str, Any]]
) -> StudyVerdicts:
    """`cells` are as in `study.json`; DataError when no run of `outcomes` was evaluated."""
    place = {(slot.cell, slot.arm, slot.seed): slot for slot in slots}
    finished = [place[found.cell, found.arm, found.seed] for found in outcomes if found.failure is None]
    first = {slot.cell: slot for slot in reversed(finished)}
    facts, warnings = {}, []
    for cell, slot in first.items():
        evaluation = jobs.read_evaluation(slot)
        facts[cell] = {key: evaluation[key] for key in EVALUATED} | {"store": slot.store.name}
        warnings += [f"{cell}: {text}" if cell else text for text in evaluation["warnings"]]
    if study.data is None:
        verdicts = judge(study, outcomes, TEST, facts[""])
    else:
        shared = {key: value for key, value in next(iter(facts.values())).items() if key in SAME_IN_CELLS}
        kept = [
            CellFacts(
                cell=cell["cell"],
                set=cell["set"],
                condition=cell["condition"],
                pairs=cell["pairs"],
                evaluation=facts.get(cell["cell"], {}),
            )
            for cell in cells
        ]
        verdicts = judge(study, outcomes, TEST, shared, kept)
    return replace(verdicts, warnings=(*verdicts.warnings, *dict.fromkeys(warnings)))


def partial_verdicts(folder: Path) -> StudyVerdicts:
    """Of a study that is not finished, on the runs that are: marked so. Nothing is written. DataError when no run is
    finished, or the folder holds no study."""
    record = read_begun(folder)
    study, places = study_of(record), run_folders(folder, record)
    cells = record.get("cells") or [{"cell": "", **record["store"]}]
    slots = [
        Slot(
            cell=cell["cell"],
            arm=arm.name,
            seed=seed,
            store=Path(cell["path"]),
            content_hash=cell["content_hash"],
            split=record["split"],
            folder=places[cell["cell"], arm.name, seed],
        )
        for seed in study.seeds
        for cell in cells
        for arm in study.arms
    ]
    outcomes = [outcome for slot in slots if (outcome := jobs.read_outcome(slot)) is not None]
    if all(outcome.failure is not None for outcome in outcomes):
        resume = f"resume it: `alignvl ablate` with its file and -o {folder}"
        raise DataError(f"{folder}: this study is not finished, and none of its {len(slots):,} runs is; {resume}")
    partial = {"runs": len(slots), "finished": len(outcomes)}
    told = f"partial: {len(outcomes):,} of {len(slots):,} runs are finished, and all figures are of these"
    verdicts = _judged(study, slots, outcomes, cells)
    return replace(verdicts, partial=partial, warnings=(told, *verdicts.warnings))


def _counter(folder: Path) -> int:
    """Which study of its parent folder this is; one that was begun before stays what it was."""
    siblings = (creation_counter(path) for path in folder.absolute().parent.iterdir() if path.is_dir())
    return creation_counter(folder) or 1 + max(siblings, default=0)
