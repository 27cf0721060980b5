"""Opens a dataset: the demo by name, or a file, folder or pattern by its format, which is told from the path and from
what stands there first; and finds a picture again from the uri that a store keeps.

A new format is its name in `settings.DatasetFormat`, one file of that name whose `open_NAME` makes a Dataset, and a way
to tell it here.
"""

import codecs
import os
import re
import stat
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from functools import cache, partial
from importlib import import_module
from pathlib import Path

from alignvl_cli.datasets.annotations import is_csv_header, is_token_line, open_annotations, open_flickr
from alignvl_cli.datasets.dataset import MOST_BYTES, Dataset, ImageSource, Item
from alignvl_cli.datasets.demo import open_emoji
from alignvl_cli.datasets.folders import IMAGE_SUFFIXES, UNREAD_SUFFIXES, open_folder
from alignvl_cli.datasets.grouping import open_manifest
from alignvl_cli.datasets.splits import check_declared
from alignvl_cli.datasets.tables import csv_rows, json_rows, jsonl_rows, parquet_rows, tsv_rows
from alignvl_cli.datasets.webdataset import PACKED_SUFFIXES, SEPARATOR, expanded, open_tars
from alignvl_cli.errors import AlignvlError, DataError, UsageError
from alignvl_cli.remote import BETWEEN, Cache, RemoteFile, folder_of, inner_path, is_url, joined, list_names, shown
from alignvl_cli.settings import CACHE_GIB, DatasetFormat, DatasetOptions

FIRST_BYTES = 4096
HUB = "hf:"
SAVED_MARKS = ("dataset_dict.json", "state.json")


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
    if remedy := next((REFUSED[end] for end in REFUSED if path.name.lower().endswith(end)), None):
        raise UsageError(f"{path}: {remedy}; a dataset is {_KNOWN}; or say which with --format")
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
    if "tar" in suffixes:
        return DatasetFormat.webdataset
    if "parquet" in suffixes:
        return DatasetFormat.huggingface
    seen = ", ".join(f".{suffix}" for suffix in sorted(suffixes)[:8]) or "nothing"
    unread = sorted(suffixes & UNREAD_SUFFIXES)
    advice = (
        f"; pictures of kinds that are not read ({', '.join(unread)}): convert them to JPEG or PNG" if unread else ""
    )
    raise DataError(f"{path}: a folder with no picture, no tar and no Parquet file in it (it has: {seen}){advice}")


def is_saved(path: Path) -> bool:
    """Whether `save_to_disk` of Hugging Face's datasets wrote this folder."""
    return any((path / mark).is_file() for mark in SAVED_MARKS)


def _of_csv(path: Path, image_column: str) -> DatasetFormat:
    return DatasetFormat.flickr_csv if is_csv_header(_first_line(path)) else DatasetFormat.csv


def _of_json(path: Path, image_column: str) -> DatasetFormat:
    with open(path, "rb") as stream:
        start = stream.read(FIRST_BYTES).removeprefix(codecs.BOM_UTF8).lstrip()
    return DatasetFormat.json if start.startswith(b"[") else DatasetFormat.karpathy  # or COCO: its reader tells


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

    from alignvl_cli.datasets.huggingface import embeds

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
    ".ndjson": lambda path, image_column: DatasetFormat.jsonl,
    ".json": _of_json,
    ".txt": _of_text,
    ".token": lambda path, image_column: DatasetFormat.flickr_token,
    ".tar": lambda path, image_column: DatasetFormat.webdataset,
}
_SPREADSHEET = "a spreadsheet, which is not read; save its sheet as CSV (UTF-8) and give that file"
_PACKED = "compressed, and read unpacked alone; unpack it and give what was in it"
_IN_FOLDER = "a part of a saved dataset; give the folder that holds it"
REFUSED = {
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".numbers"), _SPREADSHEET),
    **dict.fromkeys((".zip", ".7z", ".rar", ".gz", ".bz2", ".xz", ".zst"), _PACKED),
    **dict.fromkeys((".arrow", ".feather"), _IN_FOLDER),
    ".h5": "a store of latents, or another HDF5 file, and no dataset; `alignvl inspect` shows a store",
}
"""Files that people have their data in and that are not read, with what to do."""
_KNOWN = (
    "a manifest (.jsonl, .csv, .tsv, .parquet), an annotation file (.json, .token, .txt), a folder of pictures, "
    "tars, a Hugging Face dataset (a folder, or hf:org/name), or demo:emoji"
)


__all__ = ["Dataset", "ImageSource", "Item", "open_dataset"]

DEMO = "demo:"
DEMOS: dict[str, Callable[[], Dataset]] = {f"{DEMO}emoji": open_emoji}
Reader = Callable[[Path, DatasetOptions], Dataset]
READERS: dict[DatasetFormat, Reader] = {
    DatasetFormat.jsonl: partial(open_manifest, kind="jsonl", read_rows=jsonl_rows),
    DatasetFormat.csv: partial(open_manifest, kind="csv", read_rows=csv_rows),
    DatasetFormat.tsv: partial(open_manifest, kind="tsv", read_rows=tsv_rows),
    DatasetFormat.parquet: partial(open_manifest, kind="parquet", read_rows=parquet_rows),
    DatasetFormat.json: partial(open_manifest, kind="json", read_rows=json_rows),
    DatasetFormat.karpathy: open_annotations,
    DatasetFormat.coco: open_annotations,
    DatasetFormat.flickr_token: partial(open_flickr, kind=DatasetFormat.flickr_token),
    DatasetFormat.flickr_csv: partial(open_flickr, kind=DatasetFormat.flickr_csv),
    DatasetFormat.folder: open_folder,
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


def open_dataset(spec: str, options: DatasetOptions, cache: Cache | None = None) -> Dataset:
    """The dataset that `spec` names: `demo:emoji`, `hf:org/name`, or a path or URL, whose format is told from what is
    there unless `options.format` says it. Files behind a URL that list pictures are copied to the `cache` (None: to
    the usual place).

    UsageError for an empty text, a demo or format that there is not, and for options that it has no use for; DataError
    for data that are missing, unreadable or invalid.
    """
    if not spec:  # as a path it would be the current folder
        raise UsageError("the dataset's name is empty (an unset variable?); give a path, hf:org/name or demo:emoji")
    if is_url(spec):
        dataset = _open_url(spec, options, cache or cache_at(None, CACHE_GIB))
    else:
        dataset = _open_demo(spec, options) if spec.startswith(DEMO) else _open_path(spec, options)
    check_declared([item.split for item in dataset.items if not item.source.absent])
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
    return _read(found, path, options, spec)


def _read(found: DatasetFormat, path: Path, options: DatasetOptions, spec: str) -> Dataset:
    """What is at `path`, which the user names `spec`."""
    if found in USED:
        _refuse_idle(spec, options, USED[found] | {"format"}, f"with --format {found}")
    try:
        return reader_of(found)(path, options)
    except OSError as problem:
        raise DataError(
            f"{problem.filename or path}: cannot read this dataset: {problem.strerror or problem}"
        ) from problem


def _open_url(spec: str, options: DatasetOptions, cache: Cache) -> Dataset:
    """Copies of the files that list pictures are read as any other; what is said and kept of them has their URLs."""
    urls = _named(spec, is_file=options.format not in (None, DatasetFormat.webdataset, DatasetFormat.huggingface))
    path = Path(inner_path(BETWEEN.split(spec)[-1]))
    files: dict[str, RemoteFile] = {}

    def copied(*, keep_all: bool = False) -> Iterator[tuple[Path, str]]:
        for file, copy in cache.copies(urls, keep_all=keep_all):
            files[str(copy)] = file
            yield copy, os.path.relpath(inner_path(file.url), path)

    try:
        are_tars = all(inner_path(url).lower().endswith((".tar", *PACKED_SUFFIXES)) for url in urls)
        if (options.format or (DatasetFormat.webdataset if are_tars else None)) is DatasetFormat.webdataset:
            _refuse_idle(shown(spec), options, USED[DatasetFormat.webdataset] | {"format"}, "with --format webdataset")
            return _behind_urls(open_tars(path, options, copied()), files)
        named = {name: copy for copy, name in copied(keep_all=True)}
        paths = [*named.values()]
        found = options.format or detect(paths[0], options.image_column)
        if found is DatasetFormat.huggingface:
            from alignvl_cli.datasets.huggingface import open_huggingface

            return open_huggingface(path, options, named)
        if len(paths) > 1:
            raise UsageError(f"{shown(spec)}: several files, which only tars and Parquet with pictures may be")
        if options.image_root is None and "image_root" in USED.get(found, ROOT_ONLY):
            options = replace(options, image_root=folder_of(spec))
        return _behind_urls(_read(found, paths[0], options, shown(spec)), files)
    except FileNotFoundError as problem:
        raise DataError(f"{problem.filename}: cannot read this dataset: {problem.strerror}") from problem
    except AlignvlError as problem:
        raise type(problem)(_with_urls(str(problem), files)) from problem


def _named(spec: str, *, is_file: bool) -> list[str]:
    """Each URL that a pattern, several patterns or a folder stand for; of a folder its tars, else those below it, else
    its Parquet files, without hidden ones, in the order of a folder here."""
    urls = [url for pattern in BETWEEN.split(spec) for url in expanded(pattern)]
    if is_file or len(urls) > 1 or "." in inner_path(spec).rpartition("/")[2]:
        return urls
    listed = [name.split("/") for name in list_names(spec) if not f"/{name}".count("/.")]
    listed.sort(key=lambda parts: (parts[:-1], parts[-1]))
    for end in (".tar", ".parquet"):
        if found := [parts for parts in listed if parts[-1].lower().endswith(end)]:
            return [joined(spec, "/".join(parts)) for parts in found if len(parts) == 1 or len(found[0]) > 1]
    raise DataError(
        f"{shown(spec)}: no tar and no Parquet file in this folder or below ({len(listed)} files); of pictures that "
        "lie there, give the URL of a file that lists them with their captions"
    )


def _behind_urls(dataset: Dataset, files: Mapping[str, RemoteFile]) -> Dataset:
    """The dataset with the URLs of what it was read from."""
    items = []
    for item in dataset.items:
        path = str(item.source.path)
        if (file := files.get(path)) is not None and not item.source.absent:
            uri = shown(file.url) + item.uri[len(path) :]
            item = replace(item, uri=uri, source=replace(item.source, path=Path(path), remote=file))
        items.append(item)
    notes = tuple(_with_urls(note, files) for note in dataset.notes)
    return replace(dataset, items=items, notes=notes)


def _with_urls(text: str, files: Mapping[str, RemoteFile]) -> str:
    for path, file in files.items():
        text = text.replace(path, shown(file.url))
    return text


def cache_at(folder: Path | None, gib: float, told: Callable[[int, int], None] = lambda done, total: None) -> Cache:
    """The cache at `folder`, or in the user's folder of caches; `told` as of `Cache`."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "alignvl")
    return Cache((folder or usual).absolute(), round(gib * 2**30), told)


def reader_of(found: DatasetFormat) -> Reader:
    """As READERS says, else `open_NAME` of the file that has the format's name."""
    if found in READERS:
        return READERS[found]
    reader: Reader = getattr(import_module(f"alignvl_cli.datasets.{found.name}"), f"open_{found.name}")
    return reader


def _refuse_idle(spec: str, options: DatasetOptions, used: frozenset[str], where: str) -> None:
    for field in fields(options):
        if field.name not in used and getattr(options, field.name) != field.default:
            raise UsageError(f"{spec}: --{field.name.replace('_', '-')} has no effect {where}; leave it out")


INSIDE_ARROW = re.compile(r"\.arrow#\d+$")
"""The uri of a picture in a row of an Arrow file."""


def picture_bytes(uri: str) -> bytes | None:
    """The image file that a store's `uri` names: a file, a member of a tar, or one of a demo; None when it is gone.

    A picture inside an Arrow file (`FILE.arrow#ROW`) is not looked for: those files are a cache, and go.
    """
    try:
        if uri.startswith(DEMO):
            return _demo_pictures(uri.partition("/")[0])[uri].read(MOST_BYTES)
        path = Path(uri)
        if path.is_file():
            return ImageSource(path).read(MOST_BYTES)
        tar = next((parent for parent in path.parents if parent.is_file()), None)
        return None if tar is None else _tar_pictures(tar)[str(path.relative_to(tar))].read(MOST_BYTES)
    except (OSError, KeyError, tarfile.TarError, AlignvlError):
        return None


@cache
def _demo_pictures(demo: str) -> dict[str, ImageSource]:
    return {item.uri: item.source for item in DEMOS[demo]().items}


@cache
def _tar_pictures(tar: Path) -> dict[str, ImageSource]:
    with tarfile.open(tar, "r:") as archive:
        return {
            member.name.removeprefix("./"): ImageSource(tar, member.offset_data, member.size)
            for member in archive
            if member.isreg()
        }
