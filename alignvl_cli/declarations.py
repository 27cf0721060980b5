"""How a setting is declared: a field of a frozen dataclass, made by `setting`, whose metadata say the rest.

`settings` is the table of them. This file reads one (type, range, words that stand for numbers) and tells its default.
"""

import math
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field
from enum import StrEnum
from functools import cache
from types import NoneType, UnionType
from typing import Any, ClassVar, NamedTuple, get_args, get_origin

from alignvl_cli.errors import UsageError

KIND_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


class Range(NamedTuple):
    """Values that a setting takes: in words, and whether one is among them."""

    wanted: str
    holds: Callable[[Any], bool]

    @property
    def short(self) -> str:
        """Without the remark in parentheses."""
        return self.wanted.partition(" (")[0]


def at_least(least: int, remark: str = "") -> Range:
    return Range(f"at least {least}" + (f" ({remark})" if remark else ""), lambda value: value >= least)


class Setting(NamedTuple):
    """What is said of a setting besides its name, type and default."""

    help: str
    panel: str | None = None
    """Heading in the help."""
    within: Range | None = None
    says: str = ""
    """The default in words: who decides it, or what stands for None."""
    note: str = ""
    """What the default means, told behind it."""
    flag: str = ""
    """Where the flag is not the field's name."""
    short: str = ""
    metavar: str = ""
    read: Callable[[str], Any] | None = None
    """Makes the value of a written word, where that is neither a number nor one of an enum; UsageError if it cannot."""
    envvar: str | None = None


def setting(help: str, default: Any = MISSING, panel: str | None = None, **more: Any) -> Any:
    """A field of a dataclass that is a setting; `more` as in `Setting`.

    Without a default, `says` tells who decides it (a recipe, a size); without that the user must."""
    return field(default=default, metadata={"setting": Setting(help, panel, **more)})


@dataclass(frozen=True, slots=True)
class Declared:
    """A setting with its name, type and default."""

    field: str
    said: Setting
    kind: type
    """Of the value, of its elements where it `is_list`; `str` where words stand for values (`Setting.read`)."""
    is_list: bool
    default: Any
    """MISSING where a recipe, a size or the user decides."""

    @property
    def flag(self) -> str:
        """Without the dashes: the key in files and studies."""
        return self.said.flag or self.field.replace("_", "-")

    @property
    def typed(self) -> str:
        """The flag as it is typed."""
        return f"-{self.flag}" if len(self.flag) == 1 else f"--{self.flag}"

    @property
    def is_switch(self) -> bool:
        """Whether it is off unless it is given, so that there is no `--no-`."""
        return self.kind is bool and self.default is False and not self.said.says

    @property
    def is_required(self) -> bool:
        return self.default is MISSING and not self.said.says

    @property
    def default_text(self) -> str:
        """The default as one would type it, or who decides it; empty for a switch, and where None means nothing."""
        has_none = self.is_switch or self.default is MISSING or self.default is None
        text = self.said.says or ("" if has_none else as_typed(self.default))
        return f"{text}, {self.said.note}" if self.said.note else text

    @property
    def help_text(self) -> str:
        """The help line, with default and range."""
        facts = [
            *([f"env var: {self.said.envvar}"] if self.said.envvar else []),
            *([f"default: {self.default_text}"] if self.default_text else []),
            *([self.said.within.short] if self.said.within else []),
        ]
        return f"{self.said.help}  [{'; '.join(facts)}]" if facts else self.said.help

    def check(self, value: Any) -> None:
        """UsageError for a value out of range."""
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{self.typed}: wanted a finite number, got {value}")
        if self.said.within is not None and not self.said.within.holds(value):
            raise UsageError(f"{self.typed}: wanted {self.said.within.wanted}, got {value}")

    def parse(self, value: Any) -> Any:
        """What was written, in a file, a study or after a flag, as the setting's type and in range; else UsageError."""
        if self.said.read is not None and type(value) in (str, int, float):
            return self.said.read(str(value))
        if issubclass(self.kind, StrEnum):
            if value not in list(self.kind):
                raise UsageError(f"{self.typed}: '{value}' is not one of {', '.join(self.kind)}")
            return self.kind(value)
        if self.kind is float and type(value) is int:
            value = float(value)
        if type(value) is not self.kind:
            raise UsageError(f"{self.typed}: wanted {KIND_WORDS[self.kind]}, got {value!r}")
        self.check(value)
        return value


def as_typed(value: Any) -> str:
    """A value as one would type it after a flag."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


@cache
def _declared(owner: Any) -> dict[str, Declared]:
    found = {}
    every: dict[str, Field[Any]] = getattr(owner, "__dataclass_fields__", {})
    for name, one in every.items():  # a flag that is no field of the record is a ClassVar, and stands there too
        if (said := one.metadata.get("setting")) is None:
            continue
        whole = get_args(one.type)[0] if get_origin(one.type) is ClassVar else one.type
        plain = next(part for part in get_args(whole) if part is not NoneType) if type(whole) is UnionType else whole
        is_list = get_origin(plain) is list
        kind: Any = str if said.read else get_args(plain)[0] if is_list else plain
        found[name] = Declared(name, said, kind, is_list, one.default)
    return found


def declared(owner: Any) -> dict[str, Declared]:
    """The settings of a class by field, in the order in which they stand there; none for any other object."""
    return _declared(owner)


class Checked:
    """A settings class whose objects are in range, whoever makes them; UsageError otherwise."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for name, one in declared(type(self)).items():
            if (value := getattr(self, name)) is not None:
                one.check(value)


def given(settings: Any) -> dict[str, Any]:
    """What of a settings object is not the default, by flag."""
    values = {one.flag: (getattr(settings, name), one.default) for name, one in declared(type(settings)).items()}
    return {flag: value for flag, (value, default) in values.items() if value != default}
