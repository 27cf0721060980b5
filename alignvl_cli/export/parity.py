"""How far an exported file is from the run it came from: the largest difference between their embeddings.

Letters: N rows, D width of a latent, E shared width.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch

from alignvl_cli.encoders.records import PROBE_TEXTS
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.retrieval.nearest import spaced
from alignvl_cli.store.reader import Store
from alignvl_cli.training.run_folder import Run

TOLERANCE = 1e-4
"""Of a coordinate of a unit row: in float32 a sound export stays some hundred times below."""
ROWS = 256
TEXTS = 64


@dataclass(frozen=True, slots=True)
class Parity:
    """One comparison that was made."""

    what: str
    rows: int
    largest: float
    """Largest absolute difference of any coordinate of any embedding."""


def probe_latents(run: Run, store: Store | None, side: str) -> np.ndarray:
    """(N, D) float32 of the side `image` or `text`: evenly spaced rows of the store, else normal draws of their RMS."""
    if store is None:
        width = run.adapters.shape.image_width if side == "image" else run.adapters.shape.text_width
        draws_ND = torch.randn(ROWS, width, generator=torch.Generator().manual_seed(0))
        return (draws_ND * run.config["latent_rms"][side]).numpy()
    is_image = side == "image"
    latent, block = (store.image_latent, store.image_block) if is_image else (store.text_latent, store.text_block)
    return block(spaced(len(latent), ROWS))


def probe_texts(store: Store | None) -> list[str]:
    """Captions that tell tokenizers apart, and evenly spaced ones of the store."""
    captions: list[str] = [] if store is None else store.text_caption
    chosen = [captions[row] for row in spaced(len(captions), TEXTS)]
    return [*PROBE_TEXTS, "a red heart", "two dogs running on a beach", *chosen]


def require_parity(what: str, ours_NE: np.ndarray, theirs_NE: np.ndarray) -> Parity:
    """The comparison; DataError when shapes differ, a value is not finite, or the difference is above 1e-4."""
    if ours_NE.shape != theirs_NE.shape:
        raise DataError(f"{what}: the export gives {theirs_NE.shape}, the run {ours_NE.shape}: nothing was written")
    largest = float(np.abs(ours_NE - theirs_NE).max())
    if not largest <= TOLERANCE:  # NaN fails too
        raise DataError(
            f"{what}: the export differs from the run by up to {largest:.2g}, above {TOLERANCE:g}: nothing was written;"
            " please report the encoders and the adapter, `alignvl inspect RUN` names both"
        )
    return Parity(what, len(ours_NE), largest)


def needed(module: str) -> Any:
    """The module, imported; UsageError that says what to install."""
    try:
        return import_module(module)
    except ModuleNotFoundError as problem:
        if problem.name != module:  # it is here, and does not load
            raise
        raise UsageError(
            f"this export needs {module}, which is not installed; try: pip install 'alignvl[export]'"
        ) from problem
