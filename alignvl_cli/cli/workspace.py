"""The folder of artefacts, and which of them a command means when the user names none.

"Newest" goes by a creation counter that every artefact carries, never by the clock. A path that an artefact has on
record is a hint: what lies elsewhere now is found by its content.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from alignvl_cli.errors import AlignvlError, DataError, UsageError

if TYPE_CHECKING:
    import pandas

    from alignvl_cli.cli.console import Session
    from alignvl_cli.retrieval.index import Index, IndexRecord, StoreBehind
    from alignvl_cli.store.reader import Store
    from alignvl_cli.training.run_folder import Run

NUMBERED = re.compile(r"^(\d{4,})-")
FORMATS = {"run": "alignvl.run/", "index": "alignvl.index/"}
"""What the format begins with that the mark of a run or an index states, of this and every other version."""
MARKS = {"run": "config.json", "index": "index.json", "study": "study.json"}
"""Kind of folder -> the file that tells it. Said here again because the rooms that write them load heavy libraries."""
RUN_RESULT = "result.json"
"""Written last into a run."""


class Entry(NamedTuple):
    """One artefact of a workspace."""

    kind: str
    """`store`, `run`, `index` or `study`."""
    path: Path
    """Of an unfinished store, the folder of its shards."""
    state: str
    """`complete`; `named`: complete, under a name of its own; `unfinished`."""
    newest: bool
    """Whether it is what a command takes where no path is given."""


@dataclass(frozen=True)
class Workspace:
    """`root/stores`, `root/runs`, `root/indexes`, `root/studies`; folders are made when first written to."""

    root: Path
    warn: Callable[[str], None] = print
    """Told of each file among the artefacts that is passed over."""
    _told: set[Path] = field(default_factory=set, compare=False)

    def stores(self) -> list[Path]:
        """Complete stores, oldest first."""
        from alignvl_cli.store.reader import creation_counter

        counted = [(creation_counter(path), path.name, path) for path in (self.root / "stores").glob("*.h5")]
        whole = [(counter, name, path) for counter, name, path in counted if counter is not None]
        self._pass_over("store", {path for _, _, path in counted} - {path for _, _, path in whole})
        return [path for _, _, path in sorted(whole)]

    def runs(self) -> list[Path]:
        """Complete runs, oldest first."""
        return self._numbered("run", "runs", RUN_RESULT)

    def indexes(self) -> list[Path]:
        """Complete indexes, oldest first."""
        return self._numbered("index", "indexes", MARKS["index"])

    def studies(self) -> list[Path]:
        """Complete studies, oldest first."""
        from alignvl_cli.ablation.records import creation_counter, is_complete_study

        found = [path for path in (self.root / "studies").glob("*") if is_complete_study(path)]
        return sorted(found, key=lambda path: (creation_counter(path), path.name))

    def _numbered(self, kind: str, folder: str, last_file: str) -> list[Path]:
        """Folders named NUMBER-..., in the order of their numbers, in which the file written last exists and whose mark
        states the format of `kind`."""
        from alignvl_cli.artifacts import stated_format

        named = [
            (int(match[1]), path) for path in (self.root / folder).glob("*") if (match := NUMBERED.match(path.name))
        ]
        complete = [path for _, path in sorted(named) if _is_file(path / last_file)]
        broken = {path for path in complete if not (stated_format(path / MARKS[kind]) or "").startswith(FORMATS[kind])}
        self._pass_over(kind, broken)
        return [path for path in complete if path not in broken]

    def _pass_over(self, kind: str, broken: set[Path]) -> None:
        """Warn, once, of each that is not what its place says."""
        for path in sorted(broken - self._told):
            self._told.add(path)
            self.warn(f"{path}: no sound {kind}, and passed over; `alignvl inspect {path}` says why")

    def everything(self) -> list[Entry]:
        """Every artefact, oldest first within a kind; also what is unfinished, and what was given a name of its own,
        which is never taken for the newest."""
        complete = {"store": self.stores(), "run": self.runs(), "index": self.indexes(), "study": self.studies()}
        stores = sorted((self.root / "stores").glob("*.h5"))
        partial = [path for path in sorted((self.root / "stores").glob("*.partial")) if path.is_dir()]
        found = {
            "store": [*complete["store"], *stores, *partial],
            "run": _folders(self.root / "runs", MARKS["run"]),
            "index": _folders(self.root / "indexes", MARKS["index"]),
            "study": [*complete["study"], *_folders(self.root / "studies", MARKS["study"])],
        }
        finished = {"store": "", "run": RUN_RESULT, "index": MARKS["index"], "study": ""}
        entries = []
        for kind, paths in found.items():
            for path in dict.fromkeys(paths):
                is_named = path in stores or (bool(finished[kind]) and (path / finished[kind]).is_file())
                state = "complete" if path in complete[kind] else "named" if is_named else "unfinished"
                entries.append(Entry(kind, path, state, path == complete[kind][-1] if complete[kind] else False))
        return entries

    def to_frame(self) -> "pandas.DataFrame":
        """A row a run, finished or not; columns as `report.artifacts.runs_frame` has them."""
        from alignvl_cli.report.artifacts import runs_frame

        return runs_frame({entry.path: entry.state for entry in self.everything() if entry.kind == "run"})

    def store_called(self, name: str, beside: Path) -> Path:
        """A store by its path from the folder `beside` or from here, or the workspace's by file or dataset. UsageError
        for a name of several; DataError for one of none."""
        for path in (beside / name, Path(name)):
            if path.is_file():
                return path
        stores = self.stores()
        found = [path for path in stores if name in (path.name, path.stem)]
        found = found or [path for path in stores if re.fullmatch(re.escape(name) + "-[0-9a-f]{8}", path.stem)]
        if len(found) > 1:
            raise UsageError(
                f"{name}: several stores are called so ({', '.join(path.stem for path in found)}); name one"
            )
        if not found:
            there = ", ".join(path.stem for path in stores) or "none"
            raise DataError(f"{name}: no such store, here, in {beside}, or in the workspace (stores there: {there})")
        return found[0]

    def newest_store(self) -> Path:
        return _last(self.stores(), self.root, "store", "alignvl extract")

    def newest_run(self) -> Path:
        return _last(self.runs(), self.root, "run", "alignvl train")

    def newest_study(self) -> Path:
        return _last(self.studies(), self.root, "study", "alignvl ablate STUDY.toml")

    def store_path(self, dataset: str, encoder_hash: str) -> Path:
        """Where the store of this dataset by these encoders belongs: the same inputs, the same place."""
        return self.root / "stores" / f"{dataset}-{encoder_hash[:8]}.h5"

    def next_store_counter(self) -> int:
        from alignvl_cli.store.reader import creation_counter

        return 1 + max((creation_counter(path) or 0 for path in self.stores()), default=0)

    @contextmanager
    def place_for(self, output: Path | None, kind: str, name: str) -> Iterator[Path]:
        """`output`, else a numbered folder of `kind` claimed for `name`; one that stays empty is given back."""
        if output is not None:
            yield output
            return
        path = _claim(self.root / kind, name)
        try:
            yield path
        finally:
            if not any(path.iterdir()):
                path.rmdir()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a folder that is not for us to look into
        return False


def _folders(folder: Path, mark: str) -> list[Path]:
    """Those that hold the file `mark`: the numbered ones in their order, then the others by name."""

    def order(path: Path) -> tuple[float, str]:
        match = NUMBERED.match(path.name)
        return int(match[1]) if match else float("inf"), path.name

    return sorted((path.parent for path in folder.glob(f"*/{mark}")), key=order)


def _last(found: list[Path], root: Path, what: str, command: str) -> Path:
    if not found:
        raise DataError(f"no complete {what} in the workspace {root}; make one with `{command}`, or name its path")
    return found[-1]


def _claim(folder: Path, name: str) -> Path:
    """Make the next numbered folder; making it is what reserves the number against another process."""
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        taken = [int(match[1]) for path in folder.glob("*") if (match := NUMBERED.match(path.name))]
        number = f"{max(taken, default=0) + 1:04d}"
        path = folder / f"{number}-{name}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        if sum(1 for other in folder.glob(f"{number}-*")) == 1:
            return path
        path.rmdir()  # another process took the same number under another name


def store_of(session: "Session", run: "Run", data: Path | None) -> "Store":
    """The store at `data`, else the one the run was trained on, found by its content (`find_store`)."""
    from alignvl_cli.store.reader import open_store

    if data is not None:
        return open_store(data)
    store = find_store(session, run.store_hash, run.store_path, beside=run.path)
    if store is None:
        raise DataError(
            f"{run.path}: the store it was trained on is neither in the workspace nor at {run.store_path};"
            " name a store with --data"
        )
    session.note(f"using the store it was trained on, {store.path}")
    return store


def find_store(session: "Session", content_hash: str, path: str, *, beside: Path | None = None) -> "Store | None":
    """The store of this content: in the workspace, newest first, at `path`, or where that has moved to together with
    `beside`; None when it is in none of them."""
    from alignvl_cli.store.reader import open_store

    for place in [*reversed(session.workspace.stores()), Path(path), *_moved(Path(path), beside)]:
        try:
            store = open_store(place)
        except AlignvlError:  # a broken neighbour must not keep the right store from being found
            continue
        if store.content_hash == content_hash:
            return store
    return None


def store_behind(session: "Session", index: "Index") -> "StoreBehind":
    """What an index was made of, each store as `find_store` finds it."""
    from alignvl_cli.retrieval.index import store_behind as behind

    return behind(index.record, partial(find_store, session, beside=index.path))


def run_of(session: "Session", index: "Index") -> Path:
    """The run that an index was made of, told by its adapters: where it was then, in the workspace, or where it has
    moved to together with the index. DataError when it is in none of them."""
    runs = [index.run_path, *reversed(session.workspace.runs()), *_moved(index.run_path, index.path)]
    for place in runs:
        if _adapters(place) == index.record.adapters_sha256:
            return place
    raise DataError(
        f"{index.path}: the run it was made of (adapters {index.record.adapters_sha256[:8]}) is neither in the "
        f"workspace {session.workspace.root} nor at {index.run_path}; index another with `alignvl index RUN`"
    )


def _adapters(run: Path) -> str | None:
    """The SHA-256 of a run's adapters, by its own record; None where there is no run."""
    from alignvl_cli.artifacts import read_json

    try:
        return read_json(run / MARKS["run"], "run's configuration").get("adapters_sha256")
    except DataError:
        return None


def _moved(recorded: Path, beside: Path | None) -> Iterator[Path]:
    """Where `recorded` would be now if a folder that it shared with `beside` was renamed or copied."""
    ends = [Path(*recorded.parts[start:]) for start in range(1, len(recorded.parts))]
    for folder in beside.resolve().parents if beside is not None else ():
        yield from (place for end in ends if (place := folder / end) != recorded and place.exists())


def make_index(
    session: "Session", run: "Run", output: Path | None, data: Sequence[Path], split: str, **options: Any
) -> Path:
    """Build the index of `run` over a split of the stores `data` (none: of its own), at `output` or numbered in the
    workspace; `options` are those of `build_index`."""
    from alignvl_cli.retrieval.factory import TARGET
    from alignvl_cli.retrieval.index import build_index
    from alignvl_cli.store.joined import join_stores

    store = join_stores([store_of(session, run, path) for path in data or (None,)])
    with session.workspace.place_for(output, "indexes", f"{run.path.resolve().name}-{split}") as place:
        record = build_index(run, store, split, place, **options)
    session.note(f"indexed {record.images:,} images and {record.captions:,} captions")
    if record.stores is not None:
        _tell_stores(session, record)
    for gallery, found in record.recall_against_exact.items():
        setting = "".join(f", {name} {value}" for name, value in record.search[gallery].items())
        low, high = found.interval
        session.note(
            f"{gallery} index {record.factory[gallery]}{setting}: {found.share:.2%} of exact search's first {found.k} "
            f"({low:.2%} to {high:.2%}, {found.queries:,} queries)"
        )
        if found.share < TARGET:
            session.warn(f"the {gallery} index finds less than {TARGET:.0%}: --factory Flat finds everything")
    return place


def _tell_stores(session: "Session", record: "IndexRecord") -> None:
    """What comes of an index being of several stores."""
    from alignvl_cli.report.text import counted

    stores = record.stores or ()
    where = "both stores" if len(stores) == 2 else "several of the stores"
    for store in stores:
        session.note(f"{store.path}: {counted(store.images, 'image')}, {counted(store.captions, 'caption')}")
    if record.shared_pictures:
        are = "is" if record.shared_pictures == 1 else "are"
        session.note(f"{counted(record.shared_pictures, 'picture')} {are} in {where}: one hit each, with a count")
    if renamed := [store for store in stores if store.renamed]:
        example = " and ".join(f"{store.name}:ID" for store in renamed)
        session.note(f"ids that are in {where} have the store's name before them here: {example}")
    if record.validation_seen:
        session.warn(
            f"the run was trained on {counted(record.validation_seen, 'picture')} of the validation split: precision "
            "and hub correction, which go by that split, are flattered"
        )


def open_or_make_index(session: "Session", path: Path | None, device: str) -> "Index":
    """The index at `path`, else the workspace's newest, else one built now for the newest run."""
    from alignvl_cli.retrieval.index import open_index
    from alignvl_cli.training.run_folder import load_run

    if path is None:
        indexes, runs = session.workspace.indexes(), session.workspace.runs()
        if indexes:
            path = indexes[-1]
            session.note(f"asking the newest index, {path}")
            index = open_index(path)
            if runs and _adapters(runs[-1]) != index.record.adapters_sha256:
                session.note(f"(there is a newer run, {runs[-1].name}: index it with `alignvl index`)")
            return index
        session.note("no index yet: building one for the newest run")
        run = load_run(session.newest_run(), device)
        path = make_index(session, run, None, (), "all", device=device)
    return open_index(path)
