"""Several runs of a study at a time: a process each, with a fixed number of threads and, off the CPU, a GPU of its own.

A process lives as long as the study, so that libraries and latents are loaded once in it. Importing this loads no
torch: the environment of a process must say how many threads it has before the libraries that read it are loaded.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import active_children, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

from alignvl_cli.errors import AlignvlError, DataError

if TYPE_CHECKING:
    from alignvl_cli.ablation.jobs import Job, Made

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
EXIT_CODE_S = 10
"""How long to ask for the exit code of a process that is gone."""


def make_all(jobs: Sequence["Job"], processes: int, gpus: Sequence[str]) -> Iterator["Made"]:
    """Make every job, at most `processes` at a time, and yield each as it is finished, in any order.

    With one process that is this one. `gpus` are what CUDA_VISIBLE_DEVICES gets, in turn; empty off CUDA. An error of
    a job ends all of them; abandoning the iterator too. DataError when a process is killed.
    """
    if processes <= 1:
        yield from map(_timed, jobs)
        return
    with _started(processes, jobs[0].threads, gpus) as pools:
        left = list(reversed(jobs))
        running: dict[Future[Made], tuple[Job, ProcessPoolExecutor]] = {}
        free = list(pools)
        while left or running:
            while left and free:
                job, pool = left.pop(), free.pop()
                running[pool.submit(_timed, job)] = job, pool
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job, pool = running.pop(future)
                yield _result(future, job, pools[pool])
                free.append(pool)


def _timed(job: "Job") -> "Made":
    from alignvl_cli.ablation.jobs import make

    began = time.perf_counter()
    return replace(make(job), seconds=time.perf_counter() - began)


def _result(future: "Future[Made]", job: "Job", process: BaseProcess) -> "Made":
    try:
        return future.result()
    except BrokenProcessPool as problem:
        deadline = time.monotonic() + EXIT_CODE_S
        while (code := process.exitcode) is None and time.monotonic() < deadline:
            time.sleep(0.01)  # the pool's own thread waits for the process, too, and one of the two is told its code
        ending = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        raise DataError(
            f"the process that made arm {job.arm}, seed {job.seed} is gone ({ending}); the finished runs are kept: "
            "run the same command again, with a smaller --jobs if memory ran out"
        ) from problem
    except AlignvlError:
        raise
    except Exception as problem:
        raise RuntimeError(f"{type(problem).__name__}: {problem} (arm {job.arm}, seed {job.seed})") from problem


@contextmanager
def _started(count: int, threads: int, gpus: Sequence[str]) -> Iterator[dict[ProcessPoolExecutor, BaseProcess]]:
    """Pools of one process each, so that it is known which run a dead one was making, and their processes.

    All end at once with the block, whatever they are doing, and with this process however it ends: they watch a pipe
    whose other end is here alone.
    """
    context = get_context("spawn")  # a fork would share torch's threads, and CUDA's state
    watched, ours = context.Pipe(duplex=False)
    pools: dict[ProcessPoolExecutor, BaseProcess] = {}
    try:
        for number in range(count):
            environment = dict.fromkeys(THREAD_VARIABLES, str(threads))
            if gpus:
                environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
            pool = ProcessPoolExecutor(1, mp_context=context, initializer=_begin, initargs=(environment, watched))
            before = set(active_children())
            pool.submit(os.getpid)  # starts the process
            (pools[pool],) = set(active_children()) - before
        yield pools
    finally:
        ours.close()
        for pool in pools:
            pool.shutdown(cancel_futures=True)
        watched.close()


def _begin(environment: Mapping[str, str], watched: Connection) -> None:
    """A process's first act."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.update(environment)
    threading.Thread(target=_end_with, args=(watched,), daemon=True).start()


def _end_with(watched: Connection) -> None:
    """Leave when the parent closes its end of the pipe, or is gone: an orphan would go on writing into a folder that
    the next try takes over."""
    watched.poll(None)
    os._exit(1)
