"""A folder of pictures, each with its captions beside it in a file of the same stem (as img2dataset writes them)."""

import os
from collections.abc import Iterator
from pathlib import Path

from alignvl_cli.config import DatasetFormat, DatasetOptions
from alignvl_cli.errors import DataError
from alignvl_cli.pairs.captions import storable
from alignvl_cli.pairs.items import Dataset, ImageSource
from alignvl_cli.pairs.listing import listing_sha256, make_dataset
from alignvl_cli.pairs.sidecars import IMAGE_SUFFIXES, SIDECAR_SUFFIXES, SidecarReader, pairing_name


def open_folder(path: Path, options: DatasetOptions) -> Dataset:
    """The pictures in `path` and then in the folders below it, sorted by name; hidden ones are passed over.

    A picture and a sidecar belong together when their paths are equal up to the last dot; suffixes may
    be in upper case. The id is the path from `path` on. Folders that are links are not followed.
    DataError when there is no picture, no pair, or when two pictures share a stem: whose the captions
    are would be a guess.
    """
    if not path.is_dir():
        raise DataError(f"{path}: not a folder")
    root = os.path.abspath(path)
    pictures: dict[str, str] = {}
    sidecars: dict[str, dict[str, tuple[str, ImageSource]]] = {}
    for name, stem, suffix in _files(root):
        if suffix in IMAGE_SUFFIXES:
            if stem in pictures:
                raise DataError(f"{path}: {pictures[stem]} and {name} share the stem {stem!r}; rename one of them")
            pictures[stem] = name
        elif suffix in SIDECAR_SUFFIXES:
            beside = sidecars.setdefault(stem, {})
            if suffix in beside:
                raise DataError(f"{path}: {beside[suffix][0]} and {name} differ in case alone; rename one of them")
            beside[suffix] = (name, ImageSource(Path(root, name)))
    if not pictures:
        raise DataError(f"{path}: no picture in this folder or below ({', '.join(sorted(IMAGE_SUFFIXES))})")
    if not pictures.keys() & sidecars.keys():
        raise DataError(f"{path}: {_no_pair(pictures, sidecars)}")
    reader = SidecarReader(options)
    items = [
        reader.item(
            storable(name), storable(os.path.join(root, name)), ImageSource(Path(root, name)), sidecars.get(stem, {})
        )
        for stem, name in pictures.items()
    ]
    strays = len(sidecars.keys() - pictures.keys())
    notes = reader.notes()
    if strays:
        notes.append(f"{strays} .txt or .json files have no picture beside them, and were left out")
    return make_dataset(
        path,
        items,
        reader.cleaner,
        kind=DatasetFormat.folder,
        sha256=listing_sha256(items),
        name=os.path.basename(root),
        options={"image_root": root, "caption_column": options.caption_column},
        notes=notes,
    )


def _files(root: str) -> Iterator[tuple[str, str, str]]:
    """Path from `root` on, the same without its suffix as it pairs, and the lower-case suffix, of each file below
    `root`."""

    def fail(problem: OSError) -> None:
        raise problem

    for folder, below, files in os.walk(root, onerror=fail):
        below[:] = sorted(name for name in below if not name.startswith("."))
        inner = os.path.relpath(folder, root)
        for file in sorted(files):
            name = file if inner == "." else f"{inner}/{file}"
            stem, dot, suffix = name.rpartition(".")
            if dot and not file.startswith("."):
                yield name, pairing_name(stem), suffix.lower()


def _no_pair(pictures: dict[str, str], sidecars: dict[str, dict[str, tuple[str, ImageSource]]]) -> str:
    picture = next(iter(pictures.values()))
    if not sidecars:
        return (
            f"{len(pictures)} pictures and not one .txt or .json file; beside {picture} there should be one of its stem"
        )
    name, _ = next(iter(next(iter(sidecars.values())).values()))
    return (
        f"not one of {len(pictures)} pictures has a sidecar: a picture like {picture} and a file like {name} "
        "belong together when they lie in one folder and are named alike up to the last dot"
    )
