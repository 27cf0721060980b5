"""Several processes: the rank of this one, as torchrun states it in the environment, and a pool of worker processes."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from alignvl_cli.devices import usable_cores
from alignvl_cli.errors import DataError, UsageError


@dataclass(frozen=True, slots=True)
class Ranks:
    """One process among equals that share the shards of one extraction over a common folder."""

    rank: int = 0
    count: int = 1
    local_rank: int | None = 0
    """Among the processes of this machine: the number of its GPU. None where the environment does not say."""
    local_count: int = 1

    @property
    def is_shared(self) -> bool:
        return self.count > 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one that speaks: prints the result and shows progress."""
        return self.rank == 0


ALONE = Ranks()


def ranks_here(environment: Mapping[str, str] = os.environ) -> Ranks:
    """From RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE; alone where they are not set. UsageError for nonsense,
    and for one of RANK and WORLD_SIZE without the other: every process would take itself for the first."""
    count = _number(environment, "WORLD_SIZE", 1)
    if ("RANK" in environment) != ("WORLD_SIZE" in environment) and (count > 1 or "RANK" in environment):
        there, lacking = ("RANK", "WORLD_SIZE") if "RANK" in environment else ("WORLD_SIZE", "RANK")
        raise UsageError(
            f"{there}={environment[there]} is set in the environment and {lacking} is not; "
            "start the processes with torchrun, or unset it"
        )
    rank = _number(environment, "RANK", 0)
    local_count = _number(environment, "LOCAL_WORLD_SIZE", count)
    is_said = "LOCAL_RANK" in environment or count == 1
    local_rank = _number(environment, "LOCAL_RANK", 0) if is_said else None
    if rank >= count or (local_rank or 0) >= local_count or local_count > count:
        raise UsageError(
            f"RANK {rank} of WORLD_SIZE {count}, LOCAL_RANK {local_rank} of LOCAL_WORLD_SIZE {local_count}: a rank "
            "must be below its size, and LOCAL_WORLD_SIZE at most WORLD_SIZE; start the processes with torchrun, or "
            "unset these variables"
        )
    return Ranks(rank, count, local_rank, local_count)


def use_own_gpu(ranks: Ranks) -> None:
    """Have `cuda` mean this process's own GPU; UsageError when the machine has fewer GPUs than processes."""
    import torch

    gpus = torch.cuda.device_count()
    if ranks.local_rank is None:
        raise UsageError(
            "LOCAL_RANK is not set, so a process does not know which GPU is its own; start with torchrun, or set it"
        )
    if ranks.local_rank >= gpus:
        raise UsageError(
            f"process {ranks.local_rank} of this machine has no GPU: it has {gpus}; start as many processes as GPUs"
        )
    torch.cuda.set_device(ranks.local_rank)


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    if not text.isdecimal():
        raise UsageError(f"{name}={text!r} in the environment is not a number; start the processes with torchrun")
    return int(text)


Tag = TypeVar("Tag")

MOST_WORKERS = 8
FEW_IMAGES = 1_000
"""Below, starting processes (0.7 s each) costs more than they save."""
FEW_CORES = 2
"""Up to here the encoder's threads and a decoding process only get in each other's way."""


class Workers(Protocol):
    """Runs picklable functions; results come in the order of the tasks, whoever did them."""

    count: int

    def map(
        self, function: Callable[..., Any], tasks: Iterable[tuple[Tag, Sequence[Any]]], ahead: int
    ) -> Iterator[tuple[Tag, Any]]:
        """`(tag, function(*arguments))` for each `(tag, arguments)`; at most `ahead` tasks wait or run beyond the
        one handed out, so memory is bounded however slow the consumer is."""
        ...


class InProcess:
    count = 0

    def map(
        self, function: Callable[..., Any], tasks: Iterable[tuple[Tag, Sequence[Any]]], ahead: int
    ) -> Iterator[tuple[Tag, Any]]:
        for tag, arguments in tasks:
            yield tag, function(*arguments)


class InPool:
    def __init__(self, pool: Executor, count: int) -> None:
        self.count = count
        self._pool = pool

    def map(
        self, function: Callable[..., Any], tasks: Iterable[tuple[Tag, Sequence[Any]]], ahead: int
    ) -> Iterator[tuple[Tag, Any]]:
        waiting: deque[tuple[Tag, Future[Any]]] = deque()
        try:
            for tag, arguments in tasks:
                with _undisturbed():
                    waiting.append((tag, self._pool.submit(function, *arguments)))
                if len(waiting) > ahead:
                    tag, future = waiting.popleft()
                    yield tag, future.result()
            for tag, future in waiting:
                yield tag, future.result()
        except BrokenProcessPool as problem:
            raise DataError(
                "a process that decodes images died, of too little memory or of a picture that crashes the decoder; "
                "what is finished is kept: run the same command again with fewer --workers (0: no such processes)"
            ) from problem


@contextmanager
def started_workers(count: int, *, ahead: bool = False) -> Iterator[Workers]:
    """`count` processes, or none; they end with the block, and with this process however it ends. With `ahead` a thread
    stands in for none, so that what waits for a network does not hold up the caller."""
    if count == 0 and not ahead:
        yield InProcess()
        return
    # Spawned, not forked: torch and HDF5 hold threads and locks that do not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin) if count else ThreadPoolExecutor(1)
    try:
        yield InPool(pool, max(count, 1))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def choose_workers(asked: int | None, images: int, sharing: int = 1) -> int:
    """As asked; else one for each core but one, at most 8, and none for few images or on few cores. The machine's cores
    are divided among the `sharing` processes that extract on it."""
    if asked is not None:
        return asked
    cores = usable_cores() // sharing
    return 0 if images < FEW_IMAGES or cores <= FEW_CORES else min(cores - 1, MOST_WORKERS)


def _begin() -> None:
    """A worker's first act. Ctrl-C is the main process's to handle; a worker whose main process was killed leaves,
    where it would else wait for tasks for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold Ctrl-C back while a process may be started: it inherits the mask, and dies silently instead of printing
    a traceback from the middle of its imports."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
