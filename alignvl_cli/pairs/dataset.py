"""The one door to data: a demo by name, or a file, folder or pattern by the format that it has.

A new format is its name in `config.DatasetFormat` and one file of that name, whose `open_NAME` makes a Dataset; and a
way to tell it in `detection.py`.
"""

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from importlib import import_module
from pathlib import Path

from alignvl_cli.config import DatasetFormat, DatasetOptions
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.pairs.annotations import open_annotations
from alignvl_cli.pairs.demo import open_emoji
from alignvl_cli.pairs.detection import detect
from alignvl_cli.pairs.flickr import open_flickr
from alignvl_cli.pairs.huggingface import HUB
from alignvl_cli.pairs.items import Dataset, ImageSource, Item
from alignvl_cli.pairs.manifest import open_manifest
from alignvl_cli.pairs.splits import check_declared
from alignvl_cli.pairs.tables import csv_rows, jsonl_rows, parquet_rows, tsv_rows
from alignvl_cli.pairs.tars import open_tars

__all__ = ["Dataset", "ImageSource", "Item", "open_dataset"]

DEMO = "demo:"
DEMOS: dict[str, Callable[[], Dataset]] = {f"{DEMO}emoji": open_emoji}
Reader = Callable[[Path, DatasetOptions], Dataset]
READERS: dict[DatasetFormat, Reader] = {
    DatasetFormat.jsonl: partial(open_manifest, kind="jsonl", read_rows=jsonl_rows),
    DatasetFormat.csv: partial(open_manifest, kind="csv", read_rows=csv_rows),
    DatasetFormat.tsv: partial(open_manifest, kind="tsv", read_rows=tsv_rows),
    DatasetFormat.parquet: partial(open_manifest, kind="parquet", read_rows=parquet_rows),
    DatasetFormat.karpathy: open_annotations,
    DatasetFormat.coco: open_annotations,
    DatasetFormat.flickr_token: partial(open_flickr, kind=DatasetFormat.flickr_token),
    DatasetFormat.flickr_csv: partial(open_flickr, kind=DatasetFormat.flickr_csv),
    DatasetFormat.webdataset: open_tars,
}
"""Formats that share a file, or whose file has another name."""
ROOT_ONLY = frozenset({"image_root"})
CAPTIONS_ONLY = frozenset({"caption_column"})
USED: dict[DatasetFormat, frozenset[str]] = {
    DatasetFormat.karpathy: ROOT_ONLY,
    DatasetFormat.coco: ROOT_ONLY,
    DatasetFormat.flickr_token: ROOT_ONLY,
    DatasetFormat.flickr_csv: ROOT_ONLY,
    DatasetFormat.folder: CAPTIONS_ONLY,
    DatasetFormat.webdataset: CAPTIONS_ONLY,
}
"""Options that act on a format; those not in this table use all. Any other option is refused: nobody must believe
that it acted."""


def open_dataset(spec: str, options: DatasetOptions) -> Dataset:
    """The dataset that `spec` names: `demo:emoji`, `hf:org/name`, or a path, whose format is told from what is there
    unless `options.format` says it.

    UsageError for an empty text, a demo or format that there is not, and for options that it has no use for; DataError
    for data that are missing, unreadable or invalid.
    """
    if not spec:  # as a path it would be the current folder
        raise UsageError("the dataset's name is empty (an unset variable?); give a path, hf:org/name or demo:emoji")
    dataset = _open_demo(spec, options) if spec.startswith(DEMO) else _open_path(spec, options)
    check_declared([item.split for item in dataset.items])
    return dataset


def _open_demo(spec: str, options: DatasetOptions) -> Dataset:
    if spec not in DEMOS:
        raise UsageError(f"{spec}: there is no such demo; there is {', '.join(DEMOS)}")
    _refuse_idle(spec, options, frozenset(), f"for {spec}")
    return DEMOS[spec]()


def _open_path(spec: str, options: DatasetOptions) -> Dataset:
    path = Path(spec)
    found = DatasetFormat.huggingface if spec.startswith(HUB) else options.format or detect(path, options.image_column)
    if options.format not in (None, found):
        raise UsageError(f"{spec}: an id of the Hugging Face Hub, so --format {options.format} does not fit")
    if found in USED:
        _refuse_idle(spec, options, USED[found] | {"format"}, f"with --format {found}")
    try:
        return reader_of(found)(path, options)
    except OSError as problem:
        raise DataError(
            f"{problem.filename or path}: cannot read this dataset: {problem.strerror or problem}"
        ) from problem


def reader_of(found: DatasetFormat) -> Reader:
    """As READERS says, else `open_NAME` of the file that has the format's name."""
    if found in READERS:
        return READERS[found]
    reader: Reader = getattr(import_module(f"alignvl_cli.pairs.{found.name}"), f"open_{found.name}")
    return reader


def _refuse_idle(spec: str, options: DatasetOptions, used: frozenset[str], where: str) -> None:
    for field in fields(options):
        if field.name not in used and getattr(options, field.name) != field.default:
            raise UsageError(f"{spec}: --{field.name.replace('_', '-')} has no effect {where}; leave it out")
