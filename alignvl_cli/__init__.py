"""alignvl: align two frozen encoders, and find out which ingredient of the training helped.

The public names load on first use, so that importing the package costs nothing:
`DualEncoder` embeds texts and images with a trained run, `open_store` reads a store of latents.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "DualEncoder": "alignvl_cli.retrieval.dual_encoder",
    "open_store": "alignvl_cli.store.reader",
}
__all__ = ["DualEncoder", "open_store"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
