"""Both adapters as ONNX graphs: raw latents (rows, width) float32 in, unit embeddings (rows, shared width) out."""

import logging
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignvl_cli.align.adapters import Adapter
from alignvl_cli.encoders.quiet import quiet
from alignvl_cli.export.parity import Parity, needed, probe_latents, require_parity
from alignvl_cli.settings import Trust
from alignvl_cli.store.reader import Store
from alignvl_cli.training.run_folder import Run

OPSET = 18
"""Of the operators: the lowest that torch's exporter writes."""


class Unit(nn.Module):
    """An adapter with the division by the norm that follows it."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        self.adapter = adapter

    def forward(self, latent: Tensor) -> Tensor:
        return F.normalize(self.adapter(latent), dim=1)


def write_onnx(run: Run, store: Store | None, folder: Path, trust: Trust) -> list[Parity]:
    """`image_adapter.onnx` and `text_adapter.onnx`, each compared through onnxruntime."""
    onnxruntime = needed("onnxruntime")
    needed("onnxscript")
    compared = []
    for side in ("image", "text"):
        path = folder / f"{side}_adapter.onnx"
        probe_ND = probe_latents(run, store, side)
        _write(getattr(run.adapters, side), torch.from_numpy(probe_ND[:2]), path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (theirs_NE,) = session.run(None, {"latent": probe_ND})
        project: Callable[[Tensor], Tensor] = getattr(run.adapters, f"project_{side}")
        compared.append(require_parity(f"{side} adapter", project(torch.from_numpy(probe_ND)).numpy(), theirs_NE))
    return compared


def _write(adapter: Adapter, example: Tensor, path: Path) -> None:
    logging.disable(logging.WARNING)  # of operators of libraries that are not here, which no adapter uses
    try:
        with quiet():
            torch.onnx.export(
                Unit(adapter).eval(),
                (example,),
                path,
                input_names=["latent"],
                output_names=["embedding"],
                dynamic_shapes={"latent": {0: torch.export.Dim("rows")}},
                opset_version=OPSET,
                external_data=False,
                dynamo=True,
                verbose=False,
            )
    finally:
        logging.disable(logging.NOTSET)
