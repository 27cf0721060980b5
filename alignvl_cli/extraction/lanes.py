"""Batches on their way through an encoder, in threads beside the one that decodes.

On a CPU two batches at a time, each with half of the threads, are faster than one with all of them: no thread waits for
the others after every layer, and decoding fills the gaps. On other devices one lane keeps the device at work meanwhile.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch

from alignvl_cli.devices import computing_with

CPU_LANES = 2

Encode = Callable[[np.ndarray], np.ndarray]


class Lanes:
    """Open lanes of `encode`; see `open_lanes`."""

    def __init__(self, encode: Encode, pool: ThreadPoolExecutor, count: int) -> None:
        self._encode = encode
        self._pool = pool
        self._count = count
        self._waiting: deque[Future[np.ndarray]] = deque()

    def submit(self, batch: np.ndarray) -> Future[np.ndarray]:
        """Have `batch` encoded. Waits while one batch more than there are lanes is on its way, so memory is bounded."""
        while len(self._waiting) > self._count:
            self._waiting.popleft().result()
        future = self._pool.submit(self._encode, batch)
        self._waiting.append(future)
        return future


@contextmanager
def open_lanes(encode: Encode, device: str) -> Iterator[Lanes]:
    """Lanes for batches of `encode` on `device`; when they close, what has not begun is not begun any more."""
    threads = torch.get_num_threads()
    count = CPU_LANES if device == "cpu" and threads >= CPU_LANES else 1
    with computing_with(threads // count):
        pool = ThreadPoolExecutor(count, "encoding")
        try:
            yield Lanes(encode, pool, count)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
