"""Batches through an encoder in a pool of threads, beside the thread that decodes; the checks on what comes out; and a
timer of the phases.

On a CPU two batches at a time, each with half of the threads, are faster than one with all of them: no thread waits for
the others after every layer, and decoding fills the gaps. On a GPU one thread keeps it at work meanwhile.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import wraps
from typing import TypeVar

import numpy as np
import torch

from alignvl_cli.devices import computing_with, is_out_of_memory
from alignvl_cli.errors import DataError
from alignvl_cli.settings import StoreDtype
from alignvl_cli.store.writer import FLOAT16_MAX

Batch = TypeVar("Batch", bound=Sized)


def within_memory(encode: Callable[[Batch], np.ndarray], what: str) -> Callable[[Batch], np.ndarray]:
    """`encode`, which raises DataError for a batch that does not fit in memory; `what` names its items."""

    @wraps(encode)
    def encoded(batch: Batch) -> np.ndarray:
        try:
            return encode(batch)
        except (RuntimeError, MemoryError) as problem:
            if not is_out_of_memory(problem):
                raise
            raise DataError(
                f"{len(batch)} {what} at once do not fit in memory; give a smaller --batch-size, with --restart: "
                "another size begins again"
            ) from problem

    return encoded


def require_storable(latent_BD: np.ndarray, dtype: str, kind: str, names: Sequence[str]) -> None:
    """DataError unless every latent is finite and within `dtype`; it names the `kind` of item and the item."""
    most = FLOAT16_MAX if dtype == StoreDtype.float16 else np.finfo(np.float32).max
    is_within_B = (np.abs(latent_BD) <= most).all(axis=1)
    if is_within_B.all():
        return
    row = int(np.argmin(is_within_B))
    if np.isfinite(latent_BD[row]).all():
        raise DataError(
            f"the encoder returned a number beyond float16 ({FLOAT16_MAX:.0f}) for {kind} {names[row]!r}; use --dtype "
            "float32, which resumes from what is finished"
        )
    raise DataError(
        f"the encoder returned a number that is not finite for {kind} {names[row]!r}; try --precision fp32, or take "
        f"the {kind} out"
    )


CPU_BATCHES = 2
"""At once."""

Encode = Callable[[np.ndarray], np.ndarray]


class EncodingPool:
    """Threads that run `encode`; see `encoding_pool`."""

    def __init__(self, encode: Encode, pool: ThreadPoolExecutor, count: int) -> None:
        self._encode = encode
        self._pool = pool
        self._count = count
        self._waiting: deque[Future[np.ndarray]] = deque()

    def submit(self, batch: np.ndarray) -> Future[np.ndarray]:
        """Have `batch` encoded. Waits while one batch more than there are threads is under way: memory is bounded."""
        while len(self._waiting) > self._count:
            self._waiting.popleft().result()
        future = self._pool.submit(self._encode, batch)
        self._waiting.append(future)
        return future


@contextmanager
def encoding_pool(encode: Encode, device: str) -> Iterator[EncodingPool]:
    """A pool for batches of `encode` on `device`; when it closes, what has not begun is not begun any more."""
    threads = torch.get_num_threads()
    count = CPU_BATCHES if device == "cpu" and threads >= CPU_BATCHES else 1
    with computing_with(threads // count):
        pool = ThreadPoolExecutor(count, "encoding")
        try:
            yield EncodingPool(encode, pool, count)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class Timer:
    """Wall time in seconds, by phase."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def measure(self, what: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[what] += time.perf_counter() - started

    def __getitem__(self, what: str) -> float:
        return self._seconds[what]

    def total(self) -> float:
        return time.perf_counter() - self._started
