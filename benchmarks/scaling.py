"""What each stage costs from ten thousand pairs to a million: python benchmarks/scaling.py [--pairs N ...]

On stores of `synthetic_pairs.py` (image latents of 768, text latents of 384), every command in a process of its own:
seconds, peak memory and disk of `alignvl train` (one epoch of each of its two pairs), the same with a memory budget of
an eighth of the latents (128 MiB at least), `alignvl index` of the training split with exact, IVF and HNSW indexes, and
what a search for one query takes in each. At the end the exponent p of a fit of cost = a * pairs^p. Results are kept in
a file (`--results`) as they come, and not measured again.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from synthetic_pairs import IMAGE_WIDTH, TEXT_WIDTH, synthetic_store

from alignvl_cli.retrieval.index import open_index
from alignvl_cli.settings import Gallery

PAIRS = (10_000, 30_000, 100_000, 300_000, 1_000_000)
TOP = 10
SEARCHES = 200
BUDGET_SHARE, LEAST_BUDGET = 8, 128
"""Of the latents, and in MiB: a budget holds two buffers of twice the batch."""
MIB = 2**20

Costs = dict[str, float]


def ivf(rows: int) -> str:
    """An IVF index of 4 sqrt(rows) cells, as a power of two."""
    return f"IVF{1 << round(math.log2(4 * math.sqrt(rows)))},Flat"


FACTORIES: dict[str, Callable[[int], str]] = {"Flat": lambda rows: "Flat", "IVF": ivf, "HNSW": lambda rows: "HNSW32"}


def command(*words: str | Path) -> Costs:
    """Seconds and peak MiB of one `alignvl` command."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "alignvl_cli", *map(str, words), "--quiet"], stdout=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return {"s": time.perf_counter() - began, "MiB": used.ru_maxrss / 1024}


def size(path: Path) -> float:
    """MiB on disk."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / MIB


def search_ms(folder: Path) -> float:
    """Median milliseconds of the first 10 images for one query, which is a vector of the index and noise."""
    index = open_index(folder)
    vectors = index.vectors[Gallery.image]
    draw = np.random.default_rng(0)
    taken = draw.integers(0, vectors.ntotal, SEARCHES)
    kept_GE = vectors.reconstruct_n(0, vectors.ntotal)
    query_QE = kept_GE[taken] + 0.02 * draw.standard_normal((SEARCHES, kept_GE.shape[1]), dtype=np.float32)
    spent = []
    for query_E in query_QE:
        began = time.perf_counter()
        vectors.search(query_E[None], TOP)
        spent.append(time.perf_counter() - began)
    return 1e3 * statistics.median(spent)


def measure(pairs: int, folder: Path) -> Iterator[tuple[str, Costs]]:
    """Stage -> costs, as they come."""
    store = synthetic_store(folder / "store.h5", pairs)
    yield "store on disk", {"MiB": size(store)}
    yield "train, an epoch", command("train", store, "--epochs", "1", "-o", folder / "run")
    latents = 4 * pairs * (IMAGE_WIDTH // 3 + TEXT_WIDTH)  # three captions an image
    budget = f"{max(latents // BUDGET_SHARE // MIB, LEAST_BUDGET)}MiB"
    yield (
        "the same in a budget",
        command(*("train", store, "--epochs", "1", "--memory-budget", budget, "-o", folder / "budget")),
    )
    for name, factory in FACTORIES.items():
        place = folder / name
        made = command("index", folder / "run", "--split", "train", "--factory", factory(pairs), "-o", place)
        yield f"index {name}", made | {"disk": size(place), "search ms": search_ms(place)}


def exponent(pairs: Sequence[int], costs: Sequence[float]) -> float:
    """p of cost = a * pairs^p, by least squares of the logarithms."""
    return float(np.polyfit(np.log(pairs), np.log(costs), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=PAIRS)
    parser.add_argument("--results", type=Path, default=Path("scaling.jsonl"))
    asked = parser.parse_args()
    lines = asked.results.read_text().splitlines() if asked.results.exists() else []
    known: dict[int, dict[str, Costs]] = dict(map(json.loads, lines))
    for pairs in asked.pairs:
        if pairs not in known:
            with tempfile.TemporaryDirectory() as folder:
                known[pairs] = dict(measure(pairs, Path(folder)))
            with asked.results.open("a") as stream:
                stream.write(json.dumps([pairs, known[pairs]]) + "\n")
    table = Table(
        "stage", "cost", *(f"{pairs:,}" for pairs in asked.pairs), "exponent", title="costs by training pairs"
    )
    for stage, costs in known[asked.pairs[0]].items():
        for cost in costs:
            found = [known[pairs][stage][cost] for pairs in asked.pairs]
            fit = f"{exponent(asked.pairs, found):.2f}" if len(found) > 1 else ""
            table.add_row(stage, cost, *(f"{value:,.3g}" if value < 100 else f"{value:,.0f}" for value in found), fit)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
