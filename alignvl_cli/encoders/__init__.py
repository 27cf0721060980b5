"""Frozen encoders: pictures and captions in, latents out, through transformers' own classes.

`vision.load_vision` and `text.load_text` give the two towers; `decoding.decode_image` turns bytes into
a picture; `records` says what decides a latent; `bundled` holds the pair that works offline.
"""

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import parent_process

BESIDE = ("torchvision", "accelerate", "kernels", "sentencepiece")
"""Libraries that transformers imports wherever they are installed, and that alignvl does without."""
SET_ASIDE = "ALIGNVL_SET_ASIDE"
"""Environment variable that tells worker processes what the first one found: they need not try it again."""


def _set_aside() -> dict[str, str]:
    """The libraries of `BESIDE` that do not load, and why: from here on they are not there, for transformers too.

    One that was built for another torch would otherwise stop every model.
    """
    if parent_process() is not None:
        broken = dict.fromkeys(filter(None, os.environ.get(SET_ASIDE, "").split(",")), "")
    else:
        broken = {}
        for name in BESIDE:
            try:
                if find_spec(name) is not None:
                    import_module(name)
            except Exception as problem:  # whatever a library of another make raises
                broken[name] = f"{type(problem).__name__}: {problem}"
        os.environ[SET_ASIDE] = ",".join(broken)
    sys.modules.update(dict.fromkeys(broken))  # type: ignore[arg-type]  # None: an import finds no such module
    return broken


BROKEN = _set_aside()
"""Library beside us -> why it does not load."""
