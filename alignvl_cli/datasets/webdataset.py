"""Webdataset tars: pictures with their captions beside them, read in place.

Nothing is unpacked and no name in a tar is ever used as a path: a picture is a stretch of its tar's bytes.
"""

import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from alignvl_cli.datasets.dataset import Dataset, ImageSource, Item, listing_sha256, make_dataset, storable
from alignvl_cli.datasets.folders import IMAGE_SUFFIXES, SIDECAR_SUFFIXES, SidecarReader, Unread, pairing_name
from alignvl_cli.datasets.splits import USUAL, split_name
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.remote import shown
from alignvl_cli.settings import DatasetFormat, DatasetOptions

SEPARATOR = "::"
"""Between patterns, as webdataset and open_clip have it."""
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MOST_NAMES = 1_000_000
"""That one pattern may stand for: a slip of the finger must not fill the memory."""
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""First bytes of compressed files."""
PACKED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(slots=True)
class _Sample:
    """The members of one key: their names and places, by suffix."""

    pictures: dict[str, tuple[str, ImageSource]] = field(default_factory=dict)
    sidecars: dict[str, tuple[str, ImageSource]] = field(default_factory=dict)


@dataclass(slots=True)
class _Findings:
    """What was left out, over all tars."""

    odd: int = 0
    """Links, devices, pipes, sparse files, and names that lead out of the tar."""
    strays: int = 0
    """Samples without a picture."""
    unread: Unread = field(default_factory=Unread)
    open_ended: list[str] = field(default_factory=list)
    """Tars without the end mark."""


def open_tars(path: Path, options: DatasetOptions, tars: Iterable[tuple[Path, str]] | None = None) -> Dataset:
    """The pictures of one tar, of all that a brace pattern names (several patterns: joined by `::`), or of all in a
    folder, in the order of the tars and then of the pictures in each; or of `tars` in place of what is at `path`, each
    with its path from there on and read before the next is asked for.

    Members belong together when their names are equal up to the first dot of the last part, wherever in
    the tar they stand; hidden ones are passed over, as in a folder. The id is the picture's name in the tar; if one
    name stands in several tars, all ids begin with the name of their tar, and where that is not enough with the
    folders above it too. DataError for a tar that is missing, compressed, damaged or
    ambiguous, and when there is no pair at all.
    """
    reader = SidecarReader(options)
    found = _Findings()
    items: list[Item] = []
    names: dict[Path, str] = {}
    folder = os.path.abspath(path)
    for tar, name in ((tar, os.path.relpath(tar, folder)) for tar in _paths(path)) if tars is None else tars:
        _require_plain(tar)
        items += _items(tar, reader, found)
        names[tar] = name
    items = _told_apart(items)
    notes = reader.notes() + found.unread.notes()
    if split_of := _folder_splits(names):
        items = [replace(item, split=item.split or split_of[item.source.path]) for item in items]
        notes.append("the folders of the tars are the splits")
    if found.odd:
        notes.append(
            f"{found.odd} members were left out: links, devices, sparse files or names that lead out of the tar"
        )
    if found.strays:
        notes.append(f"{found.strays} samples have no picture, and were left out")
    if found.open_ended:
        notes.append(f"{len(found.open_ended)} tars lack the end mark and may be cut short: {found.open_ended[0]}, ...")
    return make_dataset(
        path,
        items,
        reader.cleaner,
        kind=DatasetFormat.webdataset,
        sha256=listing_sha256(items),
        name=path.name.replace("{", "").replace("}", ""),
        options={"caption_column": options.caption_column},
        notes=notes,
    )


def _paths(path: Path) -> list[Path]:
    """The tars by absolute path, each there and not compressed: all are looked at before one is read."""
    if os.path.isdir(path):
        paths = _tars_in(path) or [tar for folder in _folders(path) for tar in _tars_in(folder)]
        if not paths:
            raise DataError(f"{path}: no .tar in this folder or below")
    elif os.path.exists(path):
        paths = [path]  # with a brace in its name or not
    else:
        paths = [Path(name) for pattern in str(path).split(SEPARATOR) for name in expanded(pattern)]
    paths = [Path(os.path.abspath(tar)) for tar in paths]
    for tar in paths:
        _require_plain(tar)
    return paths


def _require_plain(tar: Path) -> None:
    """DataError for a tar that is not there, or compressed."""
    try:
        head = ImageSource(tar, 0, min(8, os.stat(tar).st_size)).read()
    except OSError as problem:
        raise DataError(f"{tar}: cannot read this tar: {problem.strerror or problem}") from problem
    for magic, program in PACKED.items():
        if head.startswith(magic):
            raise DataError(
                f"{tar}: compressed with {program}, so that its pictures cannot be read in place; "
                f"unpack it to a plain .tar first (pictures are compressed as they are)"
            )


def _tars_in(folder: Path) -> list[Path]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.suffix.lower() == ".tar")
    return [folder / name for name in names if not name.startswith(".")]


def _folders(path: Path) -> Iterator[Path]:
    """The folders below, in order, without hidden ones."""
    for folder, below, _ in os.walk(path):
        below[:] = sorted(name for name in below if not name.startswith("."))
        if folder != str(path):
            yield Path(folder)


def _folder_splits(names: Mapping[Path, str]) -> dict[Path, str]:
    """The split of each tar, where all their `names` begin with folders that are called like the usual splits (`train`,
    `test`, as CLIP_benchmark has them); else none."""
    folders = {tar: name.split(os.sep)[:-1] for tar, name in names.items()}
    if not all(parts and split_name(parts[0]) in USUAL for parts in folders.values()):
        return {}
    return {tar: split_name(parts[0]) for tar, parts in folders.items()}


def _items(tar: Path, reader: SidecarReader, found: _Findings) -> Iterator[Item]:
    samples: dict[str, _Sample] = {}
    for member in _members(tar, found):
        name = _inner_name(member.name)
        if name is not None and any(part.startswith(".") for part in name.split("/")):
            continue
        if name is None or not member.isreg() or member.issparse():
            found.odd += not member.isdir()
            continue
        place = PurePosixPath(name)
        key, _, suffix = place.name.partition(".")
        suffix = suffix.lower()
        sample = samples.setdefault(pairing_name(str(place.with_name(key))), _Sample())
        last = suffix.rpartition(".")[2]
        if last not in IMAGE_SUFFIXES | SIDECAR_SUFFIXES:
            found.unread.add(f"{tar}/{place.with_name(key)}", last)
            continue
        beside = sample.pictures if last in IMAGE_SUFFIXES else sample.sidecars
        if suffix in beside:
            raise DataError(f"{tar}: two members are called {name!r}, or differ in case alone")
        beside[suffix] = (name, ImageSource(tar, member.offset_data, member.size))
    for sample in samples.values():
        if not sample.pictures:
            found.strays += bool(sample.sidecars)
            continue
        suffix = _picture(tar, sample)
        name, source = sample.pictures[suffix]
        stem = suffix.rpartition(".")[0]
        beside = {
            kind: sample.sidecars[full]
            for kind in SIDECAR_SUFFIXES
            for full in (kind, f"{stem}.{kind}")
            if full in sample.sidecars
        }
        yield reader.item(storable(name), storable(f"{tar}/{name}"), source, beside)


def _picture(tar: Path, sample: _Sample) -> str:
    """The suffix of the sample's picture: of several the one with one part (`jpg`, not `mask.png`)."""
    plain = [suffix for suffix in sample.pictures if "." not in suffix] or list(sample.pictures)
    if len(plain) > 1:
        first, second = (sample.pictures[suffix][0] for suffix in plain[:2])
        raise DataError(
            f"{tar}: {first} and {second} are pictures of one sample, since they are named alike up to the first dot; "
            "whose the captions are would be a guess: pack them under different names"
        )
    return plain[0]


def _members(tar: Path, found: _Findings) -> Iterator[tarfile.TarInfo]:
    """All members; DataError for a tar that breaks off or goes on with something else."""
    try:
        with open(tar, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # tarfile remembers every one
                if archive.offset <= member.offset:  # a negative size would lead round in circles
                    raise tarfile.ReadError(f"the member at byte {member.offset} has no sensible size")
                yield member
            stream.seek(archive.offset)
            rest = stream.read(tarfile.BLOCKSIZE)
    except (tarfile.TarError, OSError, ValueError) as problem:
        raise DataError(f"{tar}: not a tar, or a damaged one: {problem}") from problem
    if rest.strip(b"\0"):  # tarfile takes a damaged header for the end
        raise DataError(f"{tar}: damaged at byte {archive.offset}: what stands there is no member of a tar")
    if not rest:
        found.open_ended.append(str(tar))


def _inner_name(name: str) -> str | None:
    """`name` in the tar, without a leading `./`; None for one that leads out of it."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return None if name.startswith("/") or ".." in parts or not parts else "/".join(parts)


def _told_apart(items: list[Item]) -> list[Item]:
    """The items, with the last parts of the path of its tar before each id, as few as make all ids different; as they
    are where none do, because a tar stands there twice."""
    for depth in range(max((len(item.source.path.parts) for item in items), default=0)):
        named = [_with_tar(item, depth) for item in items] if depth else items
        if len({item.id for item in named}) == len(items):
            return named
    return items


def _with_tar(item: Item, depth: int) -> Item:
    tar = "/".join(item.source.path.with_suffix("").parts[-depth:])
    return replace(item, id=f"{storable(tar)}/{item.id}")


def expanded(pattern: str) -> Iterator[str]:
    """Each name that a brace pattern stands for, in order, as in a shell; a text without braces stands for itself.

    UsageError for a brace without its other half, braces that hold neither a range nor a list, a falling range, or
    more than a million names.
    """
    from braceexpand import braceexpand

    for first, last in RANGE.findall(pattern):
        if not int(first) <= int(last) < int(first) + MOST_NAMES:
            what = f"{first}..{last} is a falling range, or one of more than {MOST_NAMES} names"
            raise UsageError(f"{shown(pattern)}: {what}")
    wanted = "write a range like {0000..0009} or a list like {a,b}"
    try:
        for number, name in enumerate(braceexpand(pattern, escape=False)):
            if "{" in name or "}" in name:
                raise UsageError(f"{shown(pattern)}: these braces hold neither a range nor a list; {wanted}")
            if number == MOST_NAMES:
                raise UsageError(f"{shown(pattern)}: stands for more than {MOST_NAMES} names; {wanted} of fewer")
            yield name
    except ValueError as problem:
        raise UsageError(f"{shown(pattern)}: a brace without its other half; {wanted}") from problem
