"""How many pictures and captions go through an encoder at once: as asked, as begun, or as measured; and what is said
when they do not fit, or when what comes out cannot be kept."""

import time
from collections.abc import Callable, Sequence, Sized
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from PIL import Image

from alignvl_cli.datasets.dataset import Dataset
from alignvl_cli.devices import is_out_of_memory
from alignvl_cli.distributed import ALONE, Ranks
from alignvl_cli.errors import DataError
from alignvl_cli.extraction.plan import Plan, existing_store_matches, with_batches
from alignvl_cli.extraction.shards import recorded_plan
from alignvl_cli.settings import ExtractConfig, StoreDtype
from alignvl_cli.store.writer import FLOAT16_MAX

if TYPE_CHECKING:
    from alignvl_cli.encoders.text import TextEncoder
    from alignvl_cli.encoders.vision import VisionEncoder

Batch = TypeVar("Batch", bound=Sized)

SMALLEST, LARGEST = 16, 1024
ENOUGH_GAIN = 1.05
"""A batch twice as large must be this much faster: the smaller one leaves more memory and makes shorter shards."""
TIMED = 3
"""Runs at each size, of which the fastest counts."""
FIRST_WAIT_SECONDS = 180.0
"""How long other processes wait for the first one's plan."""
POLL_SECONDS = 0.2


def choose_batches(
    plan: Plan,
    dataset: Dataset,
    vision: "VisionEncoder",
    text: "TextEncoder",
    config: ExtractConfig,
    output: Path,
    ranks: Ranks = ALONE,
) -> Plan:
    """`plan` with the sizes to work with: its own where the setting or the rule for CPUs decides.

    On other devices sizes grow while throughput does, and an interrupted run keeps those that it began with, so that it
    is resumed bit for bit. Of several `ranks` the first measures.
    """
    if config.batch_size is not None:
        return plan
    deadline = time.monotonic() + FIRST_WAIT_SECONDS
    while True:
        there = recorded_plan(output)
        if there is not None and there.get("device") == plan.device:
            return with_batches(plan, int(there["image_batch"]), int(there["text_batch"]))
        if set(plan.device.values()) == {"cpu"}:
            return plan
        if ranks.is_first or time.monotonic() > deadline or existing_store_matches(output, plan):
            break
        time.sleep(POLL_SECONDS)
    pixels = vision.prepare(Image.new("RGB", (256, 256)))
    some = islice((caption for item in dataset.items for caption in item.captions), LARGEST)
    long = (sorted(some, key=len, reverse=True) * LARGEST)[:LARGEST]  # the longest first: they take the most memory
    return with_batches(
        plan,
        plan.image_batch
        if plan.device["vision"] == "cpu"
        else measured_size(lambda size: vision.encode(np.stack([pixels] * size))),
        plan.text_batch if plan.device["text"] == "cpu" else measured_size(lambda size: text.encode(long[:size])),
    )


def measured_size(encode: Callable[[int], object], clock: Callable[[], float] = time.perf_counter) -> int:
    """The size from which on doubling no longer makes `encode(size)` faster an item, or no longer fits in memory.

    DataError when not even the smallest fits.
    """
    best, best_rate = 0, 0.0
    size = SMALLEST
    while size <= LARGEST:
        try:
            encode(size)  # kernels are chosen, memory is taken
            rate = size / min(_seconds(encode, size, clock) for _ in range(TIMED))
        except (RuntimeError, MemoryError) as problem:
            if not is_out_of_memory(problem):
                raise
            _release_memory()
            break
        if rate < best_rate * ENOUGH_GAIN:
            break
        best, best_rate = size, rate
        size *= 2
    if not best:
        raise DataError(f"the encoder does not fit in memory with {SMALLEST} items at once; try a smaller --batch-size")
    return best


def _seconds(encode: Callable[[int], object], size: int, clock: Callable[[], float]) -> float:
    began = clock()
    encode(size)
    return clock() - began


def _release_memory() -> None:
    """Have torch return what the failed attempt had taken."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


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
            "float32, which resumes what is finished"
        )
    raise DataError(
        f"the encoder returned a number that is not finite for {kind} {names[row]!r}; try --precision fp32, or take "
        f"the {kind} out"
    )
