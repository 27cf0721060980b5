"""Which format a dataset has, told from its path and, where that is not enough, from what stands there first."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

from alignvl_cli.config import DatasetFormat
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.pairs.braces import expanded
from alignvl_cli.pairs.flickr import is_csv_header, is_token_line
from alignvl_cli.pairs.huggingface import is_saved
from alignvl_cli.pairs.sidecars import IMAGE_SUFFIXES
from alignvl_cli.pairs.tars import PACKED_SUFFIXES, SEPARATOR

FIRST_BYTES = 4096


def detect(path: Path, image_column: str) -> DatasetFormat:
    """The format of the file, folder or pattern of tars at `path`; Parquet with pictures in `image_column` is a
    Hugging Face dataset, with paths there a manifest.

    UsageError when it cannot be told; DataError when there is nothing to read.
    """
    if not os.path.exists(path):  # a name with braces in it that is there is no pattern
        first = next(iter(expanded(str(path).split(SEPARATOR)[0])))
        if first != str(path):
            if not first.lower().endswith(".tar"):
                raise UsageError(f"{path}: a pattern names tars, like shard-{{0000..0009}}.tar")
            return DatasetFormat.webdataset
    try:
        mode = os.stat(path).st_mode
    except OSError as problem:
        raise DataError(f"{path}: cannot read this dataset: {problem.strerror}; give the path of {_KNOWN}") from problem
    if stat.S_ISDIR(mode):
        return _of_folder(path)
    if path.name.lower().endswith(PACKED_SUFFIXES):
        return DatasetFormat.webdataset  # whose reader says what to do
    tell = BY_SUFFIX.get(path.suffix.lower())
    if tell is None:
        raise UsageError(f"{path}: cannot tell the format; a dataset is {_KNOWN}; or say which with --format")
    if not stat.S_ISREG(mode):
        raise DataError(f"{path}: not a regular file")
    return tell(path, image_column)


def _of_folder(path: Path) -> DatasetFormat:
    """Told from the files in it: a saved dataset, pictures, tars or Parquet, whichever comes first in this list."""
    if is_saved(path):
        return DatasetFormat.huggingface
    suffixes = set()
    for _, below, files in os.walk(path):
        below.sort()
        suffixes |= {name.rpartition(".")[2].lower() for name in files if "." in name and not name.startswith(".")}
        if suffixes & IMAGE_SUFFIXES:
            return DatasetFormat.folder
    if any(entry.suffix.lower() == ".tar" for entry in path.iterdir()):
        return DatasetFormat.webdataset
    if "parquet" in suffixes:
        return DatasetFormat.huggingface
    seen = ", ".join(f".{suffix}" for suffix in sorted(suffixes)[:8]) or "nothing"
    raise DataError(f"{path}: a folder with no picture, no tar and no Parquet file in it (it has: {seen})")


def _of_csv(path: Path, image_column: str) -> DatasetFormat:
    return DatasetFormat.flickr_csv if is_csv_header(_first_line(path)) else DatasetFormat.csv


def _of_text(path: Path, image_column: str) -> DatasetFormat:
    if is_token_line(_first_line(path)):
        return DatasetFormat.flickr_token
    raise UsageError(
        f"{path}: cannot tell the format, its first line is not name.jpg#0<tab>caption as in Flickr's token files; "
        "say which it is with --format (a list like image,caption is --format csv)"
    )


def _of_parquet(path: Path, image_column: str) -> DatasetFormat:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from alignvl_cli.pairs.arrow import embeds

    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError):  # the reader says what is wrong
        return DatasetFormat.parquet
    has_pictures = any(field.name == image_column and embeds(field.type) for field in schema)
    return DatasetFormat.huggingface if has_pictures else DatasetFormat.parquet


def _first_line(path: Path) -> str:
    with open(path, "rb") as stream:
        return stream.readline(FIRST_BYTES).decode("utf-8-sig", errors="replace").rstrip("\r\n")


BY_SUFFIX: dict[str, Callable[[Path, str], DatasetFormat]] = {
    ".jsonl": lambda path, image_column: DatasetFormat.jsonl,
    ".csv": _of_csv,
    ".tsv": lambda path, image_column: DatasetFormat.tsv,
    ".parquet": _of_parquet,
    ".json": lambda path, image_column: DatasetFormat.karpathy,  # or COCO: its reader tells them apart
    ".txt": _of_text,
    ".token": lambda path, image_column: DatasetFormat.flickr_token,
    ".tar": lambda path, image_column: DatasetFormat.webdataset,
}
_KNOWN = (
    "a manifest (.jsonl, .csv, .tsv, .parquet), an annotation file (.json, .token, .txt), a folder of pictures, "
    "tars, a Hugging Face dataset (a folder, or hf:org/name), or demo:emoji"
)
