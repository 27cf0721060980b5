"""Options that several commands share, spelled once."""

from pathlib import Path
from typing import Annotated

import typer

from alignvl_cli.config import Device, Precision

DeviceOption = Annotated[Device, typer.Option(help="Where to compute; auto takes CUDA, else MPS, else the CPU.")]
PrecisionOption = Annotated[Precision, typer.Option(help="auto: bf16 where the hardware computes in it, else fp32.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace a complete artefact at --output.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of the table.")]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="Store to use. Default: the one the run was trained on.")
]
