"""Writes an evaluation beside the run that it is of."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from alignvl_cli.provenance import check_parts, committed, file_sha256, read_json, write_json
from alignvl_cli.retrieval.evaluation import Evaluation
from alignvl_cli.retrieval.metrics import QueryRanks
from alignvl_cli.retrieval.protocol import DEFAULT_PROTOCOL, Protocol
from alignvl_cli.runs.folder import Run


def save_evaluation(run: Run, evaluation: Evaluation) -> Path:
    """Write `RUN/eval/STORE-SPLIT.json` and the ranks beside it, each whole or not at all; returns the JSON's path.

    The Parquet has a row a query: direction, query_row (in the store's `/image` or `/text`), query_id (the image's, or
    the caption's image's) and rank, 0 being a hit at 1. Another protocol than the default is part of the name. An
    earlier evaluation of this name is replaced.
    """
    path = evaluation_path(run.path, Path(evaluation.store), evaluation.split, evaluation.protocol)
    path.parent.mkdir(exist_ok=True)
    ranks = path.with_suffix(".parquet")
    with committed(ranks) as scratch:
        pyarrow.parquet.write_table(_ranks_table(evaluation), scratch)
    write_json(path, {**evaluation.to_json(), "sha256": {ranks.name: file_sha256(ranks)}})
    return path


def read_evaluation(path: Path) -> dict[str, Any]:
    """A saved evaluation, whose ranks beside it are verified; DataError for one that is missing or damaged."""
    evaluation = read_json(path, "evaluation")
    check_parts(path.parent, evaluation.get("sha256", {}), "evaluation's ranks")
    return evaluation


def evaluation_path(run: Path, store: Path, split: str, protocol: Protocol = DEFAULT_PROTOCOL) -> Path:
    """Where the evaluation of a run on a split is saved; its ranks, `.parquet`, are there when it is."""
    name = f"{store.stem}-{split}"
    name += f"-{protocol.folds}-folds" if protocol.folds > 1 else ""
    name += "-identical-hits" if protocol.identical_hits else ""
    return run / "eval" / (re.sub(r"[^\w.+-]", "_", name) + ".json")


def _ranks_table(evaluation: Evaluation) -> pyarrow.Table:
    directions: dict[str, QueryRanks] = {
        "image_to_text": evaluation.image_to_text,
        "text_to_image": evaluation.text_to_image,
    }
    return pyarrow.table(
        {
            "direction": [name for name, ranks in directions.items() for _ in ranks.id_Q],
            "query_row": np.concatenate([ranks.row_Q for ranks in directions.values()]).astype(np.int64),
            "query_id": [query for ranks in directions.values() for query in ranks.id_Q],
            "rank": np.concatenate([ranks.rank_Q for ranks in directions.values()]).astype(np.int64),
        }
    )
