"""Captions as a store can hold them: what is replaced, what is dropped, and how often; and numbers as text."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

UNSTORABLE = re.compile("[\0\ud800-\udfff]")
"""NUL and lone surrogates: no UTF-8 text in a store can hold them."""
REPLACEMENT = "\ufffd"


@dataclass(slots=True)
class CaptionCleaner:
    """Counts over a whole dataset."""

    cleaned: int = 0
    """Captions in which something was replaced."""
    blank: int = 0
    """Captions of white space alone, which were dropped; a cell that is empty is no caption and not counted."""

    def clean(self, texts: Iterable[str]) -> list[str]:
        """The captions that say something, each made storable."""
        captions = []
        for text in texts:
            caption = storable(text)
            self.cleaned += caption != text
            if caption.strip():
                captions.append(caption)
            elif text:
                self.blank += 1
        return captions


def storable(text: str) -> str:
    """`text` with NUL and lone surrogates replaced by U+FFFD."""
    return UNSTORABLE.sub(REPLACEMENT, text)


def spelled(value: Any) -> Any:
    """`value`, or the text of a number: whole ones alike as int and as float (`3.0` is `3`), which is what a column
    of whole numbers becomes when one is missing; None for NaN."""
    if isinstance(value, float):
        if math.isnan(value):
            return None
        value = int(value) if value.is_integer() else str(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value
