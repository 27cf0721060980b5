"""Silence the logs, warnings and progress bars of transformers and huggingface_hub while they are called."""

import logging as levels
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging


@contextmanager
def quiet(bars: bool = False) -> Iterator[None]:
    """Silence log lines, Python warnings and (unless `bars`) progress bars; all settings are put back after."""
    verbosity, hub_verbosity = logging.get_verbosity(), hub_logging.get_verbosity()
    had_bars = logging.is_progress_bar_enabled()
    logging.set_verbosity(levels.CRITICAL)
    hub_logging.set_verbosity(levels.CRITICAL)
    if not bars:
        logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if had_bars:
            logging.enable_progress_bar()
