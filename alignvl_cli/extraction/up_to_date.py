"""Whether a complete store is still of the pictures there: a `stat` a file, and a read only where that differs.

`STORE.files.json`, beside the store, has the size and modification time that each file had when it was read. Nothing
else needs it: without it (a store of an earlier version, or one that was moved alone) the pictures are read once, and
then it is written. It has what was asked of the encoders too, so that those of an up-to-date store need not be loaded.
"""

import glob
import json
import os
import platform
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import xxhash

from alignvl_cli.artifacts import alignvl_version, fingerprint, library_versions, read_json, write_json
from alignvl_cli.datasets.dataset import NO_STAMP, Dataset, ImageSource, Item, are_unchanged
from alignvl_cli.distributed import choose_workers, started_workers
from alignvl_cli.errors import DataError
from alignvl_cli.extraction.events import Progress, Stage
from alignvl_cli.settings import BUNDLED, ExtractConfig
from alignvl_cli.store.reader import Store, open_store, read_made_by

if TYPE_CHECKING:
    from alignvl_cli.encoders.pixels import Preprocess
    from alignvl_cli.extraction.sources import Picture

Row = TypeVar("Row")

FORMAT = "alignvl.files/1"
"""Records of earlier versions have no `places` and no `rejected`: of data that have grown since, they tell nothing."""
GPUS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dxg")
"""Where a system shows its GPUs, which decide what `--device auto` and `--precision auto` come to."""


@dataclass
class Comparison:
    """Ids of the images, in the order of the data, whose pictures are not as a store says."""

    changed: list[str] = field(default_factory=list)
    """The file has other bytes than those that were encoded."""
    readable: list[str] = field(default_factory=list)
    """The store rejected the image, and now it can be read."""
    gone: list[str] = field(default_factory=list)
    """The file cannot be read, and nothing is known against what the store has of it."""
    rejected: int = 0
    """Images that the store rejected."""

    @property
    def is_same(self) -> bool:
        return not self.changed and not self.readable


def files_path(store: Path) -> Path:
    """Where the sizes and times of the files of `store` are kept."""
    return store.with_name(f"{store.name}.files.json")


def write_stamps(
    store: Path,
    content_hash: str,
    items: Sequence[Item],
    stamps: np.ndarray,
    rejected: Collection[int],
    request: Mapping[str, Any] | None = None,
) -> None:
    """Keep the `stamps` (rows, 2) of the items' files beside the store, which of these rows it `rejected`, and the
    `request` that it answers (see `encoders_request`); where that cannot be, they are read again."""
    path = files_path(store)
    record = {
        "format": FORMAT,
        "content_hash": content_hash,
        "files_sha256": _places(items),
        "size_time_ns": stamps.tolist(),
        "places": [place_of(item.source) for item in items],
        "rejected": sorted(rejected),
        "request": request,
    }
    with suppress(OSError):
        path.unlink(missing_ok=True)
        write_json(path, record)


def place_of(source: ImageSource) -> str:
    """Hash of where a file lies."""
    return xxhash.xxh3_64_hexdigest(f"{source.place}\0{source.offset}\0{source.size}".encode())


def known_files(store: Store) -> dict[str, tuple[tuple[int, int], int]]:
    """The files that the store was made of: where each lies (`place_of`) -> its size and time then, and its row. Empty
    where nothing sound is kept of this very store."""
    try:
        record = read_json(files_path(store.path), "record of picture files")
        rejected = set(record["rejected"])
        kept = [
            (place, (int(size), int(time_ns)))
            for row, (place, (size, time_ns)) in enumerate(zip(record["places"], record["size_time_ns"], strict=True))
            if row not in rejected
        ]
    except (DataError, KeyError, TypeError, ValueError):
        return {}
    if record.get("content_hash") != store.content_hash or len(kept) != len(store.image_id):
        return {}
    return {place: (stamp, row) for row, (place, stamp) in enumerate(kept)}


def encoders_request(
    specs: Mapping[str, str], settings: Mapping[str, Any], folders: Mapping[str, Path]
) -> dict[str, Any] | None:
    """What decides the records of the encoders, as far as it can be told without loading them: what was asked for, the
    versions of libraries, the GPUs that are there, and names, sizes and times of the files in the models' `folders`.
    None where that does not tell: a name on the Hub stands for what is there today."""
    encoders = {}
    for side, spec in specs.items():
        is_bundled = spec.startswith(BUNDLED)
        if not is_bundled and not Path(spec).expanduser().is_dir():
            return None
        folder = folders[side] if is_bundled else Path(spec).expanduser().resolve()
        encoders[side] = {"spec": spec, "folder": str(folder), "files": _folder_state(folder)}
    request = {
        "encoders": encoders,
        "settings": dict(settings),
        "alignvl": alignvl_version(),
        "libraries": library_versions(),
        "machine": [platform.node(), *sorted(path for pattern in GPUS for path in glob.glob(pattern))],
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }
    return json.loads(json.dumps(request))


def _folder_state(folder: Path) -> str:
    found = []
    for place, _, names in os.walk(folder, followlinks=True):
        for name in names:
            with suppress(OSError):
                about = os.stat(os.path.join(place, name))
                found.append([os.path.relpath(os.path.join(place, name), folder), about.st_size, about.st_mtime_ns])
    return fingerprint(sorted(found))


def unchanged_store(
    candidates: Iterable[Path], dataset: Dataset, specs: Mapping[str, str], settings: Mapping[str, Any]
) -> tuple[Path, Comparison] | None:
    """The one of the stores that is of this dataset, by encoders that were asked for in the same way, with every
    picture file as it was or gone. Opens no picture and loads no encoder; None where only that would tell."""
    for path in candidates:
        try:
            request = read_json(files_path(path), "record of picture files")["request"]
            folders = {side: Path(about["folder"]) for side, about in request["encoders"].items()}
            plan = (read_made_by(path) or {})["plan"]
            is_it = (plan["dataset"], plan["images"]) == (json.loads(json.dumps(dataset.record)), len(dataset.items))
        except (DataError, KeyError, TypeError, AttributeError):
            continue
        if not is_it or encoders_request(specs, settings, folders) != request:
            continue
        store = open_store(path)
        stamps = _read_stamps(path, store.content_hash, dataset.items)
        stored = set(store.image_id)
        found = Comparison(rejected=len(store.rejected))
        for item, is_same in zip(dataset.items, _are_unchanged(dataset.items, stamps), strict=True):
            if is_same:
                continue
            if item.source.exists():
                break
            if item.id in stored:
                found.gone.append(item.id)
        else:
            return path, found
    return None


def compare_pictures(
    path: Path,
    dataset: Dataset,
    preprocess: "Preprocess",
    config: ExtractConfig,
    request: Mapping[str, Any] | None = None,
) -> Iterator[Progress | Comparison]:
    """Read the pictures of `dataset`, which the complete store at `path` is said to be of, whose size or time is not
    that of when they were read; the last record is what was found. Where they are the same, sizes and times are
    kept, with the `request`.

    DataError when the store is damaged.
    """
    from alignvl_cli.extraction.sources import READ_CHUNK, read_pictures

    store = open_store(path)
    row_of = {identity: row for row, identity in enumerate(store.image_id)}
    items, sha256 = dataset.items, store.image_sha256
    stamps = _read_stamps(path, store.content_hash, items)
    found = Comparison(rejected=len(store.rejected))
    unsure = [
        (row, item)
        for row, (item, is_same) in enumerate(zip(items, _are_unchanged(items, stamps), strict=True))
        if not is_same
    ]
    known = [(row, item) for row, item in unsure if item.id in row_of]
    rejected = [(row, item) for row, item in unsure if item.id not in row_of]
    done = 0
    started = time.perf_counter()
    count = choose_workers(config.workers, len(unsure))
    with started_workers(count) as workers:
        tasks: list[tuple[Sequence[tuple[int, Item]], tuple[Any, ...]]] = [
            (some, ([item.source for _, item in some],)) for some in _chunks(known, READ_CHUNK)
        ]
        tasks += [
            ([one], ([one[1].source], preprocess, config.max_pixels))  # alone: equal ones are decoded once a task
            for one in rejected
        ]
        for some, pictures in workers.map(read_pictures, tasks, ahead=2 * count):
            for (row, item), picture in zip(some, pictures, strict=True):
                stamps[row] = picture.stamp
                _compare(item, picture, sha256[row_of[item.id]].tobytes() if item.id in row_of else None, found)
            done += len(some)
            yield Progress(Stage.pictures, done, len(unsure), done / (time.perf_counter() - started))
    if found.is_same and (unsure or request):
        without = [row for row, item in enumerate(items) if item.id not in row_of]
        write_stamps(path, store.content_hash, items, stamps, without, request)
    yield found


def _are_unchanged(items: Sequence[Item], stamps: np.ndarray) -> list[bool]:
    return are_unchanged([item.source for item in items], stamps.tolist())


def _compare(item: Item, now: "Picture", then: bytes | None, found: Comparison) -> None:
    """`then` is the hash of what was encoded, None for a rejected image."""
    if then is None:
        if not isinstance(now.pixels, str):
            found.readable.append(item.id)
    elif now.sha256 is None:
        found.gone.append(item.id)
    elif now.sha256 != then:
        found.changed.append(item.id)


def _read_stamps(store: Path, content_hash: str, items: Sequence[Item]) -> np.ndarray:
    """(rows, 2) int64; NO_STAMP throughout where nothing sound is kept of this very store and these very files."""
    try:
        record = read_json(files_path(store), "record of picture files")
        wanted = {"format": FORMAT, "content_hash": content_hash, "files_sha256": _places(items)}
        if all(record.get(name) == value for name, value in wanted.items()):
            stamps = np.array(record["size_time_ns"])
            if stamps.shape == (len(items), 2) and stamps.dtype == np.int64:
                return stamps
    except (DataError, OSError, KeyError, ValueError, OverflowError):
        pass
    return np.full((len(items), 2), NO_STAMP, np.int64)


def _places(items: Sequence[Item]) -> str:
    """Hash of where the files lie: those of another folder are never taken for them, whatever their size and time."""
    return fingerprint([[item.source.place, item.source.offset, item.source.size] for item in items])


def _chunks(rows: Sequence[Row], length: int) -> Iterator[Sequence[Row]]:
    return (rows[first : first + length] for first in range(0, len(rows), length))
