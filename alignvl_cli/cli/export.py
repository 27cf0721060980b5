"""`alignvl export`: a run for other programs."""

from pathlib import Path
from typing import Annotated

import typer

from alignvl_cli.cli.console import Session
from alignvl_cli.cli.options import DataOption
from alignvl_cli.declarations import given
from alignvl_cli.errors import UsageError
from alignvl_cli.settings import ExportSettings, ExportTarget, Trust


def export(
    session: Session,
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="Run to export. Default: the newest run.")] = None,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to make.")],
    data: DataOption = None,
    asked: ExportSettings,
) -> None:
    """Write a run as ONNX, sentence-transformers, safetensors or a folder for the Hub, or its embeddings as Parquet.

    A model card is written beside it. The embeddings are compared with the run's, on its store where that is
    found; above 1e-4 nothing is written. Prints the folder.
    """
    is_model = asked.to is not ExportTarget.parquet
    acts_on = {"split": ExportTarget.parquet, "dtype": ExportTarget.parquet, "push-to-hub": ExportTarget.hub_folder}
    for flag, target in acts_on.items():
        if flag in given(asked) and asked.to is not target:
            raise UsageError(f"--{flag} acts on --to {target} alone")

    from alignvl_cli.cli.workspace import find_store, store_of
    from alignvl_cli.export.export import export_run, push_folder
    from alignvl_cli.training.run_folder import load_run

    trained = load_run(run or session.newest_run(), "cpu")
    if data is None and is_model:
        store = find_store(session, trained.store_hash, trained.store_path, beside=trained.path)
    else:
        store = store_of(session, trained, data)
    if store is None:
        session.note("the store it was trained on is not here: compared on random latents and a few captions")
    trust = Trust(pickle=asked.allow_pickle)
    for found in export_run(trained, store, asked.to, output, trust, split=asked.split, dtype=asked.dtype):
        session.note(f"parity: {found.what}, {found.rows} rows: largest difference {found.largest:.2g}")
    if any(output.glob("*.py")):
        session.note(
            "the folder brings alignvl_blocks.py, modules that sentence-transformers lacks: load it with "
            "SentenceTransformer(FOLDER, trust_remote_code=True)"
        )
    if asked.push_to_hub is not None:
        session.note(f"uploaded: {push_folder(output, asked.push_to_hub)}")
    session.result(output)
