"""The picture files of an extraction: what stands in each, and how a file is known again without being read.

A file is opened once: its SHA-256 and its pixels come from the same bytes, whatever happens to it meanwhile. Imports
little, since worker processes and a store that is up to date need no more.
"""

import base64
import glob
import hashlib
import json
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xxhash

from alignvl_cli.artifacts import alignvl_version, library_versions, read_json, write_json
from alignvl_cli.datasets.dataset import MOST_BYTES, Dataset, ImageSource
from alignvl_cli.encoders.decoding import UnreadableImage, decode_image
from alignvl_cli.errors import DataError
from alignvl_cli.extraction.progress import Progress, Stage
from alignvl_cli.settings import BUNDLED
from alignvl_cli.store.reader import Store, open_store, read_made_by

if TYPE_CHECKING:
    from alignvl_cli.distributed import Workers
    from alignvl_cli.encoders.preprocessing import Preprocess

CHUNK = 16
"""Pictures in one task: enough that passing it costs nothing, few enough that many in flight fit in memory."""
CLOCK_TICK_NS = 20_000_000
"""A file that was changed this short a time ago may change again and keep its time: file systems note ticks."""
MISSING, UNSURE = -1, -2
FORMAT = "alignvl.store-files/1"
ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dxg")
"""Where a system shows its GPUs; they decide what `--device auto` and `--precision auto` come to."""


class FileState(NamedTuple):
    """What tells, without reading it, that a file is as it was."""

    place: int
    """Hash of the path, and of the stretch of the file."""
    size: int
    """Bytes of the whole file; MISSING where there is none, UNSURE where a change might not show."""
    mtime_ns: int


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What one opening of a picture file brought."""

    state: FileState
    """Of the file, taken before it was opened."""
    sha256: bytes | None
    """Of its bytes; None for a file that cannot be read."""
    picture: np.ndarray | str | None
    """Pixels as the preprocessing gives them, or the reason why there are none; None where nobody asked."""


def state_of(source: ImageSource) -> FileState:
    """The file's state now. Opens nothing."""
    place = f"{os.path.abspath(source.path)}\0{source.offset}\0{source.size}\0{source.absent}"
    key = xxhash.xxh3_64_intdigest(place.encode(errors="surrogateescape")) >> 1  # an int64
    try:
        about = os.stat(source.path)
    except (OSError, ValueError):
        return FileState(key, MISSING, MISSING)
    return FileState(key, about.st_size, about.st_mtime_ns)


def states_of(sources: Iterable[ImageSource]) -> np.ndarray:
    """(n, 3) int64: the state of each file now."""
    return np.array([state_of(source) for source in sources], np.int64).reshape(-1, 3)


def read_pictures(preprocess: "Preprocess | None", max_pixels: int, sources: Sequence[ImageSource]) -> list[Reading]:
    """Read each file, and decode it unless an earlier one of `sources` has the same bytes or there is no `preprocess`.

    What worker processes do.
    """
    seen: set[bytes] = set()
    return [_read(preprocess, max_pixels, source, seen) for source in sources]


def _read(preprocess: "Preprocess | None", max_pixels: int, source: ImageSource, seen: set[bytes]) -> Reading:
    state = state_of(source)
    if time.time_ns() - state.mtime_ns < CLOCK_TICK_NS:
        state = state._replace(size=UNSURE, mtime_ns=UNSURE)
    try:
        data = source.read(MOST_BYTES)
    except OSError as problem:
        return Reading(state, None, problem.strerror or str(problem))
    sha256 = hashlib.sha256(data).digest()
    if preprocess is None or sha256 in seen:
        return Reading(state, sha256, None)
    seen.add(sha256)
    try:
        return Reading(state, sha256, preprocess(decode_image(data, max_pixels)))
    except UnreadableImage as problem:
        return Reading(state, sha256, str(problem))


def packed(states: np.ndarray) -> str:
    """States (n, 3) as text for JSON."""
    return base64.b64encode(states.astype("<i8").tobytes()).decode()


def unpacked(text: Any) -> np.ndarray:
    """The states (n, 3) of `packed`; ValueError for anything else."""
    if not isinstance(text, str):
        raise ValueError("no states")
    return np.frombuffer(base64.b64decode(text, validate=True), "<i8").astype(np.int64).reshape(-1, 3)


def encoders_request(
    specs: Mapping[str, str], settings: Mapping[str, Any], folders: Mapping[str, Path]
) -> dict[str, Any] | None:
    """What decides the records of the encoders, as far as it can be told without loading them: what was asked for,
    versions, the GPUs that are there, and the state of the files in the models' `folders`. None where that does not
    tell: a name on the Hub stands for what is there today."""
    encoders = {}
    for side, spec in specs.items():
        here = Path(spec).expanduser()
        if not spec.startswith(BUNDLED) and not here.is_dir():
            return None
        folder = folders[side] if spec.startswith(BUNDLED) else here.resolve()
        encoders[side] = {"spec": spec, "folder": str(folder), "files": _folder_state(folder)}
    request = {
        "encoders": encoders,
        "settings": dict(settings),
        "alignvl": alignvl_version(),
        "libraries": library_versions(),
        "machine": [platform.node(), *sorted(one for pattern in ACCELERATORS for one in glob.glob(pattern))],
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }
    return json.loads(json.dumps(request))


def _folder_state(folder: Path) -> str:
    """Hash of names, sizes and times of all files below a folder."""
    found = []
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                about = os.stat(os.path.join(place, name))
                found.append([os.path.relpath(os.path.join(place, name), folder), about.st_size, about.st_mtime_ns])
    return xxhash.xxh3_128_hexdigest(json.dumps(sorted(found)).encode())


def files_record(store: Path) -> Path:
    """Where the states of a store's picture files are kept: beside it."""
    return store.with_name(store.name + ".files.json")


def remember_files(store: Path, states: np.ndarray, request: Mapping[str, Any] | None) -> None:
    """Keep the states (n, 3) of the pictures that `store` is of, in the order of the data. Where that cannot be written
    they are read again next time."""
    with suppress(OSError):
        write_json(
            files_record(store),
            {"format": FORMAT, "store": open_store(store).digest, "request": request, "states": packed(states)},
        )


@dataclass
class Comparison:
    """Ids of the images, in the order of the data, whose pictures are not as a store says."""

    states: np.ndarray
    """(items, 3) int64: of the files now."""
    changed: list[str] = field(default_factory=list)
    """The file has other bytes than those that were encoded."""
    readable: list[str] = field(default_factory=list)
    """The store rejected the image, and now it can be read."""
    gone: list[str] = field(default_factory=list)
    """The file cannot be read, and nothing is known against what the store has of it."""
    rejected: int = 0
    """Images that the store rejected."""
    read: int = 0
    """Files that had to be read."""

    @property
    def is_same(self) -> bool:
        return not self.changed and not self.readable


def unchanged_store(
    candidates: Iterable[Path], dataset: Dataset, specs: Mapping[str, str], settings: Mapping[str, Any]
) -> tuple[Path, Comparison] | None:
    """The one of the stores that is of this dataset, by encoders that were asked for in the same way, with every
    picture file as it was or gone. Opens no picture and loads no encoder; None where only that would tell."""
    record = json.loads(json.dumps(dataset.record))
    for path in candidates:
        kept = _kept(path)
        request = kept.get("request")
        if not request:
            continue
        folders = {side: Path(about["folder"]) for side, about in request["encoders"].items()}
        if encoders_request(specs, settings, folders) != request:
            continue
        plan = (read_made_by(path) or {}).get("plan")
        if not isinstance(plan, dict) or plan.get("dataset") != record or plan.get("images") != len(dataset.items):
            continue
        store = open_store(path)
        found = Comparison(states_of(item.source for item in dataset.items), rejected=len(store.rejected))
        differing = _differing(kept, store, found.states)
        if (found.states[differing, 1] == MISSING).all():
            found.gone = _gone(dataset, store, differing)
            return path, found
    return None


def compare_pictures(
    path: Path, dataset: Dataset, preprocess: "Preprocess", max_pixels: int, workers: "Workers"
) -> Iterator[Progress | Comparison]:
    """See whether the complete store at `path`, which is said to be of `dataset`, is of the pictures that are there;
    the last record is what was found. Files whose state is as it was are not read.

    DataError when the store is damaged.
    """
    store = open_store(path)
    row_of = {identity: row for row, identity in enumerate(store.image_id)}
    items, sha256 = dataset.items, store.image_sha256
    found = Comparison(states_of(item.source for item in items), rejected=len(store.rejected))
    differing = _differing(_kept(path), store, found.states)
    is_missing = found.states[differing, 1] == MISSING
    found.gone = _gone(dataset, store, differing[is_missing])
    reading = differing[~is_missing].tolist()
    tasks = (
        (rows, (None if is_stored else preprocess, max_pixels, [items[row].source for row in rows]))
        for is_stored in (True, False)
        for rows in _chunks([row for row in reading if (items[row].id in row_of) == is_stored])
    )
    started = time.perf_counter()
    for rows, readings in workers.map(read_pictures, tasks, ahead=2 * workers.count):
        decoded = {one.sha256 for one in readings if isinstance(one.picture, np.ndarray)}
        for row, one in zip(rows, readings, strict=True):
            found.states[row] = one.state
            stored = row_of.get(items[row].id)
            if stored is None:
                found.readable += [items[row].id] if one.sha256 in decoded else []
            elif one.sha256 is None:
                found.gone.append(items[row].id)
            elif one.sha256 != sha256[stored].tobytes():
                found.changed.append(items[row].id)
        found.read += len(rows)
        yield Progress(Stage.pictures, found.read, len(reading), found.read / (time.perf_counter() - started))
    order = {item.id: row for row, item in enumerate(items)}
    for ids in (found.changed, found.readable, found.gone):
        ids.sort(key=order.__getitem__)
    yield found


def _kept(store: Path) -> dict[str, Any]:
    """What `remember_files` kept; empty where nothing was, or it is damaged."""
    path = files_record(store)
    try:
        kept = read_json(path, "record of picture files") if path.exists() else {}
        return kept | {"states": unpacked(kept["states"])} if kept.get("format") == FORMAT else {}
    except (DataError, ValueError, KeyError):
        return {}


def _differing(kept: Mapping[str, Any], store: Store, states: np.ndarray) -> np.ndarray:
    """Positions of the files whose state is not the one that was kept with this store."""
    if kept.get("store") != store.digest or kept["states"].shape != states.shape:
        return np.arange(len(states))
    return np.flatnonzero((kept["states"] != states).any(axis=1))


def _gone(dataset: Dataset, store: Store, missing: np.ndarray) -> list[str]:
    """Those of the missing files that the store has latents of."""
    stored = set(store.image_id)
    return [dataset.items[row].id for row in missing.tolist() if dataset.items[row].id in stored]


def _chunks(rows: Sequence[int]) -> Iterator[Sequence[int]]:
    return (rows[first : first + CHUNK] for first in range(0, len(rows), CHUNK))
