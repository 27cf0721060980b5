"""The recalls of every run of a study, a row each: python pipelines/study_runs.py STUDY FILE.csv"""

import sys
from pathlib import Path

import pandas as pd

RECALLS = [f"{direction}.R@{k}" for direction in ("image_to_text", "text_to_image") for k in (1, 5, 10)]


def main() -> None:
    study, output = map(Path, sys.argv[1:])
    found = pd.read_parquet(study / "results.parquet")
    rows = found[found["split"] == "test"].pivot(index=["cell", "arm", "seed"], columns="metric", values="value")
    rows[["mean_recall", "rsum", *RECALLS]].round(3).to_csv(output)


if __name__ == "__main__":
    main()
