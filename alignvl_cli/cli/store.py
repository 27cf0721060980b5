"""`alignvl store export` and `alignvl store import`: latents to and from other programs' files."""

from pathlib import Path
from typing import Annotated

import typer

from alignvl_cli.cli.console import Session
from alignvl_cli.settings import StoreExportSettings, StoreImportSettings


def export(
    session: Session,
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Store to export.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to make.")],
    *,
    asked: StoreExportSettings,
) -> None:
    """Write a store's pairs, one a row, as npy or safetensors.

    The layout of npy is clip-retrieval's. Prints the folder. Images without a caption are left out, and counted.
    """
    from alignvl_cli.store.exchange import export_store
    from alignvl_cli.store.reader import open_store

    left_out = export_store(open_store(store), folder, asked.to)
    if left_out:
        session.warn(f"{left_out} images without a caption were left out: the layout has one row a pair")
    session.result(folder)


def import_(
    session: Session,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder that `store export` or clip-retrieval made.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Store to make.")],
    *,
    asked: StoreImportSettings,
) -> None:
    """Make a store of latents that were computed elsewhere.

    Prints the store's path. It can be trained on and evaluated; search and --verify are refused, since
    nothing tells how the encoders were used.
    """
    from alignvl_cli.datasets.splits import split_rows
    from alignvl_cli.store.exchange import import_store

    counter = session.workspace.next_store_counter()
    for note in import_store(folder, output, vision=asked.vision, text=asked.text, split=split_rows, counter=counter):
        session.note(note)
    session.result(output)
