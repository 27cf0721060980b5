"""Options that several commands share, spelled once."""

from pathlib import Path
from typing import Annotated

import typer

from alignvl_cli.settings import DatasetFormat, Device, Precision

DeviceOption = Annotated[Device, typer.Option(help="Where to compute; auto takes CUDA, else MPS, else the CPU.")]
PrecisionOption = Annotated[Precision, typer.Option(help="auto: bf16 where the hardware computes in it, else fp32.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace a complete artefact at --output.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of the table.")]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="Store to use. Default: the one the run was trained on.")
]

TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the Python files that a model brings along.")
]
PickleOption = Annotated[
    bool, typer.Option("--allow-pickle", help="Read weights that are pickled where there are no safetensors.")
]

DATA = "Data"
DatasetArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATASET", help="A manifest, annotation file, folder, tar (or pattern), `hf:org/name` or `demo:emoji`."
    ),
]
FormatOption = Annotated[
    DatasetFormat | None,
    typer.Option("--format", help="How the data are laid out. Default: told from them.", rich_help_panel=DATA),
]
ImageRootOption = Annotated[
    Path | None, typer.Option(help="Where image paths start. Default: the file's folder.", rich_help_panel=DATA)
]
ImageColumnOption = Annotated[str, typer.Option(rich_help_panel=DATA)]
CaptionColumnOption = Annotated[
    str | None, typer.Option(help="Default: `captions`, else `caption`.", rich_help_panel=DATA)
]
MaxPixelsOption = Annotated[int, typer.Option(help="Larger images are rejected before decoding.", rich_help_panel=DATA)]
MaxRejectedOption = Annotated[
    float, typer.Option(help="Share of images that may be unreadable; ten always may.", rich_help_panel=DATA)
]
