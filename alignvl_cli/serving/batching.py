"""Requests that arrive together are answered together: one queue, one thread that encodes and searches."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

GATHER_S = 0.001
"""That the first request of a batch waits for others."""
BATCH = 32
"""Requests that are answered together, at most."""

Job = TypeVar("Job")
Answer = TypeVar("Answer")


class QueueFull(Exception):
    """As many requests wait as may."""


class Batcher(Generic[Job, Answer]):
    """Jobs in, answers out. While a batch is worked on, what arrives waits and is the next batch.

    `work` gets the jobs of a batch in a thread of its own, and returns for each its answer, or the exception that
    stands for it.
    """

    def __init__(self, work: Callable[[Sequence[Job]], Sequence[Answer | Exception]], queue: int) -> None:
        self._work = work
        self._waiting: asyncio.Queue[tuple[Job, asyncio.Future[Answer]]] = asyncio.Queue(queue)
        self._thread = ThreadPoolExecutor(1, "encoder")
        self.sizes: Callable[[int], None] = lambda size: None
        """Told of the size of each batch."""

    @property
    def waiting(self) -> int:
        return self._waiting.qsize()

    async def submit(self, job: Job) -> Answer:
        """The answer to `job`. QueueFull at once, rather than a wait without end; a caller who gives up (a timeout) is
        not worked for any more."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        try:
            self._waiting.put_nowait((job, answer))
        except asyncio.QueueFull:
            raise QueueFull from None
        return await answer

    async def run(self) -> None:
        """Work, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._waiting.get()]
            await asyncio.sleep(GATHER_S)
            while len(batch) < BATCH and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            batch = [(job, answer) for job, answer in batch if not answer.done()]
            if not batch:
                continue
            self.sizes(len(batch))
            try:
                answers = await loop.run_in_executor(self._thread, self._work, [job for job, _ in batch])
            except Exception as problem:  # of ours, and each request's to tell
                answers = [problem] * len(batch)
            for (_, waiting), answer in zip(batch, answers, strict=True):
                if waiting.done():  # its caller has left meanwhile
                    continue
                if isinstance(answer, Exception):
                    waiting.set_exception(answer)
                else:
                    waiting.set_result(answer)

    def close(self) -> None:
        """Let the thread end after what it works on."""
        self._thread.shutdown(wait=False, cancel_futures=True)
