"""`alignvl index`: FAISS indexes of a run's projected latents, to keep."""

from pathlib import Path
from typing import Annotated

import typer

from alignvl_cli.cli.console import Session
from alignvl_cli.settings import IndexSettings


def index(
    session: Session,
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="Run whose adapters to use. Default: the newest run.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Index folder to make. Default: numbered, in the workspace.")
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data",
            metavar="STORE",
            help="Store to index; repeat it for several. Default: the one the run was trained on.",
        ),
    ] = None,
    *,
    asked: IndexSettings,
) -> None:
    """Build FAISS indexes, of images and of captions.

    `alignvl search` asks them. Prints their path; what they find of exact search's first 10 is measured and kept.
    """
    from alignvl_cli.cli.workspace import make_index
    from alignvl_cli.devices import choose_device
    from alignvl_cli.training.run_folder import load_run

    place = choose_device(asked.device)
    trained = load_run(run or session.newest_run(), place)
    options = {
        "factory": asked.factory,
        "memory": asked.memory,
        "correction": asked.hubness,
        "device": place,
        "overwrite": asked.overwrite,
    }
    session.result(make_index(session, trained, output, data or (), asked.split, **options))
