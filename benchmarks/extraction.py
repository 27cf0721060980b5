"""How much of the encoders' own speed an extraction keeps: python benchmarks/extraction.py [ROUNDS]

On demo pictures and captions, with the bundled encoders, on the CPU, in one process and one run: pictures a second of a
whole extraction but its text stage (reading, decoding, scaling, shards, store) over those of the bare forward on ready
tensors, of the model as it is prepared here (batch norms folded) and as transformers loads it; captions a second of the
text stage over those of `sentence-transformers` `encode`, of the same model and precision, on distinct captions and on
a list in which two of three repeat. Prints the ratio of the medians of each.

Then the most resident memory of a whole extraction with ten times the demo's captions over that with as many as the
demo has, each in a process of its own. There the text encoder answers every 50th batch itself and the others from
noise, which takes the time out and leaves the memory in.
"""

import os
import platform

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `alignvl` itself sets it

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from alignvl_cli.datasets.dataset import Dataset
from alignvl_cli.datasets.formats import open_dataset
from alignvl_cli.devices import choose_device, peak_resident_bytes, usable_cores
from alignvl_cli.encoders.decoding import decode_image
from alignvl_cli.encoders.folders import Side, find_model
from alignvl_cli.encoders.quiet import quiet
from alignvl_cli.encoders.text import TextEncoder, load_text
from alignvl_cli.encoders.towers import DTYPES, load_tower
from alignvl_cli.encoders.vision import VisionEncoder, load_vision
from alignvl_cli.extraction.encoding import Timer
from alignvl_cli.extraction.plan import TEXTS, make_plan
from alignvl_cli.extraction.run import run_extraction
from alignvl_cli.extraction.shards import work_folder
from alignvl_cli.extraction.texts import encode_texts, gather_captions
from alignvl_cli.settings import DEFAULT_TEXT, DEFAULT_VISION, DatasetOptions, Device, ExtractConfig, Precision

IMAGES, CAPTIONS = 768, 384
MEMORY_IMAGES, REALLY = 64, 50
MEMORY = "--memory"
CONFIG = ExtractConfig()


def seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def extracting(dataset: Dataset, vision: VisionEncoder, text: TextEncoder) -> float:
    """Seconds of an extraction but for its text stage."""
    with tempfile.TemporaryDirectory() as folder:
        *_, last = run_extraction(dataset, vision, text, Path(folder, "s.h5"), CONFIG, settings={})
    return last.summary.seconds.total - last.summary.seconds.encode_texts


def ready_batches(dataset: Dataset, vision: VisionEncoder, size: int) -> list[torch.Tensor]:
    pictures = [vision.prepare(decode_image(item.source.read(), CONFIG.max_pixels)) for item in dataset.items]
    return [vision.values(np.stack(pictures[first : first + size])) for first in range(0, len(pictures), size)]


@torch.inference_mode()
def forward(model: torch.nn.Module, batches: Sequence[torch.Tensor]) -> None:
    for pixels in batches:
        model(pixel_values=pixels)


def text_stage(dataset: Dataset, vision: VisionEncoder, text: TextEncoder) -> None:
    """The captions of a dataset, gathered and encoded into shards."""
    plan = make_plan(dataset, vision, text, CONFIG)
    with tempfile.TemporaryDirectory() as name:
        with work_folder(Path(name, "s.h5"), plan, restart=False) as folder:
            captions = gather_captions(dataset.items, np.arange(len(dataset.items)))
            for _ in encode_texts(captions.distinct, text, plan, folder, Timer()):
                pass


def with_captions(dataset: Dataset, captions: Sequence[str]) -> Dataset:
    """A dataset of these captions, one an item; its pictures are of no account."""
    items = [replace(dataset.items[0], id=f"{n}", captions=(caption,)) for n, caption in enumerate(captions)]
    return replace(dataset, items=items)


def ratio(name: str, ours: Callable[[], float], theirs: Callable[[], float], count: int, rounds: int) -> None:
    ours(), theirs()  # caches, memory
    times = [(ours(), theirs()) for _ in range(rounds)]  # in turn, so that a busy moment of the machine hits both
    mine, other = (statistics.median(column) for column in zip(*times, strict=True))
    spread = sorted(b / a for a, b in times)
    print(
        f"{name:<52} {other / mine:.2f} ({count / mine:.0f} over {count / other:.0f} a second; "
        f"{spread[0]:.2f} to {spread[-1]:.2f} in {rounds} rounds)",
        flush=True,
    )


@dataclass
class SeldomText:
    """A text encoder that is asked for every `REALLY`-th batch; the others are noise of its width."""

    encoder: TextEncoder
    asked: int = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.encoder, name)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += 1
        if self.asked % REALLY == 1:
            return self.encoder.encode(texts)
        return np.random.default_rng(self.asked).standard_normal((len(texts), self.encoder.width), dtype=np.float32)


def extract_many(times: int) -> None:
    """Extract some pictures with `times` the demo's captions, no two alike, and print the peak of resident memory."""
    demo = open_dataset("demo:emoji", DatasetOptions())
    captions = [f"{caption} {n}" for n in range(times) for item in demo.items for caption in item.captions]
    each = -(-len(captions) // MEMORY_IMAGES)
    items = [
        replace(item, captions=tuple(captions[n * each : (n + 1) * each]))
        for n, item in enumerate(demo.items[:MEMORY_IMAGES])
    ]
    vision, text = encoders()
    with tempfile.TemporaryDirectory() as folder:
        many = replace(demo, items=items)
        for _ in run_extraction(many, vision, SeldomText(text), Path(folder, "s.h5"), CONFIG, settings={}):
            pass
    print(len(captions), peak_resident_bytes())


def memory_ratio() -> None:
    peaks = {}
    for times in (1, 10):
        done = subprocess.run(
            [sys.executable, __file__, MEMORY, str(times)], capture_output=True, text=True, check=True
        )
        captions, peak = map(int, done.stdout.split())
        peaks[captions] = peak
    (few, less), (many, more) = peaks.items()
    print(
        f"{'resident memory, 10 times the captions over once':<52} {more / less:.2f} "
        f"({more / 1e6:.0f} MB with {many:,}, {less / 1e6:.0f} MB with {few:,})",
        flush=True,
    )


def encoders() -> tuple[VisionEncoder, TextEncoder]:
    choose_device(Device.cpu)  # as `alignvl` does
    return (
        load_vision(DEFAULT_VISION, pooling=None, device="cpu", precision=Precision.auto),
        load_text(DEFAULT_TEXT, pooling=None, device="cpu", precision=Precision.auto),
    )


def main() -> None:
    if sys.argv[1:2] == [MEMORY]:
        extract_many(int(sys.argv[2]))
        return
    print(
        f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {usable_cores()} cores, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    demo = open_dataset("demo:emoji", DatasetOptions())
    some = replace(demo, items=demo.items[:IMAGES])
    vision, text = encoders()
    batches = ready_batches(some, vision, make_plan(some, vision, text, CONFIG).image_batch)
    ratio(
        f"extraction over bare forward ({vision.precision.value})",
        lambda: extracting(some, vision, text),
        lambda: seconds_of(lambda: forward(vision.model, batches)),
        IMAGES,
        rounds,
    )
    as_loaded = load_tower(find_model(DEFAULT_VISION, Side.vision), Side.vision, None).model.to(batches[0].dtype)
    plain = [pixels.contiguous() for pixels in batches]
    ratio(
        f"extraction over the forward of transformers ({vision.precision.value})",
        lambda: extracting(some, vision, text),
        lambda: seconds_of(lambda: forward(as_loaded, plain)),
        IMAGES,
        rounds,
    )

    dtype = DTYPES[text.precision]
    with quiet():
        folder = find_model(DEFAULT_TEXT, Side.text).root
        peer = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": dtype})
    distinct = list(dict.fromkeys(caption for item in demo.items for caption in item.captions))[:CAPTIONS]
    repeating = [distinct[n % (CAPTIONS // 3)] for n in range(CAPTIONS)]
    for what, captions in (("distinct", distinct), ("two of three repeat", repeating)):
        dataset = with_captions(demo, captions)
        ratio(
            f"text stage over encode, {what} ({text.precision.value})",
            lambda dataset=dataset: seconds_of(lambda: text_stage(dataset, vision, text)),
            lambda captions=captions: seconds_of(
                lambda: peer.encode(captions, batch_size=TEXTS, show_progress_bar=False)
            ),
            CAPTIONS,
            rounds,
        )
    memory_ratio()


if __name__ == "__main__":
    main()
