"""Writes a run for other programs: whole, compared with the run, and described, or not at all."""

from collections.abc import Callable
from pathlib import Path

from alignvl_cli.config import ExportTarget, Trust
from alignvl_cli.interchange.card import model_card
from alignvl_cli.interchange.onnx_files import write_onnx
from alignvl_cli.interchange.parity import Parity
from alignvl_cli.interchange.plain import write_safetensors
from alignvl_cli.interchange.sentence import write_sentence
from alignvl_cli.provenance import new_folder
from alignvl_cli.runs.folder import Run
from alignvl_cli.store.reader import Store

TARGETS: dict[ExportTarget, Callable[[Run, Store | None, Path, Trust], list[Parity]]] = {
    ExportTarget.onnx: write_onnx,
    ExportTarget.sentence_transformers: write_sentence,
    ExportTarget.safetensors: write_safetensors,
}
assert TARGETS.keys() == set(ExportTarget)
CARD = "README.md"


def export_run(run: Run, store: Store | None, target: ExportTarget, folder: Path, trust: Trust) -> list[Parity]:
    """Fill `folder` for `target` and return the comparisons made, on rows of `store` where there is one.

    The run must be on the CPU. UsageError when `folder` is there already or the target cannot hold this run;
    DataError when an embedding differs by more than 1e-4. In either case nothing is left behind.
    """
    with new_folder(folder) as scratch:
        compared = TARGETS[target](run, store, scratch, trust)
        (scratch / CARD).write_text(model_card(run, target, compared, scratch), encoding="utf-8")
    return compared
