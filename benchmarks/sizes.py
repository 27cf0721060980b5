"""The automatic size, studied on synthetic pairs: python benchmarks/sizes.py [--pairs N ...] [--arms NAME ...] [--test]

Trains each setting (`ARMS`) on training sets of 3,000 to 100,000 pairs of `synthetic_pairs.py`, which are nested, and
prints one table: the validation mean recall of the best epoch (or start), and the processor seconds of the run. With
`--test` the test split is read instead. Runs are kept in `--folder` and not trained again. One core takes an hour for
all; `--quick` asks whether it runs at all.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from synthetic_pairs import synthetic_store

from alignvl_cli.recipes import resolve_train
from alignvl_cli.settings import Recipe
from alignvl_cli.store.reader import open_store
from alignvl_cli.training.data import SplitLatents, load_split
from alignvl_cli.training.run import train_run
from alignvl_cli.training.run_folder import METRICS, load_run
from alignvl_cli.training.validation import validate

PAIRS = (3_000, 10_000, 30_000, 100_000)
SMALL: dict[str, Any] = {
    "init": "cca", "latent-width": 512, "adapter-depth": 1, "adapter-expansion": 1, "embed-dim": 256, "epochs": 10,
    "lr": 2e-4,
}  # fmt: skip
LARGE = {
    **SMALL,
    "init": "random",
    "latent-width": 0,
    "adapter-expansion": 4,
    "embed-dim": 512,
    "epochs": 20,
    "lr": 1e-3,
}
FEW_ROWS = {**SMALL, "batch-size": 1024}
ARMS: dict[str, dict[str, Any]] = {
    "--method cca": {"method": "cca"},
    "small": SMALL,
    "former large": LARGE,
    "small, lr 5e-4": {**SMALL, "lr": 5e-4},
    "small, lr 1e-3": {**SMALL, "lr": 1e-3},
    "small, batch 512": {**SMALL, "batch-size": 512},
    "small, batch 1024": FEW_ROWS,
    "small, batch 1024, lr 5e-4": {**FEW_ROWS, "lr": 5e-4},
    "small, batch 1024, lr 5e-5": {**FEW_ROWS, "lr": 5e-5},
    "small, batch 1024, 512 shared": {**FEW_ROWS, "embed-dim": 512},
    "small, batch 1024, no components": {**FEW_ROWS, "latent-width": 0},
    "small, batch 1024, expansion 4, lr 5e-5": {**FEW_ROWS, "adapter-expansion": 4, "lr": 5e-5},
    "small, batch 1024, expansion 4, lr 1e-4": {**FEW_ROWS, "adapter-expansion": 4, "lr": 1e-4},
    "small, no RP": {**SMALL, "rp": False},
    "small, no mix": {**SMALL, "mix": False},
}
"""`small` is the automatic size from a start at CCA, `former large` what it was from 20,000 pairs on."""
SECONDS = "seconds.txt"


def trained(folder: Path, pairs: int, arm: str, recipe: str, seed: int) -> Path:
    """The run of one setting, trained unless it is there."""
    store = folder / f"{pairs}.h5"
    if not store.exists():
        synthetic_store(store, pairs)
    name = arm if "method" in ARMS[arm] else f"{recipe}-{arm}"
    run = folder / str(pairs) / f"{name.replace(' ', '_').replace(',', '')}-s{seed}"
    if not (run / SECONDS).exists():
        asked = ARMS[arm] if "method" in ARMS[arm] else {"batch-size": rows(pairs), **ARMS[arm], "recipe": recipe}
        config = resolve_train({**asked, "seed": seed}, pairs=pairs)
        began = time.process_time()
        *_, last = train_run([store], run, config, overwrite=True)
        (run / SECONDS).write_text(str(time.process_time() - began))
        best = last.result["best"]  # type: ignore[union-attr]
        said = f"{pairs:,} pairs, {recipe}, {arm}, seed {seed}: {best['mean_recall']:.2f} at epoch {best['epoch']}"
        print(f"{said}, {time.process_time() - began:.0f} s", file=sys.stderr, flush=True)
    return run


def rows(pairs: int) -> int:
    """The former automatic batch: about a seventh of the pairs, and at most 4,096."""
    return min(4096, 1 << round(math.log2(pairs / 7)))


def on_test(run: Path, store: Path) -> float:
    """Mean recall on the test split."""
    adapters, rows = load_run(run).adapters, load_split([open_store(store)], "test")
    image, text = (tower.reduce(tower.norm(latents)) for tower, latents in (
        (adapters.image, rows.image_ID), (adapters.text, rows.text_TC)
    ))  # fmt: skip
    return validate(adapters, SplitLatents(image, text, rows.text_image_T))["mean_recall"]


def told(run: Path, store: Path, test: bool) -> str:
    """The figure of one run; of a kept start also what training made of it."""
    if test:
        return f"{on_test(run, store):.1f}"
    best = load_run(run).result["best"]
    lines = map(json.loads, (run / METRICS).read_text(encoding="utf-8").splitlines())
    validated = [line["metrics"]["mean_recall"] for line in lines if line["kind"] == "validated"]
    kept_start = bool(validated) and best["epoch"] == 0
    return f"{best['mean_recall']:.1f}" + (f" (the start; last epoch {validated[-1]:.1f})" if kept_start else "")


def cells(arm: str, given: argparse.Namespace) -> Iterator[str]:
    """Each seed's figure, and the seconds of a run, by size."""
    for pairs in given.pairs:
        seeds = given.seeds[: 1 if "method" in ARMS[arm] else None]
        runs = [trained(given.folder, pairs, arm, given.recipe, seed) for seed in seeds]
        figures = ", ".join(told(run, given.folder / f"{pairs}.h5", given.test) for run in runs)
        yield f"{figures}; {statistics.mean(float((run / SECONDS).read_text()) for run in runs):.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("alignvl-workspace/sizes"))
    parser.add_argument("--pairs", type=int, nargs="+", default=[*PAIRS])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS], metavar="NAME")
    parser.add_argument("--recipe", choices=[*Recipe], default="alignvl")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--test", action="store_true", help="read the test split")
    parser.add_argument("--quick", action="store_true", help="1,000 pairs and two settings")
    given = parser.parse_args()
    if given.quick:
        given.pairs, given.arms = [1000], ["--method cca", "small"]
    given.folder.mkdir(parents=True, exist_ok=True)
    print(f"| {given.recipe}, {'test' if given.test else 'validation'} | ", end="")
    print(" | ".join(f"{pairs:,} pairs" for pairs in given.pairs) + " |")
    print("|---" * (1 + len(given.pairs)) + "|")
    for arm in given.arms:
        print(f"| {arm} | " + " | ".join(cells(arm, given)) + " |", flush=True)


if __name__ == "__main__":
    main()
