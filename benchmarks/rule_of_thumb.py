"""Whether an ingredient's effect on a set can be told from the data beforehand: a rule, tested on sets left out.

    alignvl report surface -o surface.csv
    python benchmarks/rule_of_thumb.py surface.csv STORE...

A rule is a least-squares line of the effect of an ingredient in a cell (a set at a number of training pairs) on log10
of the pairs; the larger rule, also on captions an image and on the mutual-kNN agreement of the latents of 1,000
training images. It is fitted on all sets but one and tells the effects on that one, for each set in turn. Beside it
stands what a mean over the other sets tells. A rule that holds has the smaller error, and the right sign oftener.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from alignvl_cli import open_store
from alignvl_cli.retrieval.probe import probe
from alignvl_cli.store.reader import Store

SAMPLE = 1000


def properties(store: Store) -> tuple[int, float, float]:
    """Training pairs, captions an image, and mutual-kNN agreement."""
    rows = store.rows("train")
    return len(rows.text), len(rows.text) / len(rows.image), probe(store, SAMPLE).mutual_knn["train"].value


def left_out(x_CP: np.ndarray, effect_C: np.ndarray, set_C: np.ndarray) -> np.ndarray:
    """What the line fitted on the other sets tells of each cell (C,); of no property (P = 0), their mean."""
    told_C = np.empty(len(effect_C))
    design_CP = np.column_stack([np.ones(len(x_CP)), x_CP])
    for name in np.unique(set_C):
        out_C = set_C == name
        weights_P, *_ = np.linalg.lstsq(design_CP[~out_C], effect_C[~out_C], rcond=None)
        told_C[out_C] = design_CP[out_C] @ weights_P
    return told_C


def error(told_C: np.ndarray, effect_C: np.ndarray) -> str:
    """Root of the mean square, in points, and how often the sign is right."""
    signs = int((np.sign(told_C) == np.sign(effect_C)).sum())
    return f"{np.sqrt(np.mean(np.square(told_C - effect_C))):.2f}, {signs} of {len(effect_C)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("stores", nargs="+", type=Path)
    asked = parser.parse_args()
    known = {path.stem: properties(open_store(path)) for path in asked.stores}
    rows = pd.read_csv(asked.csv)
    rows = rows[rows["difference"].notna() & rows["cell"].notna() & (rows["metric"] == "mean_recall")]
    table = Table(
        "ingredient", "cells", "effect: mean, least, most", "mean: error, sign right", "rule of pairs", "larger rule",
        title="Points of mean recall against the reference; each set told from the others",
    )  # fmt: skip
    for name, cells in rows.groupby("name", sort=False):
        whole = [known[one][0] for one in cells["set"]]
        pairs = [total if size == "all" else int(size) for total, size in zip(whole, cells["condition"], strict=True)]
        shape = [known[one][1:] for one in cells["set"]]
        x_CP = np.column_stack([np.log10(pairs), np.array(shape)])
        effect_C = cells["difference"].to_numpy()
        told = [left_out(x_CP[:, :known_of], effect_C, cells["set"].to_numpy()) for known_of in (0, 1, 3)]
        spread = f"{effect_C.mean():+.2f}, {effect_C.min():+.2f}, {effect_C.max():+.2f}"
        table.add_row(str(name), str(len(cells)), spread, *(error(told_C, effect_C) for told_C in told))
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
