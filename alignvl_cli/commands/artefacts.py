"""Which run, store or index a command means when the user names none; what was taken is said on stderr."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignvl_cli.commands.session import Session
from alignvl_cli.errors import AlignvlError, DataError

if TYPE_CHECKING:
    from alignvl_cli.retrieval.index import Index
    from alignvl_cli.runs.folder import Run
    from alignvl_cli.store.reader import Store


def store_of(session: Session, run: "Run", data: Path | None) -> "Store":
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


def find_store(session: Session, content_hash: str, path: str) -> "Store | None":
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
    session: Session, run: "Run", output: Path | None, data: Path | None, split: str, **options: Any
) -> Path:
    """Build the index of `run` over a split of its store, at `output` or numbered in the workspace; `options` are
    those of `build_index`."""
    from alignvl_cli.retrieval.factory import TARGET
    from alignvl_cli.retrieval.index_builder import build_index

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


def open_or_make_index(session: Session, path: Path | None, device: str) -> "Index":
    """The index at `path`, else the workspace's newest, else one built now for the newest run."""
    from alignvl_cli.retrieval.index import open_index
    from alignvl_cli.runs.folder import load_run

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
