"""What unpaired pictures and captions are worth: RSUM on the test split with few pairs, without and with the rest of
the training split.

python benchmarks/few_pairs.py STORE... [--pairs 100,300,1000] [--seeds 0-4] [--arms cca,pairs,unpaired] [--results
FILE]

The pairs are `--subset uniform:K`; a seed draws pairs and start, the same ones in each arm. Arms are settings of
`alignvl train`. The gain of each arm over `pairs` is the mean of the differences by seed, with a 95 % t interval.
Results are kept in FILE as they come, and not computed again.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from scipy.stats import t
from sets import seeds_of

from alignvl_cli import evaluate, open_store, train

ARMS: dict[str, dict[str, Any]] = {
    "cca": {"method": "cca"},
    "pairs": {},
    "unpaired": {"unpaired_weight": "auto"},
}
REFERENCE = "pairs"


def one(store: Path, pairs: int, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Train and evaluate once."""
    opened = open_store(store)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = train(opened, output=Path(folder) / "run", seed=seed, subset=f"uniform:{pairs}", **settings)
        seconds = time.perf_counter() - began
        test = evaluate(run, opened, split="test")
        kept = {key: run.config["settings"].get(key, 0) for key in ("unpaired_weight", "noise_std")}
        alone = [trained["rsum"] for trained in run.result.get("trained", [])]
        rsum = float(test.to_frame()["rsum"].iloc[0])
        return {"rsum": rsum, "val": run.result["best"]["rsum"], "alone": alone, "seconds": seconds} | kept


def gain(values: list[float], reference: list[float]) -> str:
    """Mean of the differences by seed, and half its 95 % t interval."""
    differences = [value - other for value, other in zip(values, reference, strict=True)]
    if len(differences) < 2:
        return f"{differences[0]:+.1f}"
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return f"{statistics.mean(differences):+.1f} ± {t.ppf(0.975, len(differences) - 1) * error:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", nargs="+", type=Path)
    parser.add_argument("--pairs", default="100,300,1000")
    parser.add_argument("--seeds", type=seeds_of, default=range(5))
    parser.add_argument(
        "--arms", default=",".join(ARMS), help="Of those above, or NAME:JSON of settings, ; between them."
    )
    parser.add_argument("--results", type=Path, default=Path("few_pairs.jsonl"))
    asked = parser.parse_args()
    lines = asked.results.read_text().splitlines() if asked.results.exists() else []
    known = {tuple(key): value for key, value in (json.loads(line) for line in lines)}
    named = asked.arms.split(";" if "{" in asked.arms else ",")
    arms = {name: json.loads(more) if more else ARMS[name] for name, _, more in (arm.partition(":") for arm in named)}
    table = Table(
        "set", "pairs", *arms, title="RSUM on test: mean over seeds; gain over `pairs`, 95 % interval; seconds"
    )
    for store in asked.stores:
        for pairs in map(int, asked.pairs.split(",")):
            for seed in asked.seeds:
                for arm, settings in arms.items():
                    key = (store.stem, pairs, arm, seed)
                    if key not in known:
                        known[key] = one(store, pairs, seed, settings)
                        with asked.results.open("a") as stream:
                            stream.write(json.dumps([key, known[key]]) + "\n")
            found = {arm: [known[store.stem, pairs, arm, seed] for seed in asked.seeds] for arm in arms}
            rsums = {arm: [one["rsum"] for one in of_arm] for arm, of_arm in found.items()}
            cells = []
            for arm, values in rsums.items():
                told = f"{statistics.mean(values):.1f}"
                if arm != REFERENCE and REFERENCE in rsums:
                    told += f"; {gain(values, rsums[REFERENCE])}"
                cells.append(f"{told}; {statistics.median(one['seconds'] for one in found[arm]):.0f} s")
            table.add_row(store.stem, f"{pairs:,}", *cells)
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
