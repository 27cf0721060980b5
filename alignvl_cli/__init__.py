"""alignvl: align two frozen encoders, and find out which ingredient of the training helped.

The public names load on first use, so that importing the package costs nothing. `docs/python.md` shows them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignvl_cli.api import (
        Combined,
        DualEncoder,
        Like,
        build_index,
        classify,
        evaluate,
        extract,
        open_store,
        run_study,
        search,
        train,
        write_map,
    )

    __version__: str

__all__ = [
    "Combined",
    "DualEncoder",
    "Like",
    "__version__",
    "build_index",
    "classify",
    "copy_artefact",
    "evaluate",
    "extract",
    "open_store",
    "run_study",
    "search",
    "train",
    "write_map",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from alignvl_cli.artifacts import alignvl_version

        return alignvl_version()
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = {"open_store": "store.reader", "DualEncoder": "retrieval.dual_encoder"}.get(name, "api")
    return getattr(import_module(f"alignvl_cli.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
