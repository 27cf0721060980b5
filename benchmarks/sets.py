"""What `train` reaches on several data sets: RSUM on the test split, mean and spread over seeds, and seconds.

    python benchmarks/sets.py STORE... [--seeds 0-2] [--arms default,best] [--results FILE]

Each STORE is an HDF5 store with splits train, val and test. Arms are settings of `alignvl train`: the default, what the
default was, the closed form, two plain loops (one block of expansion 4 from a drawn start on latents of full width, 500
steps of 512 rows), and `--recipe best`. Results are kept in FILE as they come, and not computed again.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from alignvl_cli import evaluate, open_store, train

LOOP = {
    "size": "pairs", "init": "random", "latent_norm": "none", "latent_width": 0, "adapter_expansion": 4, "lr": 1e-3,
    "embed_dim": 512, "dropout": 0.6,
}  # fmt: skip
BEFORE = {
    "size": "pairs", "init": "cca", "latent_norm": "none", "latent_width": 512, "adapter_expansion": 1,
    "embed_dim": 256, "dropout": 0.6, "epochs": 10, "lr": 2e-4, "noise_units": "absolute", "keep_epoch": "best",
}  # fmt: skip
ARMS: dict[str, dict[str, Any]] = {
    "loop, mixing": LOOP | {"recipe": "fusemix"},
    "loop, plain": LOOP | {"recipe": "clip"},
    "cca": {"method": "cca"},
    "former default": BEFORE,
    "former default; last layers": BEFORE | {"image_parts": "last", "text_parts": "last"},
    "loop, plain; last layers": LOOP | {"recipe": "clip", "image_parts": "last", "text_parts": "last"},
    "default": {},
    "best": {"recipe": "best"},
}
STEPS, ROWS = 500, 512


def settings_of(arm: str, pairs: int) -> dict[str, Any]:
    """Flags of `arm`; the loops take so many steps, the former default a seventh of the pairs at a time."""
    if arm.startswith("loop"):
        rows = min(ROWS, pairs // 2)
        return ARMS[arm] | {"batch_size": rows, "epochs": max(1, round(STEPS / (pairs // rows)))}
    if arm.startswith("former"):
        seventh = 1 << round(math.log2(max(pairs, 8) / 7))
        return ARMS[arm] | {"batch_size": max(2, min(4096, pairs // 2, seventh))}
    return ARMS[arm]


def one(store: Path, arm: str, seed: int) -> dict[str, Any]:
    """Train and evaluate once."""
    opened = open_store(store)
    pairs = len(opened.rows("train").text)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = train(opened, output=Path(folder) / "run", seed=seed, **settings_of(arm, pairs))
        seconds = time.perf_counter() - began
        test = evaluate(run, opened, split="test")
        return {"rsum": float(test.to_frame()["rsum"].iloc[0]), "val": run.result["best"]["rsum"], "seconds": seconds}


def seeds_of(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", nargs="+", type=Path)
    parser.add_argument("--seeds", type=seeds_of, default=range(3))
    parser.add_argument("--arms", default=",".join(ARMS).replace("loop,", "loop:"))
    parser.add_argument("--results", type=Path, default=Path("sets.jsonl"))
    asked = parser.parse_args()
    lines = asked.results.read_text().splitlines() if asked.results.exists() else []
    known = {tuple(key): value for key, value in (json.loads(line) for line in lines)}
    arms = [arm.strip().replace("loop:", "loop,") for arm in asked.arms.split(",")]
    for store in asked.stores:
        for arm in arms:
            for seed in asked.seeds:
                key = (store.stem, arm, seed)
                if key not in known:
                    known[key] = one(store, arm, seed)
                    with asked.results.open("a") as stream:
                        stream.write(json.dumps([key, known[key]]) + "\n")
    table = Table("set", *arms, title="RSUM on test: mean (standard deviation over seeds), seconds")
    for store in asked.stores:
        cells = []
        for arm in arms:
            found = [known[store.stem, arm, seed] for seed in asked.seeds]
            values = [one["rsum"] for one in found]
            spread = f" ({statistics.stdev(values):.1f})" if len(values) > 1 else ""
            seconds = statistics.median(one["seconds"] for one in found)
            cells.append(f"{statistics.mean(values):.1f}{spread}, {seconds:.0f} s")
        table.add_row(store.stem, *cells)
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
