"""The one door to data: a demo by name, or a file by the suffix that says its format.

A new format is one file that yields rows (see `tables.py`) or makes a Dataset, and one line here.
"""

import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

from alignvl_cli.config import DatasetOptions
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.pairs.demo import open_emoji
from alignvl_cli.pairs.items import Dataset, ImageSource, Item
from alignvl_cli.pairs.manifest import open_manifest
from alignvl_cli.pairs.splits import check_declared
from alignvl_cli.pairs.tables import csv_rows, jsonl_rows, parquet_rows, tsv_rows

__all__ = ["Dataset", "ImageSource", "Item", "open_dataset"]

DEMO = "demo:"
DEMOS: dict[str, Callable[[], Dataset]] = {f"{DEMO}emoji": open_emoji}
FILES: dict[str, Callable[[Path, DatasetOptions], Dataset]] = {
    ".jsonl": partial(open_manifest, kind="jsonl", read_rows=jsonl_rows),
    ".csv": partial(open_manifest, kind="csv", read_rows=csv_rows),
    ".tsv": partial(open_manifest, kind="tsv", read_rows=tsv_rows),
    ".parquet": partial(open_manifest, kind="parquet", read_rows=parquet_rows),
}


def open_dataset(spec: str, options: DatasetOptions) -> Dataset:
    """The dataset that `spec` names: `demo:emoji`, or the path of a manifest.

    UsageError for a demo or format that there is not, and for options that a demo has no use for;
    DataError for a file that is missing, unreadable or invalid.
    """
    dataset = _open_demo(spec, options) if spec.startswith(DEMO) else _open_file(Path(spec), options)
    check_declared([item.split for item in dataset.items])
    return dataset


def _open_demo(spec: str, options: DatasetOptions) -> Dataset:
    if spec not in DEMOS:
        raise UsageError(f"{spec}: there is no such demo; there is {', '.join(DEMOS)}")
    if options != DatasetOptions():
        raise UsageError(f"--image-root, --image-column and --caption-column are for manifests, not for {spec}")
    return DEMOS[spec]()


def _open_file(path: Path, options: DatasetOptions) -> Dataset:
    try:
        mode = os.stat(path).st_mode
    except OSError as problem:
        raise DataError(
            f"{path}: cannot read this dataset: {problem.strerror}; give the path of a manifest "
            f"({', '.join(FILES)}) or {', '.join(DEMOS)}"
        ) from problem
    reader = FILES.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"{path}: cannot tell the format; a dataset is one of {', '.join([*FILES, *DEMOS])}")
    if not stat.S_ISREG(mode):
        raise DataError(f"{path}: not a regular file, which a manifest has to be")
    return reader(path, options)
