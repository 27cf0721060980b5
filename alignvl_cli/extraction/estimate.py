"""What an extraction would take, from a few timed batches: rows, distinct contents, disk, memory, time; and how many
pictures and captions go through an encoder at once: as asked, as begun, or as measured.
"""

import hashlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from PIL import Image

from alignvl_cli.datasets.dataset import MOST_BYTES, Dataset, Item
from alignvl_cli.devices import is_out_of_memory, peak_resident_bytes
from alignvl_cli.distributed import ALONE, Ranks, choose_workers
from alignvl_cli.encoders.pixels import views_on_record
from alignvl_cli.errors import DataError
from alignvl_cli.extraction.encoding import encoding_pool, within_memory
from alignvl_cli.extraction.plan import Batches, existing_store_matches, make_plan
from alignvl_cli.extraction.shards import recorded_plan
from alignvl_cli.extraction.sources import read_pictures
from alignvl_cli.settings import ExtractConfig

if TYPE_CHECKING:
    from alignvl_cli.encoders.text import TextEncoder
    from alignvl_cli.encoders.vision import VisionEncoder

Row = TypeVar("Row")

BATCHES = 4
"""Timed of each kind, after one that is not: it takes memory and chooses kernels."""
HASH_SECONDS = 10.0
"""Spent on counting distinct contents; a larger dataset is counted in part."""
LATENT_BYTES = 4
"""Of an entry in a shard."""
ROW_BYTES = 400
"""Memory that an image or a caption takes beyond its text: hashes, numbers, table entries."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    images: int
    captions: int
    distinct_captions: int
    hashed_images: int
    """Files read to count contents: all of them, or as many as time allowed."""
    distinct_images: int
    """Contents among them."""
    sampled_images: int
    rejected_in_sample: int
    image_batch: int
    text_batch: int
    workers: int
    images_per_second: float
    """Decoding included, as far as it is not hidden behind the encoder."""
    captions_per_second: float
    store_bytes: int
    work_bytes: int
    """On disk at the worst moment: shards and the store."""
    free_bytes: int
    memory_bytes: int | None
    """Of the main process; None where nobody counts."""
    seconds: float
    """From the start: what an interrupted run has finished is not taken off."""


def estimate(
    dataset: Dataset, vision: "VisionEncoder", text: "TextEncoder", output: Path, config: ExtractConfig
) -> Estimate:
    """Time a few batches of pictures and captions spread over `dataset`. Writes nothing.

    DataError when not one picture of the sample can be read.
    """
    plan = make_plan(dataset, vision, text, config, choose_batches(dataset, vision, text, config, output))
    workers = choose_workers(config.workers, len(dataset.items))
    sample = _spread(dataset.items, (BATCHES + 1) * plan.image_batch)
    decode, encode, rejected = _time_images(sample, vision, plan.image_batch, plan.max_pixels)
    captions = [caption for item in dataset.items for caption in item.captions]
    distinct = list(dict.fromkeys(captions))
    a_caption = _time_texts(_spread(distinct, (BATCHES + 1) * plan.text_batch), text, plan.text_batch)
    hashed, contents = _count_contents(dataset.items)
    images = len(dataset.items) * (1 - rejected / len(sample))
    pictures = images * contents / hashed if hashed else images
    if workers or plan.device["vision"] != "cpu":
        an_image = max(encode, decode / max(workers, 1))
    else:  # decoding takes its share of the encoder's threads
        an_image = encode + decode / torch.get_num_threads()
    words = sum(len(caption.encode()) for caption in captions)
    words += sum(len(item.id.encode()) + len(item.uri.encode()) + len(item.label.encode()) for item in dataset.items)
    rows = images * vision.width + len(captions) * text.width
    store = round(rows * np.dtype(plan.dtype).itemsize + words)
    shards = round((pictures * vision.width + len(distinct) * text.width) * LATENT_BYTES)
    peak = peak_resident_bytes()
    return Estimate(
        images=len(dataset.items),
        captions=len(captions),
        distinct_captions=len(distinct),
        hashed_images=hashed,
        distinct_images=contents,
        sampled_images=len(sample),
        rejected_in_sample=rejected,
        image_batch=plan.image_batch,
        text_batch=plan.text_batch,
        workers=workers,
        images_per_second=1 / an_image,
        captions_per_second=1 / a_caption,
        store_bytes=store,
        work_bytes=store + shards,
        free_bytes=shutil.disk_usage(_existing(output)).free,
        memory_bytes=None if peak is None else peak + ROW_BYTES * (len(dataset.items) + len(captions)),
        seconds=pictures * an_image + len(distinct) * a_caption,
    )


def _time_images(
    items: Sequence[Item], vision: "VisionEncoder", batch: int, max_pixels: int
) -> tuple[float, float, int]:
    """Seconds a picture for reading and decoding, and for its forward pass; and how many cannot be read."""
    sources = [item.source for item in items]
    began = time.perf_counter()
    found = [picture.pixels for source in sources for picture in read_pictures([source], vision.preprocess, max_pixels)]
    decode = (time.perf_counter() - began) / len(items)
    pixels = [picture for picture in found if isinstance(picture, np.ndarray)]
    if not pixels:
        raise DataError(
            f"none of {len(items)} sampled images can be read; the first: {found[0]}; are the paths right "
            "(--image-root)?"
        )
    groups = [pixels[first : first + batch] for first in range(0, len(pixels), batch)]
    timed = groups[1:] or groups
    with encoding_pool(within_memory(vision.encode, "pictures"), str(vision.about["device"])) as pool:
        pool.submit(np.stack(groups[0])).result()
        began = time.perf_counter()
        for future in [pool.submit(np.stack(group)) for group in timed]:
            future.result()
    return decode, (time.perf_counter() - began) / sum(map(len, timed)), len(items) - len(pixels)


def _time_texts(captions: Sequence[str], text: "TextEncoder", batch: int) -> float:
    """Seconds a caption, in batches of like length as in a shard."""
    encode = within_memory(text.encode, "captions")
    encode(captions[:batch])
    began = time.perf_counter()
    tokens = text.lengths(captions)
    order = sorted(range(len(captions)), key=lambda position: -tokens[position])
    for first in range(0, len(order), batch):
        encode([captions[position] for position in order[first : first + batch]])
    return (time.perf_counter() - began) / len(captions)


def _count_contents(items: Sequence[Item]) -> tuple[int, int]:
    """Files read until time is up, from the first on, and the distinct contents among them."""
    deadline = time.monotonic() + HASH_SECONDS
    seen: set[bytes] = set()
    for number, item in enumerate(items):
        if time.monotonic() > deadline:
            return number, len(seen)
        try:
            seen.add(hashlib.sha256(item.source.read(MOST_BYTES)).digest()[:16])
        except OSError:
            continue
    return len(items), len(seen)


def _spread(rows: Sequence[Row], count: int) -> Sequence[Row]:
    """At most `count` of the rows, evenly from the first to the last."""
    if len(rows) <= count:
        return rows
    return [rows[position] for position in np.linspace(0, len(rows) - 1, count).round().astype(int).tolist()]


def _existing(path: Path) -> Path:
    """The nearest folder above `path` that is there."""
    return next(folder for folder in path.absolute().parents if folder.exists())


SMALLEST, LARGEST = 16, 1024
ENOUGH_GAIN = 1.05
"""A batch twice as large must be this much faster: the smaller one leaves more memory and makes shorter shards."""
TIMED = 3
"""Runs at each size, of which the fastest counts."""
FIRST_WAIT_SECONDS = 180.0
"""How long other processes wait for the first one's plan."""
POLL_SECONDS = 0.2


def choose_batches(
    dataset: Dataset,
    vision: "VisionEncoder",
    text: "TextEncoder",
    config: ExtractConfig,
    output: Path,
    ranks: Ranks = ALONE,
) -> Batches | None:
    """The sizes for `make_plan`; None where the setting or its rule for CPUs decides.

    On other devices sizes grow while throughput does, and the plan of an interrupted run keeps its own, so that it is
    gone on with bit for bit. Of several `ranks` the first measures.
    """
    if config.batch_size is not None:
        return None
    plan = make_plan(dataset, vision, text, config)
    deadline = time.monotonic() + FIRST_WAIT_SECONDS
    while True:
        there = recorded_plan(output)
        if there is not None and there.get("device") == plan.device:
            return Batches(int(there["image_batch"]), int(there["text_batch"]))
        if set(plan.device.values()) == {"cpu"}:
            return None
        if ranks.is_main or time.monotonic() > deadline or existing_store_matches(output, plan):
            break
        time.sleep(POLL_SECONDS)
    pixels = vision.prepare(Image.new("RGB", (256, 256)))
    some = islice((caption for item in dataset.items for caption in item.captions), LARGEST)
    long = (sorted(some, key=len, reverse=True) * LARGEST)[:LARGEST]  # the longest first: they take the most memory
    return Batches(
        images=plan.image_batch
        if plan.device["vision"] == "cpu"
        else measured_size(
            lambda size: vision.encode(np.stack([pixels] * size)), most=LARGEST // views_on_record(vision.record)
        ),
        texts=plan.text_batch if plan.device["text"] == "cpu" else measured_size(lambda size: text.encode(long[:size])),
    )


def measured_size(
    encode: Callable[[int], object], clock: Callable[[], float] = time.perf_counter, most: int = LARGEST
) -> int:
    """The size, at `most`, from which on doubling no longer makes `encode(size)` faster an item, or no longer fits in
    memory.

    DataError when not even the smallest fits.
    """
    best, best_rate = 0, 0.0
    size = SMALLEST
    while size <= most:
        try:
            encode(size)  # kernels are chosen, memory is taken
            rate = size / min(_seconds(encode, size, clock) for _ in range(TIMED))
        except (RuntimeError, MemoryError) as problem:
            if not is_out_of_memory(problem):
                raise
            _give_back()
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


def _give_back() -> None:
    """Have torch return what the failed attempt had taken."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
