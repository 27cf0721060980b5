"""What lies in a study's folder, for the views of it and for anybody's own analysis.

```
STUDY/study.json          the study, resolved: what was asked, on what, how
STUDY/arms/ARM/seed-N/    a run each (training/run_folder.py), with eval/STORE-SPLIT.json and its ranks beside it;
                          failed.json instead of result.json when its training diverged. Where a run of other settings
                          has that name already, the next one is seed-N-HASH; `runs` in study.json has the place of each
STUDY/results.parquet     one row an arm, seed, split and metric
STUDY/ranks.parquet       one row a query of each finished run
STUDY/verdicts.json       statistics and verdicts; written last: a study is complete when it exists
```
`study.json`: `schema` "alignvl.study/1", `counter` (which study of its workspace this
was), `name`, `question`, `reference` (an arm), `seeds`, `margin` (points of mean
recall), `base` (settings as flags), `factors` ({factor: [its levels]}, in order; empty when the arms are listed),
`arms` ({arm: {"layers": [settings as flags, ...], "levels": [a level of each factor] or [], "settings": every resolved
setting of train, without the seed}}), `store` ({"path", "content_hash", "encoder_hash"}), `split`, `selection_split`,
`device`, `threads` (of each run), `given` (flags of `ablate` that are no default), `made_by`, `runs` ([{"cell", "arm",
"seed", "folder"}, ...]; studies of earlier versions, without it, have them in arms/ARM/seed-N).

Of a study with [data] also `data` (as it is written), `cells` ([{"cell", "set", "condition", "pairs" of the store's
training split, "settings", "path", "content_hash", "encoder_hash"}]); its `store` and the arms' `settings` are of the
cell with the most pairs. `primary` is the metric of the verdicts.

`results.parquet`: `cell` (text, empty without [data]), `arm` (text), `seed` (int64), `split` (text), `metric` (text),
`value` (float64), `reason` (text).
Metrics of the test split: `mean_recall`, `rsum`, and `DIRECTION.METRIC` with DIRECTION `image_to_text` or
`text_to_image` and METRIC `R@1`, `R@5`, `R@10`, `median_rank`, `mean_rank`, `mrr`, `mAP@R`; from the modesty report
`ece`, `nll`, `brier`, `auroc`, `aurc`, `confidence`, `overconfidence` (shares and nats, raw) and the same with
`_fitted` (after one temperature fitted on the selection split). Of the selection split: `mean_recall` and `rsum` of
the epoch kept. Of the train split, where captions were corrupted: `positives.clean.probability`,
`positives.corrupted.probability` and the same with `similarity`. A metric that is not defined
for a run is null. A failed run has one row: split, metric and value null, `reason` says why; `reason` is null in all
other rows.

`ranks.parquet`: `cell`, `arm`, `seed`, `direction`, `query_row` (in the store's `/image` or `/text`), `query_id` (the
image's id, or that of the caption's image), `rank` (0: a hit at 1). Rows of one run stand together, in the order of the
seeds, cells and arms.

`verdicts.json`: see `ablation.verdicts.StudyVerdicts`, whose fields are its keys, with `schema`
"alignvl.verdicts/1" and `sha256` ({file: hash} of the two Parquet files) besides.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow
import pyarrow.parquet

from alignvl_cli.artifacts import check_parts, committed, frame_of, read_json
from alignvl_cli.errors import DataError

if TYPE_CHECKING:
    import pandas

STUDY, RESULTS, RANKS, VERDICTS = "study.json", "results.parquet", "ranks.parquet", "verdicts.json"
ARMS = "arms"
FAILED = "failed.json"
"""In a run's folder: {"reason": ...} of a training that diverged."""
STUDY_SCHEMA, VERDICTS_SCHEMA = "alignvl.study/1", "alignvl.verdicts/1"
STUDY_FAMILY = "alignvl.study/"
"""What the schema of a study begins with, of this and every other version."""


@dataclass(frozen=True)
class Ranks:
    """One direction of one run, query by query; columns as in `ranks.parquet`."""

    query_row_Q: np.ndarray
    query_id_Q: list[str]
    rank_Q: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one arm with one seed."""

    cell: str = ""
    arm: str
    seed: int
    metrics: Mapping[str, Mapping[str, float | None]]
    """Split -> metric -> value; empty for a failed run."""
    ranks: Mapping[str, Ranks]
    """By direction; empty for a failed run."""
    failure: str | None = None
    """Why it has no metrics, in a sentence; None when it has."""
    kept_start: bool = False
    """Whether no epoch of its training was better than its start at CCA, which is then what was evaluated."""


def run_folder(study: Path, arm: str, seed: int, cell: str = "") -> Path:
    """Where a run is put, unless one of other settings lies there."""
    return study / ARMS / arm / re.sub(r"[^\w.+-]", "_", cell) / f"seed-{seed}"


def run_folders(study: Path, record: Mapping[str, Any]) -> dict[tuple[str, str, int], Path]:
    """Cell, arm and seed -> where that run lies, by `study.json`."""
    if "runs" in record:
        return {(run["cell"], run["arm"], run["seed"]): study / run["folder"] for run in record["runs"]}
    return {("", arm, seed): run_folder(study, arm, seed) for arm in record["arms"] for seed in record["seeds"]}


def is_complete_study(path: Path) -> bool:
    return (path / VERDICTS).is_file()


def creation_counter(path: Path) -> int:
    """Which study of its workspace this was, from 1; 0 for what is no study."""
    try:
        return int(read_json(path / STUDY, "study").get("counter", 0))
    except DataError:
        return 0


def read_begun(path: Path) -> dict[str, Any]:
    """`study.json` of a study, finished or not; DataError for what is none."""
    _require_begun(path)
    return read_json(path / STUDY, "study")


def read_study(path: Path) -> dict[str, Any]:
    """`study.json` of a complete study; DataError for what is none."""
    _require_study(path)
    return read_json(path / STUDY, "study")


def read_verdicts(path: Path) -> dict[str, Any]:
    """`verdicts.json` of a complete study; DataError for what is none, or is of another version."""
    _require_study(path)
    verdicts = read_json(path / VERDICTS, "study's verdicts")
    if verdicts.get("schema") != VERDICTS_SCHEMA:
        raise DataError(
            f"{path / VERDICTS}: schema {verdicts.get('schema')!r}, and this version reads {VERDICTS_SCHEMA}"
        )
    check_parts(path, verdicts.pop("sha256", {}), "study's record")
    return verdicts


def _require_begun(path: Path) -> None:
    if not (path / STUDY).is_file():
        raise DataError(f"{path}: not a study, it holds no {STUDY}; `alignvl ablate STUDY.toml` makes one")
    if not str(read_json(path / STUDY, "study").get("schema")).startswith(STUDY_FAMILY):
        raise DataError(
            f"{path}: not a study, its {STUDY} is of another program; `alignvl ablate STUDY.toml` makes one"
        )


def _require_study(path: Path) -> None:
    _require_begun(path)
    if not is_complete_study(path):
        raise DataError(f"{path}: this study is not finished; resume it: `alignvl ablate` with its file and -o {path}")


def write_outcomes(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write both Parquet files, each whole or not at all."""
    rows = [row for outcome in outcomes for row in _result_rows(outcome)]
    results = pyarrow.Table.from_pylist(rows, schema=RESULTS_SCHEMA)
    with committed(path / RESULTS) as scratch:
        pyarrow.parquet.write_table(results, scratch)
    with committed(path / RANKS) as scratch:
        with pyarrow.parquet.ParquetWriter(scratch, RANKS_SCHEMA) as writer:
            for outcome in outcomes:
                for direction, ranks in outcome.ranks.items():
                    writer.write_table(_ranks_table(outcome, direction, ranks))


RESULTS_SCHEMA = pyarrow.schema(
    [
        ("cell", pyarrow.string()),
        ("arm", pyarrow.string()),
        ("seed", pyarrow.int64()),
        ("split", pyarrow.string()),
        ("metric", pyarrow.string()),
        ("value", pyarrow.float64()),
        ("reason", pyarrow.string()),
    ]
)
RANKS_SCHEMA = pyarrow.schema(
    [
        ("cell", pyarrow.string()),
        ("arm", pyarrow.string()),
        ("seed", pyarrow.int64()),
        ("direction", pyarrow.string()),
        ("query_row", pyarrow.int64()),
        ("query_id", pyarrow.string()),
        ("rank", pyarrow.int64()),
    ]
)


def _result_rows(outcome: Outcome) -> Iterator[dict[str, Any]]:
    who = {"cell": outcome.cell, "arm": outcome.arm, "seed": outcome.seed}
    if outcome.failure is not None:
        yield {**who, "split": None, "metric": None, "value": None, "reason": outcome.failure}
    for split, metrics in outcome.metrics.items():
        for metric, value in metrics.items():
            yield {**who, "split": split, "metric": metric, "value": value, "reason": None}


def _ranks_table(outcome: Outcome, direction: str, ranks: Ranks) -> pyarrow.Table:
    count = len(ranks.rank_Q)
    return pyarrow.table(
        {
            "cell": [outcome.cell] * count,
            "arm": [outcome.arm] * count,
            "seed": np.full(count, outcome.seed),
            "direction": [direction] * count,
            "query_row": ranks.query_row_Q,
            "query_id": ranks.query_id_Q,
            "rank": ranks.rank_Q,
        },
        schema=RANKS_SCHEMA,
    )


def verdicts_frame(verdicts: Mapping[str, Any]) -> "pandas.DataFrame":
    """Every figure of `verdicts.json` at full precision: a row an arm and metric, and a row an effect, of each cell;
    and, of a study of several cells, a row for each contrast over its sets, and for each of these sets.

    Columns: kind (`arm`, `effect`; `over sets`, `in set`), name, metric, seeds; mean, sd, ci95_low and ci95_high over
    seeds; difference to the reference, difference_sd, difference_ci95_low, difference_ci95_high. What is tested also
    has crossed_ci95_low and crossed_ci95_high (over seeds and test images), p, p_holm, equivalence_p_holm and verdict,
    else missing. Of several cells: p_max_t, cell, set and condition, and over sets tau and i2.
    """
    rows: list[dict[str, Any]] = []
    for cell in verdicts.get("cells") or [verdicts]:
        where = {key: cell.get(key) for key in ("cell", "set", "condition")}
        rows += [row | where for row in _cell_rows(verdicts["primary"], cell)]
    for found in verdicts.get("over_sets", ()):
        pooled = found["difference"]
        row = {"kind": "over sets", "name": found["name"], "metric": verdicts["primary"], **_moments(None, "mean", "")}
        rows.append(
            row
            | _moments(pooled and {**pooled, "sd": None}, "difference", "difference_")
            | {key: pooled and pooled[key] for key in ("p", "p_holm", "equivalence_p_holm", "tau", "i2")}
            | {"verdict": found["verdict"], "condition": found["condition"]}
        )
        for effect in pooled["sets"] if pooled else ():
            difference = _moments({**effect, "sd": None}, "difference", "difference_")
            rows.append(row | difference | {"kind": "in set", "set": effect["set"], "condition": found["condition"]})
    words = {"kind", "name", "metric", "verdict", "cell", "set", "condition"}
    types = {name: "Int64" if name == "seeds" else "float64" for name in rows[0] if name not in words}
    return frame_of(rows).astype(types)


def _cell_rows(primary: str, cell: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for arm in cell["arms"]:
        for metric, summary in arm["metrics"].items():
            is_primary = metric == primary
            yield {
                "kind": "arm",
                "name": arm["arm"],
                "metric": metric,
                "seeds": summary["seeds"],
                **_moments(summary, "mean", ""),
                **_moments(arm["differences"].get(metric), "difference", "difference_"),
                **_tested(arm["difference"] if is_primary else None),
                "verdict": arm["verdict"] if is_primary else None,
            }
    for effect in cell["effects"]:
        contrast = effect["difference"]
        yield {
            "kind": "effect",
            "name": effect["effect"],
            "metric": primary,
            "seeds": contrast and contrast["seeds"],
            **_moments(None, "mean", ""),
            **_moments(contrast, "difference", "difference_"),
            **_tested(contrast),
            "verdict": effect["verdict"],
        }


def _moments(summary: Mapping[str, Any] | None, mean: str, before: str) -> dict[str, Any]:
    found = summary or {"mean": None, "sd": None, "ci95": None}
    low, high = found["ci95"] or (None, None)
    return {mean: found["mean"], f"{before}sd": found["sd"], f"{before}ci95_low": low, f"{before}ci95_high": high}


def _tested(contrast: Mapping[str, Any] | None) -> dict[str, Any]:
    found = contrast or {}
    low, high = found.get("crossed_ci95") or (None, None)
    ps = {name: found.get(name) for name in ("p", "p_holm", "equivalence_p_holm", "p_max_t")}
    return {"crossed_ci95_low": low, "crossed_ci95_high": high, **ps}
