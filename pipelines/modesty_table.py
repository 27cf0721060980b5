"""The modesty reports of several runs as Markdown: means over seeds, as trained and after the fitted temperature.

    alignvl eval RUN... --calibration --json | python pipelines/modesty_table.py REFERENCE

An arm is what a run is named after, number and seed apart: `alignvl-no-es` of `0002-alignvl-no-es-s0`. Beneath the two
tables stands what the first run's arm has more than REFERENCE, paired by seed, with t intervals over the seeds.
"""

# A arms, S seeds.

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from scipy.stats import t

RUN_NAME = re.compile(r"(?:\d{4,}-)?(?P<arm>.+)-s(?P<seed>\d+)")
DIRECTIONS = {"image_to_text": "image to text", "text_to_image": "text to image"}
STATES = {"raw": "as trained", "fitted": "tau fitted"}
COLUMNS = {  # key of the report: (title, factor, decimals)
    "temperature": ("tau", 1, 3),
    "accuracy": ("accuracy", 100, 1),
    "confidence": ("confidence", 100, 1),
    "overconfidence": ("overconfidence", 100, 1),
    "ece": ("ECE", 100, 1),
    "nll": ("NLL", 1, 3),
    "brier": ("Brier", 1, 3),
    "auroc": ("AUROC", 1, 3),
    "aurc": ("AURC", 1, 3),
}
SIGNED = "overconfidence"

Reports = Mapping[str, Mapping[int, dict[str, Any]]]
"""Arm -> seed -> the `calibration` of its evaluation."""


def read_reports(table: Mapping[str, Any]) -> Reports:
    """The reports of a table of runs; SystemExit, with what to type, for anything else."""
    reports: dict[str, dict[int, dict[str, Any]]] = {}
    for result in table.get("results", []):
        name = PurePath(result["run"]).name
        if not (match := RUN_NAME.fullmatch(name)):
            raise SystemExit(f"{result['run']}: wanted a run named by `alignvl train`, such as 0001-alignvl-s0")
        if not (result["calibration"] and result["calibration"]["fitted"]):
            raise SystemExit(f"{name}: no calibration with a fitted temperature; evaluate with --calibration")
        seeds = reports.setdefault(match["arm"], {})
        if int(match["seed"]) in seeds:
            raise SystemExit(f"{match['arm']} has seed {match['seed']} twice")
        seeds[int(match["seed"])] = result["calibration"]
    if not reports or len({frozenset(seeds) for seeds in reports.values()}) > 1:
        raise SystemExit("wanted several runs, every arm with the same seeds: alignvl eval RUN... --calibration --json")
    return reports


def figures(reports: Mapping[int, dict[str, Any]], direction: str, state: str, key: str) -> np.ndarray:
    """One figure of every seed, in the order of the seeds: (S,), NaN where a report has none."""
    at_S = [reports[seed][state] for seed in sorted(reports)]
    found_S = [at["temperature"] if key == "temperature" else at[direction][key] for at in at_S]
    return np.array(found_S, dtype=float)


def mean_and_spread(value_S: np.ndarray, key: str) -> str:
    """`12.3 ± 0.4`: the mean and the standard deviation over seeds; `-` where a seed has no figure."""
    _, factor, decimals = COLUMNS[key]
    if np.isnan(value_S).any():
        return "-"
    mean = format(factor * value_S.mean(), f"{'+' if key == SIGNED else ''}.{decimals}f")
    return f"{mean} ± {factor * value_S.std(ddof=1):.{decimals}f}" if len(value_S) > 1 else mean


def difference(value_S: np.ndarray, key: str) -> str:
    """`+1.2 (+0.3 to +2.1)`: the mean of paired differences and its 95 % t interval; `-` as above."""
    _, factor, decimals = COLUMNS[key]
    form = f"+.{decimals}f"
    if np.isnan(value_S).any():
        return "-"
    if len(value_S) < 2:
        return format(factor * value_S.mean(), form)
    half = t.ppf(0.975, len(value_S) - 1) * value_S.std(ddof=1) / np.sqrt(len(value_S))
    low, high = value_S.mean() - half, value_S.mean() + half
    return f"{factor * value_S.mean():{form}} ({factor * low:{form}} to {factor * high:{form}})"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """A Markdown table whose first `left` columns are words."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", help="the arm that the first is compared with, e.g. alignvl-no-es")
    reference = parser.parse_args().reference
    table = json.load(sys.stdin)
    reports = read_reports(table)
    if reference not in reports:
        raise SystemExit(f"no run of {reference}; there are {', '.join(reports)}")
    arm, first = next(iter(reports)), table["results"][0]
    seeds = sorted(reports[arm])
    titles = [title for title, _, _ in COLUMNS.values()]
    for direction, words in DIRECTIONS.items():
        rows = [
            [name, shown, *(mean_and_spread(figures(of_seed, direction, state, key), key) for key in COLUMNS)]
            for state, shown in STATES.items()
            for name, of_seed in reports.items()
        ]
        print(f"**{words}**, mean ± standard deviation over seeds {', '.join(map(str, seeds))}\n")
        print(markdown(["arm", "temperature", *titles], rows, left=2) + "\n")
    one, other = reports[arm], reports[reference]
    rows = [
        [words, shown]
        + [
            difference(figures(one, direction, state, key) - figures(other, direction, state, key), key)
            for key in COLUMNS
        ]
        for direction, words in DIRECTIONS.items()
        for state, shown in STATES.items()
    ]
    print(f"**{arm} less {reference}**, paired by seed, with 95 % t intervals over the seeds\n")
    print(markdown(["direction", "temperature", *titles], rows, left=2) + "\n")
    print(
        f"Split {first['split']}: {first['images']:,} images in the gallery, {first['captions']:,} captions. Accuracy, "
        f"confidence, overconfidence and ECE in %, NLL in nats. The temperature was fitted on split "
        f"{first['calibration']['fitted_on']}, {first['calibration']['fitted_gallery_images']:,} images."
    )


if __name__ == "__main__":
    main()
