"""A split of a store in the shared space of a run: both modalities projected, in bounded memory."""

# N rows, D latent width, E shared width, I images, T captions.

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignvl_cli.errors import DataError, MismatchError
from alignvl_cli.store.joined import AnyStore, paths_of
from alignvl_cli.store.reader import SplitRows, Store
from alignvl_cli.training.run_folder import Run

PROJECT_ROWS = 4096
"""Latents that go through an adapter at a time."""


@dataclass(frozen=True)
class Embeddings:
    """Unit rows (float32, on the device of the projection) of the images and captions of `rows`."""

    img_IE: Tensor
    txt_TE: Tensor
    rows: SplitRows


def embed_split(run: Run, store: AnyStore, split: str, device: str) -> Embeddings:
    """Project the images and captions of a split (`all`: every row).

    MismatchError when the store holds latents of other encoders than the run was trained on; DataError when the
    split is absent or holds no caption, or a projection is not finite.
    """
    require_same_encoders(run, store)
    rows = store.rows(split)
    if len(rows.text) == 0:
        raise DataError(
            f"{paths_of(store)}: split {split!r} has {len(rows.image)} images but no caption to search with"
        )
    adapters = run.adapters.to(device)
    return Embeddings(
        img_IE=project(adapters.project_image, _blocks(store.image_block, rows.image), device),
        txt_TE=project(adapters.project_text, _blocks(store.text_block, rows.text), device),
        rows=rows,
    )


def project_images(run: Run, store: Store, row_I: np.ndarray, device: str) -> Tensor:
    """Unit rows (I, E) of the images at `row_I` of the store; errors as `embed_split`."""
    require_same_encoders(run, store)
    return project(run.adapters.to(device).project_image, _blocks(store.image_block, row_I), device)


def project_texts(run: Run, store: Store, row_T: np.ndarray, device: str) -> Tensor:
    """Unit rows (T, E) of the captions at `row_T` of the store; errors as `embed_split`."""
    require_same_encoders(run, store)
    return project(run.adapters.to(device).project_text, _blocks(store.text_block, row_T), device)


def project(adapter: Callable[[Tensor], Tensor], blocks: Iterable[np.ndarray], device: str) -> Tensor:
    """Latents (N, D), block by block, to unit rows (N, E) in float32; DataError when one is not finite."""
    with torch.inference_mode():
        unit_NE = torch.cat([adapter(torch.from_numpy(block_ND).to(device)).float() for block_ND in blocks])
    finite_N = torch.isfinite(unit_NE).all(dim=1)
    if not finite_N.all():
        row = int(finite_N.int().argmin())
        raise DataError(
            f"embedding {row} is NaN or infinite: the adapters or the latents are damaged; "
            "check both: alignvl inspect PATH --check"
        )
    return unit_NE


def require_same_encoders(run: Run, store: AnyStore) -> None:
    """MismatchError, both sides named, unless the store's latents are of the encoders that the run was trained on."""
    for one in store.stores:
        if run.encoder_hash != one.encoder_hash:
            raise MismatchError(
                f"{one.path} holds latents of {_pair(one.vision, one.text, one.encoder_hash)}, but {run.path} was "
                f"trained on {_pair(run.vision, run.text, run.encoder_hash)}{_what_differs(run, one)}; "
                f"name a store of the run's encoders with --data, or train on this one: alignvl train {one.path}"
            )


def _blocks(read: Callable[[np.ndarray], np.ndarray], row_N: np.ndarray) -> Iterable[np.ndarray]:
    return (read(row_N[start : start + PROJECT_ROWS]) for start in range(0, len(row_N), PROJECT_ROWS))


def _pair(vision: dict[str, Any], text: dict[str, Any], encoder_hash: str) -> str:
    return f"{vision['about']['id']} and {text['about']['id']} (encoder hash {encoder_hash[:8]})"


def _what_differs(run: Run, store: Store) -> str:
    """The fields of the encoder records in which two sides of one name differ, in words; empty when none does."""
    sides = {
        "vision": (run.vision["record"], store.vision["record"]),
        "text": (run.text["record"], store.text["record"]),
    }
    fields = [
        f"{tower} {key}" + ("" if key in ours and key in theirs else " (recorded on one side alone)")
        for tower, (ours, theirs) in sides.items()
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]
    return f" (they differ in: {', '.join(fields)})" if fields else ""
