"""A batch's way through an encoder: latents that a store can keep, or a message that says what to do."""

from collections.abc import Callable, Sequence, Sized
from functools import wraps
from typing import TypeVar

import numpy as np

from alignvl_cli.config import StoreDtype
from alignvl_cli.devices import is_out_of_memory
from alignvl_cli.errors import DataError
from alignvl_cli.store.writer import FLOAT16_MAX

Batch = TypeVar("Batch", bound=Sized)


def within_memory(encode: Callable[[Batch], np.ndarray], what: str) -> Callable[[Batch], np.ndarray]:
    """`encode`, which raises DataError for a batch that does not fit in memory; `what` names its items."""

    @wraps(encode)
    def encoded(batch: Batch) -> np.ndarray:
        try:
            return encode(batch)
        except (RuntimeError, MemoryError) as problem:
            if not is_out_of_memory(problem):
                raise
            raise DataError(
                f"{len(batch)} {what} at once do not fit in memory; give a smaller --batch-size, with --restart: "
                "another size begins again"
            ) from problem

    return encoded


def require_storable(latent_BD: np.ndarray, dtype: str, kind: str, names: Sequence[str]) -> None:
    """DataError unless every latent is finite and within `dtype`; it names the `kind` of item and the item."""
    most = FLOAT16_MAX if dtype == StoreDtype.float16 else np.finfo(np.float32).max
    is_within_B = (np.abs(latent_BD) <= most).all(axis=1)
    if is_within_B.all():
        return
    row = int(np.argmin(is_within_B))
    if np.isfinite(latent_BD[row]).all():
        raise DataError(
            f"the encoder returned a number beyond float16 ({FLOAT16_MAX:.0f}) for {kind} {names[row]!r}; use --dtype "
            "float32, which goes on with what is finished"
        )
    raise DataError(
        f"the encoder returned a number that is not finite for {kind} {names[row]!r}; try --precision fp32, or take "
        f"the {kind} out"
    )
