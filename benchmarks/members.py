"""What single pairs of adapters reach on a store, and what weighted sums of their cosines do: how the pairs that are
joined by default were chosen.

    python benchmarks/members.py STORE... [--arms modest,plain,cca] [--sums modest+plain+cca] [--seeds 0,1] [--keep DIR]

Prints RSUM on validation -> test. A member is ARM (of the first seed) or ARM@SEED. In a sum the trained pairs count 1
together, and CCA as much as `--cca` says. Embeddings are kept in DIR, and not computed again.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from alignvl_cli import open_store, train
from alignvl_cli.training.data import load_split
from alignvl_cli.training.ensemble import embedded
from alignvl_cli.training.validation import measured

PAIR: dict[str, Any] = {"size": "pairs"}
PLAIN = PAIR | {"mix": False, "rp": False, "smoothing": 0.05}
ARMS: dict[str, dict[str, Any]] = {
    "cca": {"method": "cca"},
    "csa": {"method": "csa"},
    "modest": PAIR | {"noise_std": 0.7},
    "modest-best-epoch": PAIR | {"noise_std": 0.7, "keep_epoch": "best"},
    "modest-0.3": PAIR | {"noise_std": 0.3},
    "modest-1.0": PAIR | {"noise_std": 1.0},
    "modest-averaged": PAIR | {"noise_std": 0.7, "ema": 0.98},
    "modest-40-epochs": PAIR | {"noise_std": 0.7, "epochs": 40},
    "modest-60-epochs": PAIR | {"noise_std": 0.7, "epochs": 60},
    "modest-dropout-0.3": PAIR | {"noise_std": 0.7, "dropout": 0.3},
    "modest-smoothing-0.05": PAIR | {"noise_std": 0.7, "smoothing": 0.05},
    "modest-half-rate": PAIR | {"noise_std": 0.7, "lr": 1e-3},
    "plain": PLAIN,
    "plain-smoothing-0.1": PLAIN | {"smoothing": 0.1},
    "plain-dropout-0.7": PLAIN | {"dropout": 0.7},
    "plain-half-rate": PLAIN | {"lr": 1e-3},
    "plain-12-epochs": PLAIN | {"epochs": 12},
}
CLOSED = ("cca", "csa")
SPLITS = ("val", "test")


def member(store: Path, arm: str, seed: int, folder: Path) -> dict[str, np.ndarray]:
    """Unit embeddings of images and captions of both splits, by `SPLIT-SIDE`."""
    kept = folder / f"{store.stem}-{arm}-{seed}.npz"
    if not kept.exists():
        opened = open_store(store)
        with tempfile.TemporaryDirectory() as place:
            run = train(opened, output=Path(place) / "run", device="cpu", seed=seed, **ARMS[arm])
        sides = {split: embedded(run.adapters, load_split([opened], split)) for split in SPLITS}
        found = {f"{split}-{side}": rows for split in SPLITS for side, rows in zip("it", sides[split], strict=True)}
        np.savez(kept, **{name: rows.numpy() for name, rows in found.items()})
    return dict(np.load(kept))


Embeddings = dict[str, np.ndarray]


def rsum(members: Sequence[Embeddings], weights: Sequence[float], split: str, owner_T: torch.Tensor) -> float:
    """Of the weighted sum of the members' cosines."""
    img_IS, txt_TS = (
        F.normalize(
            torch.cat(
                [torch.from_numpy(one[f"{split}-{side}"]) * w**0.5 for one, w in zip(members, weights, strict=True)], 1
            ),
            dim=1,
        )
        for side in "it"
    )
    return float(measured(img_IS, txt_TS, owner_T)["rsum"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", nargs="+", type=Path)
    parser.add_argument("--arms", default="cca,modest,plain", help=", ".join(ARMS))
    parser.add_argument("--sums", default="modest+cca,modest+plain+cca")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--cca", type=float, default=0.5, help="weight of a closed form in a sum")
    parser.add_argument("--keep", type=Path)
    asked = parser.parse_args()
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    folder = asked.keep or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    alone = [f"{arm}@{seed}" for arm in asked.arms.split(",") for seed in (seeds[:1] if arm in CLOSED else seeds)]
    table = Table("", *(store.stem for store in asked.stores))
    for row in [*alone, *filter(None, asked.sums.split(","))]:
        names = [name.partition("@") for name in row.split("+")]
        trained = sum(arm not in CLOSED for arm, _, _ in names)
        weights = [asked.cca if trained and arm in CLOSED else 1 / max(1, trained) for arm, _, _ in names]
        cells = []
        for store in asked.stores:
            members = [member(store, arm, int(seed or seeds[0]), folder) for arm, _, seed in names]
            owners = {split: load_split([open_store(store)], split).text_image_T for split in SPLITS}
            cells.append(" -> ".join(f"{rsum(members, weights, split, owners[split]):.1f}" for split in SPLITS))
        table.add_row(row, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
