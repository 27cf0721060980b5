"""Several runs at a time: a process each, with a fixed number of threads and, where there are any, a GPU of its own.

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
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING

from alignvl_cli.errors import AlignvlError, DataError

if TYPE_CHECKING:
    from alignvl_cli.ablation.jobs import Job, Made

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
