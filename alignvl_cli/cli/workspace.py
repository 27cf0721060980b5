"""The folder that holds artefacts without an explicit path, and which of them is the newest.

"Newest" goes by a creation counter that every artefact carries, never by the clock.

Which run, store or index a command means when the user names none; what was taken is said on stderr.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from alignvl_cli.errors import AlignvlError, DataError

if TYPE_CHECKING:
    import pandas

    from alignvl_cli.cli.console import Session
    from alignvl_cli.retrieval.index import Index
    from alignvl_cli.store.reader import Store
    from alignvl_cli.training.run_folder import Run

NUMBERED = re.compile(r"^(\d{4,})-")
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

    def stores(self) -> list[Path]:
        """Complete stores, oldest first."""
        from alignvl_cli.store.reader import creation_counter

        counted = [(creation_counter(path), path.name, path) for path in (self.root / "stores").glob("*.h5")]
        return [path for counter, _, path in sorted(counted, key=lambda entry: entry[:2]) if counter is not None]

    def runs(self) -> list[Path]:
        """Complete runs, oldest first."""
        return _numbered(self.root / "runs", RUN_RESULT)

    def indexes(self) -> list[Path]:
        """Complete indexes, oldest first."""
        return _numbered(self.root / "indexes", MARKS["index"])

    def studies(self) -> list[Path]:
        """Complete studies, oldest first."""
        from alignvl_cli.ablation.records import creation_counter, is_complete_study

        found = [path for path in (self.root / "studies").glob("*") if is_complete_study(path)]
        return sorted(found, key=lambda path: (creation_counter(path), path.name))

    def everything(self) -> list[Entry]:
        """Every artefact, oldest first within a kind; also what is unfinished, and what was given a name of its own,
        which is never taken for the newest."""
        complete = {"store": self.stores(), "run": self.runs(), "index": self.indexes(), "study": self.studies()}
        partial = [path for path in sorted((self.root / "stores").glob("*.partial")) if path.is_dir()]
        found = {
            "store": [*complete["store"], *partial],
            "run": _folders(self.root / "runs", MARKS["run"]),
            "index": _folders(self.root / "indexes", MARKS["index"]),
            "study": [*complete["study"], *_folders(self.root / "studies", MARKS["study"])],
        }
        finished = {"store": "", "run": RUN_RESULT, "index": MARKS["index"], "study": ""}
        entries = []
        for kind, paths in found.items():
            for path in dict.fromkeys(paths):
                is_named = bool(finished[kind]) and (path / finished[kind]).is_file()
                state = "complete" if path in complete[kind] else "named" if is_named else "unfinished"
                entries.append(Entry(kind, path, state, path == complete[kind][-1] if complete[kind] else False))
        return entries

    def to_frame(self) -> "pandas.DataFrame":
        """A row a run, finished or not; columns as `report.artifacts.runs_frame` has them."""
        from alignvl_cli.report.artifacts import runs_frame

        return runs_frame({entry.path: entry.state for entry in self.everything() if entry.kind == "run"})

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


def _numbered(folder: Path, last_file: str) -> list[Path]:
    """Folders named NUMBER-..., in the order of their numbers, in which the file written last exists."""
    found = [(int(match[1]), path) for path in folder.glob("*") if (match := NUMBERED.match(path.name))]
    return [path for _, path in sorted(found) if (path / last_file).is_file()]


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
    """The store at `data`, else the one the run was trained on: by its content in the workspace, then by its path."""
    from alignvl_cli.store.reader import open_store

    if data is not None:
        return open_store(data)
    store = find_store(session, run.store_hash, run.store_path)
    if store is None:
        raise DataError(
            f"{run.path}: the store it was trained on is neither in the workspace nor at {run.store_path};"
            " name a store with --data"
        )
    session.note(f"using the store it was trained on, {store.path}")
    return store


def find_store(session: "Session", content_hash: str, path: str) -> "Store | None":
    """The store of this content: in the workspace, newest first, then at `path`; None when it is in neither."""
    from alignvl_cli.store.reader import open_store

    for place in [*reversed(session.workspace.stores()), Path(path)]:
        try:
            store = open_store(place)
        except AlignvlError:  # a broken neighbour must not keep the right store from being found
            continue
        if store.content_hash == content_hash:
            return store
    return None


def make_index(
    session: "Session", run: "Run", output: Path | None, data: Path | None, split: str, **options: Any
) -> Path:
    """Build the index of `run` over a split of its store, at `output` or numbered in the workspace; `options` are
    those of `build_index`."""
    from alignvl_cli.retrieval.factory import TARGET
    from alignvl_cli.retrieval.index import build_index

    store = store_of(session, run, data)
    with session.workspace.place_for(output, "indexes", f"{run.path.resolve().name}-{split}") as place:
        record = build_index(run, store, split, place, **options)
    session.note(f"indexed {record.images:,} images and {record.captions:,} captions")
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
            if runs and index.run_path.name != runs[-1].name:
                session.note(f"(there is a newer run, {runs[-1].name}: index it with `alignvl index`)")
            return index
        session.note("no index yet: building one for the newest run")
        run = load_run(session.newest_run(), device)
        path = make_index(session, run, None, None, "all", device=device)
    return open_index(path)
