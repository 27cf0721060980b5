"""`alignvl index`: FAISS indexes of a run's projected latents, to keep."""

from pathlib import Path
from typing import Annotated

import typer

from alignvl_cli.cli.console import Session
from alignvl_cli.cli.options import DataOption, DeviceOption, OverwriteOption
from alignvl_cli.settings import Device, HubCorrection, size_in_bytes

GIB = 2**30
"""What a size without a unit is counted in."""


def index(
    session: Session,
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="Run whose adapters to use. Default: the newest run.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Index folder to make. Default: numbered, in the workspace.")
    ] = None,
    data: DataOption = None,
    split: Annotated[str, typer.Option(help="Split of the store, or `all`.")] = "all",
    factory: Annotated[
        str, typer.Option(help="FAISS factory string; auto: exact up to a million vectors, if they fit.")
    ] = "auto",
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="What the indexes may take: 8GB, 2GiB, or GiB alone. Default: half of what is free."
        ),
    ] = None,
    hubness: Annotated[
        HubCorrection | None, typer.Option(help="Correct hubs, told by the training split's queries.")
    ] = None,
    device: DeviceOption = Device.auto,
    overwrite: OverwriteOption = False,
) -> None:
    """Build FAISS indexes, of images and of captions.

    `alignvl search` asks them. Prints their path; what they find of exact search's first 10 is measured and kept.
    """
    from alignvl_cli.cli.workspace import make_index
    from alignvl_cli.devices import choose_device
    from alignvl_cli.training.run_folder import load_run

    allowed = None if memory is None else size_in_bytes("memory", memory, plain=GIB)
    place = choose_device(device)
    trained = load_run(run or session.newest_run(), place)
    options = {"factory": factory, "memory": allowed, "correction": hubness, "device": place, "overwrite": overwrite}
    session.result(make_index(session, trained, output, data, split, **options))
