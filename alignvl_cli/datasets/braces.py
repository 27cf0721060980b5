"""Brace patterns as shells have them: `shard-{0000..0009}.tar`, `{train,val}.tar`."""

import re
from collections.abc import Iterator

from alignvl_cli.errors import UsageError

GROUP = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
MOST = 1_000_000
"""Names from one pattern: a slip of the finger must not fill the memory."""


def expanded(pattern: str) -> Iterator[str]:
    """Each name that the pattern stands for, in order; a text without braces stands for itself.

    A number with leading zeros gives the width of its range. UsageError for a brace without its other
    half, one with neither `..` nor a comma, a falling range, or more than a million names.
    """
    match = GROUP.search(pattern)
    if match is None:
        if "{" in pattern or "}" in pattern:
            raise UsageError(f"{pattern}: a brace without its other half; write shard-{{0000..0009}}.tar")
        yield pattern
        return
    for choice in _choices(pattern, match[1]):
        yield from expanded(pattern[: match.start()] + choice + pattern[match.end() :])


def _choices(pattern: str, inside: str) -> Iterator[str]:
    bounds = RANGE.fullmatch(inside)
    if bounds is None:
        if "," not in inside:
            raise UsageError(f"{pattern}: {{{inside}}} is neither a range like {{0000..0009}} nor a list like {{a,b}}")
        yield from inside.split(",")
        return
    first, last = int(bounds[1]), int(bounds[2])
    if not first <= last < first + MOST:
        raise UsageError(f"{pattern}: {{{inside}}} is a falling range, or one of more than {MOST} names")
    padded = any(text.startswith("0") and len(text) > 1 for text in bounds.groups())
    width = max(map(len, bounds.groups())) if padded else 0
    for number in range(first, last + 1):
        yield f"{number:0{width}d}" if width else str(number)
