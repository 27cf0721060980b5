"""What a grown data set costs: python benchmarks/growing.py [PICTURES [ADDED [REMOVED [CHANGED]]]]

Extracts PICTURES (2,000) files with the bundled encoders on the CPU: the demo's pictures, enlarged, with noise so that
no two are alike, and their captions. Then ADDED (100) more at the end, REMOVED (50) fewer and CHANGED (20) captions: at
once into another store, and into the same one, which reuses what it has. Prints the seconds of both, what was reused,
and in what the two stores differ; fails when that is more than latents within rounding (as `inspect --verify` has it).
"""

import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from extraction import encoders
from support.stored import differing, stored_datasets

from alignvl_cli.datasets.dataset import Dataset, ImageSource, Item
from alignvl_cli.datasets.demo import open_emoji
from alignvl_cli.devices import usable_cores
from alignvl_cli.encoders.decoding import decode_image
from alignvl_cli.extraction.events import ExtractSummary, Finished
from alignvl_cli.extraction.run import run_extraction
from alignvl_cli.extraction.up_to_date import write_stamps
from alignvl_cli.extraction.verify import cosine_gap, tolerance
from alignvl_cli.settings import MAX_PIXELS, NO_REUSE, ExtractConfig
from alignvl_cli.store.reader import open_store

SIDE = 256
"""Pixels of a picture."""
NOISE = 12
"""Standard deviation, of 255."""
CONFIG = ExtractConfig(workers=0)


def write_pictures(folder: Path, count: int) -> list[Item]:
    """`count` JPEG files, of the demo's pictures over and over, each with noise of its own, and their captions."""
    demo, random = open_emoji().items, np.random.default_rng(0)
    items = []
    for number in range(count):
        item, again = demo[number % len(demo)], number // len(demo)
        image = decode_image(item.source.read(), MAX_PIXELS).convert("RGB").resize((SIDE, SIDE))
        noisy = np.asarray(image) + random.normal(0, NOISE, (SIDE, SIDE, 3))
        path = folder / f"{number:06d}.jpg"
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        captions = tuple(f"{caption} {again}" if again else caption for caption in item.captions)
        items.append(Item(path.stem, str(path), captions, item.split, item.label, ImageSource(path)))
    return items


def changed(items: Sequence[Item], first: int, removed: int, changes: int) -> list[Item]:
    """All items without `removed` of the `first`, evenly spread, and with other first captions of `changes` others."""
    gone = set(np.linspace(3, first - 1, removed).astype(int).tolist())
    kept = [item for number, item in enumerate(items) if number not in gone]
    for row in np.linspace(0, len(kept) - 1, changes).astype(int).tolist():
        one = kept[row]
        captions = (f"{one.captions[0]}, seen anew", *one.captions[1:])
        kept[row] = Item(one.id, one.uri, captions, one.split, one.label, one.source)
    return kept


def extract(items: list[Item], output: Path, **options: object) -> tuple[float, ExtractSummary]:
    """Seconds of a whole extraction, the encoders loaded before, and its summary."""
    vision, text = ENCODERS
    dataset = Dataset("growing", {"format": "benchmark", "images": len(items)}, items)
    began = time.perf_counter()
    *_, last = run_extraction(dataset, vision, text, output, CONFIG, settings={}, **options)  # type: ignore[arg-type]
    assert isinstance(last, Finished)
    assert last.stamps is not None
    write_stamps(output, last.summary.content_hash, items, last.stamps, last.rejected)
    return time.perf_counter() - began, last.summary


def main() -> None:
    count, added, removed, changes = [int(word) for word in sys.argv[1:]] + [2000, 100, 50, 20][len(sys.argv) - 1 :]
    print(
        f"{platform.machine()}, {usable_cores()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{ENCODERS[0].precision.value}, load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        items = write_pictures(folder, count + added)
        older, fresh = folder / "older.h5", folder / "fresh.h5"
        seconds, summary = extract(items[:count], older)
        print(f"{count:,} pictures, {summary.distinct_captions:,} distinct captions: {seconds:.1f} s", flush=True)
        grown = changed(items, count, removed, changes)
        anew, _ = extract(grown, fresh, reuse=NO_REUSE)
        seconds, summary = extract(grown, older, overwrite=True)
        print(f"{added} added, {removed} removed, {changes} captions changed, at once: {anew:.1f} s")
        print(
            f"the same, reused {summary.reused_images:,} of {summary.distinct_images:,} pictures and "
            f"{summary.reused_captions:,} of {summary.distinct_captions:,} captions: {seconds:.1f} s, "
            f"{seconds / anew:.1%} of it"
        )
        compare(older, fresh)


def compare(one: Path, other: Path) -> None:
    """Print in what two stores differ; AssertionError when it is more than rounding."""
    names = {name for name in differing(stored_datasets(one), stored_datasets(other)) if not name.startswith("digest/")}
    print(f"datasets that differ in any bit: {', '.join(sorted(names)) or 'none'}")
    assert names <= {"image/latent", "text/latent"}
    stores = [open_store(path) for path in (one, other)]
    for side, encoder in zip(("image", "text"), ENCODERS, strict=True):
        reused, fresh = (getattr(store, f"{side}_block")(slice(None)) for store in stores)
        same = (reused == fresh).all(axis=1)
        gap, allowed = cosine_gap(reused, fresh).max(), tolerance(encoder.precision, reused.dtype)
        print(
            f"{side} latents: {same.sum():,} of {len(same):,} equal bit for bit, largest 1 - cosine {gap:.1e} "
            f"(rounding explains {allowed:.0e} in {encoder.precision.value})"
        )
        assert gap <= allowed


if __name__ == "__main__":
    ENCODERS = encoders()
    main()
