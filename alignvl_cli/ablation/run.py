"""A whole study: study file and store in, a folder of runs, records and verdicts out, events in between.

Several runs at a time: a process each, with a fixed number of threads and, where there are any, a GPU of its own.

A process lives as long as the study, so libraries and latents are loaded once in it. It ends with its parent, even
one that was killed: an orphan would go on writing into a folder that the next try takes over.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from alignvl_cli.ablation import jobs
from alignvl_cli.ablation.jobs import Job, Made
from alignvl_cli.ablation.plan import TEST, Setup, begin, default_processes
from alignvl_cli.ablation.records import RANKS, RESULTS, STUDY, VERDICTS, creation_counter, write_outcomes
from alignvl_cli.ablation.verdicts import StudyVerdicts, judge
from alignvl_cli.artifacts import file_sha256, held, write_json
from alignvl_cli.devices import visible_gpus
from alignvl_cli.errors import AlignvlError, DataError, DivergedError
from alignvl_cli.settings import Device

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
WATCH_SECONDS = 0.2


def make_all(jobs: Sequence["Job"], processes: int, gpus: Sequence[str]) -> Iterator["Made"]:
    """Make every job, at most `processes` at a time, and yield each as it is finished, in any order.

    With one process that is this one. `gpus` are what CUDA_VISIBLE_DEVICES gets, in turn; empty off CUDA. An error of
    a job ends all of them; abandoning the iterator too. DataError when a process is killed.
    """
    if processes <= 1:
        from alignvl_cli.ablation.jobs import make

        for job in jobs:
            began = time.perf_counter()
            yield replace(make(job), seconds=time.perf_counter() - began)
        return
    with _workers(processes, jobs[0].threads, gpus) as workers:
        left = list(reversed(jobs))
        busy: dict[Connection, Job] = {}
        for connection in list(workers)[: len(left)]:
            busy[connection] = left.pop()
            connection.send(busy[connection])
        while busy:
            for connection in [connection for connection in wait(list(busy)) if isinstance(connection, Connection)]:
                job = busy.pop(connection)
                yield _received(connection, workers[connection], job)
                if left:
                    busy[connection] = left.pop()
                    connection.send(busy[connection])


def _received(connection: Connection, process: SpawnProcess, job: "Job") -> "Made":
    try:
        answer = connection.recv()
    except (EOFError, ConnectionResetError) as problem:
        process.join(5)
        raise DataError(
            f"the process that made arm {job.arm}, seed {job.seed} is gone ({_ending(process.exitcode)}); the finished "
            "runs are kept: run the same command again, with a smaller --jobs if memory ran out"
        ) from problem
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


@contextmanager
def _workers(count: int, threads: int, gpus: Sequence[str]) -> Iterator[dict[Connection, SpawnProcess]]:
    context = multiprocessing.get_context("spawn")  # a fork would share torch's threads, and CUDA's state
    started: dict[Connection, SpawnProcess] = {}
    try:
        for number in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, os.getpid()), daemon=True)
            chosen = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
            with _environment(dict.fromkeys(THREAD_VARIABLES, str(threads)) | chosen):
                process.start()
            theirs.close()
            started[ours] = process
        yield started
    finally:
        for connection, process in started.items():
            connection.close()
            process.terminate()
        for process in started.values():
            process.join()


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables for the processes that are started meanwhile: libraries read them when they are loaded."""
    former = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(connection: Connection, parent: int) -> None:
    """A process's life: jobs in, what came of them out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    from alignvl_cli.ablation.jobs import make

    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        began = time.perf_counter()
        answer: Made | BaseException
        try:
            answer = replace(make(job), seconds=time.perf_counter() - began)
        except AlignvlError as problem:
            answer = problem
        except Exception as problem:
            answer = RuntimeError(f"{type(problem).__name__}: {problem} (arm {job.arm}, seed {job.seed})")
        connection.send(answer)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)


LOCK = ".lock"


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
    """Said once, when all is written."""

    verdicts: StudyVerdicts


Event = Begun | RunMade | Finished


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
        for made in make_all(missing, count, gpus):
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


def _counter(folder: Path) -> int:
    """Which study of its parent folder this is; one that was begun before stays what it was."""
    siblings = (creation_counter(path) for path in folder.absolute().parent.iterdir() if path.is_dir())
    return creation_counter(folder) or 1 + max(siblings, default=0)
