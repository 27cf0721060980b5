"""Text made safe to show (captions, ids, paths: no markup is read in it, no control character acts), and times, sizes
and counts as a person says them.
"""

import json
import re
from typing import Any

from rich.text import Text

ACTING = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0, DEL and C1: escape sequences that move, colour or rename the terminal
    "\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff"  # reorder the line, or are not seen
    "\u2028\u2029\ud800-\udfff]"  # line separators, and halves of a character that cannot be encoded
)
PICTURE_OF_NUL = 0x2400
"""Unicode has a visible picture for each C0 control, in the same order."""
PICTURE_OF_DEL = "\u2421"


def visible(text: str) -> str:
    """`text` with every acting character replaced by a visible one: ESC by its picture, others by `\\uXXXX`."""
    return ACTING.sub(_shown, text)


def visible_lines(text: str) -> str:
    """As `visible`, keeping line feeds: for messages of ours that quote text from outside."""
    return "\n".join(map(visible, text.split("\n")))


def json_text(value: Any) -> str:
    """`value` as indented JSON whose acting characters are escaped, as JSON can: equal once read."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return ACTING.sub(lambda match: match[0] if match[0] == "\n" else f"\\u{ord(match[0]):04x}", text)


def safe(text: str, style: str = "") -> Text:
    """A rich text that shows `text` to the letter."""
    return Text(visible(text), style=style)


def markdown(text: str) -> str:
    """`text` for a cell of a Markdown table."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", visible(text))


def _shown(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(PICTURE_OF_NUL + code)
    return PICTURE_OF_DEL if code == 0x7F else f"\\u{code:04x}"


def as_time(seconds: float) -> str:
    """To the second: 42 s, 3:07, 2:05:09."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"


def roughly(seconds: float) -> str:
    """In one unit: 42 s, 3 min, 2.1 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def as_size(count: float) -> str:
    """Bytes: 412 B, 3 kB, 18 MB, 2.1 GB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:,.0f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


def counted(count: float, thing: str) -> str:
    """`1 seed`, `2 seeds`, `0.5 points`."""
    number = f"{count:,}" if isinstance(count, int) else f"{count:g}"
    return f"{number} {thing}" if count == 1 else f"{number} {thing}s"
