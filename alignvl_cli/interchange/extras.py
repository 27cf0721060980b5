"""What the extra `export` brings."""

from importlib import import_module
from typing import Any

from alignvl_cli.errors import UsageError


def needed(module: str) -> Any:
    """The module, imported; UsageError that says what to install."""
    try:
        return import_module(module)
    except ImportError as problem:
        raise UsageError(
            f"this export needs {module}, which is not installed; try: pip install 'alignvl[export]'"
        ) from problem
