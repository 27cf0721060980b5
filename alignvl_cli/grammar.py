"""How one setting is written, in flags, files and studies: its type, its range, the words that stand for numbers."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from enum import StrEnum
from typing import Any

from alignvl_cli.config import Recipe, Size, SubsetKind
from alignvl_cli.errors import UsageError, check_flag
from alignvl_cli.recipes import DETAIL_DEFAULTS, INGREDIENTS, RELEASED_SHAPE


def by_flag(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings under their flags' names without the dashes: `noise_std` is `noise-std`."""
    return {name.replace("_", "-"): value for name, value in settings.items()}


KINDS: dict[str, type] = {
    "recipe": Recipe,
    "size": Size,
    **dict.fromkeys(INGREDIENTS[Recipe.alignvl], bool),
    **{key: type(value) for key, value in (DETAIL_DEFAULTS | by_flag(asdict(RELEASED_SHAPE))).items()},
}
"""Every setting of `train`, as its flag is spelled without the dashes, and its type."""
KIND_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}

RANGES: dict[str, tuple[str, Any]] = {
    "corrupt-captions": ("a share from 0 to 1", lambda value: 0 <= value <= 1),
    "mix-alpha": ("above 0", lambda value: value > 0),
    "noise-std": ("above 0 (switch the perturbation off with --no-rp)", lambda value: value > 0),
    "smoothing": ("above 0 and below 1 (switch smoothing off with --no-es)", lambda value: 0 < value < 1),
    "latent-width": ("at least 0 (0: the latents keep their width)", lambda value: value >= 0),
    "adapter-depth": ("at least 1", lambda value: value >= 1),
    "adapter-expansion": ("at least 1", lambda value: value >= 1),
    "embed-dim": ("at least 1", lambda value: value >= 1),
    "dropout": ("0, or from 0.002 to 0.996", lambda value: value == 0 or 0.002 <= value <= 0.996),  # 256 levels
    "epochs": ("at least 1", lambda value: value >= 1),
    "batch-size": ("at least 2", lambda value: value >= 2),
    "lr": ("above 0", lambda value: value > 0),
    "ema": ("at least 0 (off) and below 1", lambda value: 0 <= value < 1),
    "patience": ("at least 0 (off)", lambda value: value >= 0),
    "seed": ("from 0 to 2^63 - 1", lambda value: 0 <= value < 2**63),
}


def _temperature(text: str) -> float | None:
    """None for `learned`, tau for `fixed:TAU`."""
    if text == "learned":
        return None
    word, _, number = text.partition(":")
    try:
        tau = float(number)
    except ValueError:
        tau = math.nan
    if word != "fixed" or not 0.001 <= tau <= 0.5:
        raise UsageError(f"--temperature: wanted 'learned' or 'fixed:TAU' with TAU from 0.001 to 0.5, got '{text}'")
    return tau


def _loss_tile(text: str) -> int | None:
    """None for `auto`."""
    if text == "auto":
        return None
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise UsageError(f"--loss-tile: wanted 'auto' or a number of rows from 1, got '{text}'")
    return int(text)


SMALLEST_SUBSET = 4
"""Two batches of two pairs."""


def subset_of(text: str) -> tuple[SubsetKind, int] | None:
    """None for `all`; kind and number of pairs for `KIND:PAIRS`."""
    if text == "all":
        return None
    kind, _, number = text.partition(":")
    if kind not in list(SubsetKind) or not (number.isascii() and number.isdigit() and int(number) >= SMALLEST_SUBSET):
        kinds = ", ".join(f"'{kind}:PAIRS'" for kind in SubsetKind)
        raise UsageError(f"--subset: wanted 'all', {kinds} with at least {SMALLEST_SUBSET} pairs, got '{text}'")
    return SubsetKind(kind), int(number)


UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def share(text: str | float) -> float:
    """A part of a whole as it is typed: `0.01`, or `1%`; UsageError for anything else than a number from 0 to 1."""
    written = str(text).strip()
    try:
        value = float(written.removesuffix("%")) / (100 if written.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise UsageError(f"wanted a share from 0 to 1, as 0.01 or 1%, got '{text}'")
    return value


def size_in_bytes(flag: str, text: str, plain: int | None = None, also: str = "") -> int:
    """Bytes of `8GB`, `500MB` or `2GiB`, and of a plain number of `plain` bytes where that is given; UsageError that
    names `flag`, and what is wanted `also`, for anything else."""
    number = text.strip().rstrip("BIKMGTbikmgt ")
    unit = text.strip()[len(number) :].strip().lower()
    try:
        size = float(number) * (plain if plain and not unit else UNITS[unit])
    except (KeyError, ValueError):
        size = math.nan
    if not (math.isfinite(size) and size >= 1):
        raise UsageError(f"--{flag}: wanted {also}a size such as 8GB, 500MB or 2GiB, got '{text}'")
    return int(size)


def _memory_budget(text: str) -> int | None:
    """None for `none`."""
    return None if text == "none" else size_in_bytes("memory-budget", text, also="'none' or ")


GRAMMAR: dict[str, Callable[[str], Any]] = {
    "temperature": _temperature,
    "loss-tile": _loss_tile,
    "subset": subset_of,
    "memory-budget": _memory_budget,
}
"""Settings that are words or numbers: what reads them, and refuses what it cannot (UsageError)."""


def parse_setting(key: str, value: Any) -> Any:
    """`value` as the type of setting `key`, in range; UsageError otherwise."""
    if key not in KINDS:
        raise UsageError(f"unknown setting '{key}'.{did_you_mean(key, KINDS)}")
    kind = KINDS[key]
    if issubclass(kind, StrEnum):
        if value not in list(kind):
            raise UsageError(f"--{key}: '{value}' is not one of {', '.join(kind)}")
        return kind(value)
    if kind is float and type(value) is int:
        value = float(value)
    if key == "loss-tile" and type(value) is int:
        value = str(value)
    if type(value) is not kind:
        raise UsageError(f"--{key}: wanted {KIND_WORDS[kind]}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"--{key}: wanted a finite number, got {value}")
    if key in RANGES:
        wanted, holds = RANGES[key]
        check_flag(holds(value), key, wanted, value)
    if key in GRAMMAR:
        GRAMMAR[key](str(value))
    return value


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` when a known name is close to `word`, else nothing."""
    import difflib  # with tomllib, a tenth of the start-up time of `--help`

    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""
