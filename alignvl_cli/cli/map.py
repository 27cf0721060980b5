"""`alignvl map`: an index in the plane, as a Parquet file for embedding-atlas and data frames, and as a picture."""

from pathlib import Path
from typing import Annotated

import typer

from alignvl_cli.cli.console import Session
from alignvl_cli.settings import MapSettings


def map_(
    session: Session,
    index: Annotated[
        Path | None,
        typer.Argument(metavar="INDEX", help="Default: the newest; none: one is built for the newest run."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write. Default: map.parquet, in the workspace.")
    ] = None,
    *,
    asked: MapSettings,
) -> None:
    """Place the images and captions of an index in the plane by UMAP.

    Writes a Parquet file (texts, vectors, places, nearest neighbours, thumbnails) and a PNG beside it, and prints the
    file. To look around: embedding-atlas map.parquet --x x --y y --text caption --image image --neighbors neighbors
    """
    from alignvl_cli.cli.workspace import open_or_make_index, run_of, store_behind
    from alignvl_cli.report.map import make_map, require_ready, save_map, save_picture
    from alignvl_cli.retrieval.dual_encoder import DualEncoder

    path = output or session.workspace.root / "map.parquet"
    require_ready(path, asked.overwrite)
    opened = open_or_make_index(session, index, "cpu")
    behind = store_behind(session, opened)
    for gone in behind.missing:
        session.warn(
            f"the store {gone} is not here: splits are not known, and of an index of compressed vectors "
            "places and cosines are approximate"
        )
    session.note("placing; UMAP takes a minute or so for some thousand rows, and compiles itself first")
    encoder = DualEncoder.load(run_of(session, opened), device="cpu")
    made = make_map(opened, encoder, behind.store, of=asked.of, k=asked.neighbours, seed=asked.seed)
    if missing := save_map(made, path):
        session.warn(f"{missing:,} pictures are not at hand as they were indexed, and have no thumbnail")
    session.note(f"drew {save_picture(made, path)}")
    session.result(path)
