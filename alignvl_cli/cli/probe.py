"""`alignvl probe`: will two encoders align? Told from their latents, before any training."""

from pathlib import Path
from typing import Annotated

import typer

from alignvl_cli.cli.console import Session
from alignvl_cli.settings import ProbeSettings


def probe(
    session: Session,
    store: Annotated[Path | None, typer.Argument(metavar="STORE", help="Store to probe. Default: the newest.")] = None,
    *,
    asked: ProbeSettings,
) -> None:
    """Say before training whether two encoders will align.

    Neighbours in common, CKA, and the recall of a closed-form linear map, each beside what chance gives.
    """
    from alignvl_cli.report.artifacts import probe_tables
    from alignvl_cli.retrieval.probe import probe as measure
    from alignvl_cli.store.reader import open_store

    if store is None:
        store = session.workspace.newest_store()
        session.note(f"using the newest store, {store}")
    found = measure(open_store(store), asked.sample)
    if asked.as_json:
        session.document(found.to_json())
    else:
        session.show(probe_tables(found))
