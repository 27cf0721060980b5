"""A study file: arms of one question, as TOML, checked before anything is opened.

Loads no heavy library.
"""

import itertools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.recipes import one_layer, resolve_train
from alignvl_cli.settings import DEFAULT_MARGIN, Device, TrainConfig, by_flag, did_you_mean

KEYS = ("name", "question", "reference", "seeds", "margin", "base", "arms", "factors")
LONGEST_NAME = 100
LARGEST_SEED = 2**63 - 1
KEPT_OUT = ("seed", "device")
"""Settings that belong to the whole study, and not to an arm."""

Settings = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One setting of a study."""

    name: str
    layers: tuple[Settings, ...]
    """Settings above the base, the last one strongest."""
    levels: tuple[str, ...] = ()
    """Its level of each factor; empty when the arms are listed one by one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """What a study file asks for; every arm resolves."""

    name: str
    question: str
    reference: str
    seeds: tuple[int, ...]
    margin: float
    base: Settings
    arms: tuple[Arm, ...]
    factors: dict[str, tuple[str, ...]]
    """Factor -> its levels, the first being what the others are compared with."""

    def config(
        self,
        arm: Arm,
        seed: int = 0,
        *,
        device: Device = Device.auto,
        pairs: int | None = None,
        data: Settings | None = None,
    ) -> TrainConfig:
        """Every setting of one run; `pairs` as in `resolve_train`, `data` the settings of its cell."""
        return resolve_train(*self._layers(arm, seed, device, data), pairs=pairs)

    def given(self, arm: Arm, seed: int, device: Device, data: Settings | None = None) -> Settings:
        """What one run is asked for, by flag."""
        return one_layer(*self._layers(arm, seed, device, data))

    def _layers(self, arm: Arm, seed: int, device: Device, data: Settings | None) -> list[Settings]:
        return [self.base, data or {}, *arm.layers, {"seed": seed, "device": device}]

    def changed(self, seeds: Sequence[int] | None = None, margin: float | None = None) -> "Study":
        """With other seeds, another margin; None: its own. UsageError as in `load_study`."""
        return replace(
            self,
            seeds=self.seeds if seeds is None else check_seeds(list(seeds)),
            margin=self.margin if margin is None else check_margin(margin),
        )


def load_study(path: Path) -> Study:
    """Read and check a study file.

    DataError when it is missing or no TOML; UsageError for an unknown key, a missing one, an arm whose settings do not
    resolve, two arms of the same settings, or a name that cannot be a folder's.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as problem:
        raise DataError(f"{path}: cannot read this study ({problem.strerror})") from problem
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise DataError(f"{path}: not valid TOML ({problem})") from problem
    try:
        return parse_study(document)
    except UsageError as problem:
        raise UsageError(f"{path}: {problem}") from problem


def parse_study(document: Mapping[str, Any]) -> Study:
    """The study in a TOML document; UsageError as in `load_study`."""
    for key in document:
        if key not in KEYS:
            raise UsageError(f"unknown key '{key}'.{did_you_mean(key, list(KEYS))}")
    if ("arms" in document) == ("factors" in document):
        raise UsageError("a study has either [arms.NAME] tables or [factors.NAME] tables, one of the two")
    base = _settings(_typed(document, "base", dict, {}), "[base]")
    factors, arms = _crossed(document["factors"]) if "factors" in document else ({}, _listed(document["arms"]))
    study = Study(
        name=_folder_name(_typed(document, "name", str), "name"),
        question=_typed(document, "question", str, ""),
        reference=_typed(document, "reference", str),
        seeds=_seeds(document),
        margin=check_margin(document.get("margin", DEFAULT_MARGIN)),
        base=base,
        arms=arms,
        factors=factors,
    )
    _check_arms(study)
    return study


def _seeds(document: Mapping[str, Any]) -> tuple[int, ...]:
    """A list, or a text as after `--seeds`."""
    if isinstance(document.get("seeds"), str):
        return parse_seeds(document["seeds"])
    return check_seeds(_typed(document, "seeds", list))


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds as they are typed after `--seeds`: `0-9`, or `0,1,5`, or both; UsageError otherwise."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(f"--seeds: wanted a range or a list, e.g. 0-9 or 0,1,5, got '{text}'")
        if dash and int(last) - int(first) > 10_000:
            raise UsageError(f"--seeds: {text} are more than 10,000 seeds")
        seeds += range(int(first), int(last) + 1) if dash else [int(first)]
    if len(seeds) == 1 and "-" not in text:
        raise UsageError(f"--seeds {text}: say 0-{int(text) - 1} for {text} seeds, or {text}-{text} for this one alone")
    return check_seeds(seeds)


def check_seeds(seeds: list[Any]) -> tuple[int, ...]:
    if not seeds or not all(type(seed) is int and 0 <= seed <= LARGEST_SEED for seed in seeds):
        raise UsageError("seeds: wanted whole numbers from 0, at least one, e.g. [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]")
    if len(set(seeds)) < len(seeds):
        raise UsageError("seeds: one stands there twice; a repeated run is no new evidence")
    return tuple(seeds)


def check_margin(margin: Any) -> float:
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 < margin <= 100:
        raise UsageError(f"margin: wanted points of mean recall, above 0 and at most 100, got {margin!r}")
    return float(margin)


def _listed(tables: Any) -> tuple[Arm, ...]:
    if not isinstance(tables, dict):
        raise UsageError("arms: wanted [arms.NAME] tables")
    return tuple(
        Arm(name=_folder_name(name, "arm"), layers=(_settings(table, f"[arms.{name}]"),))
        for name, table in tables.items()
    )


def _crossed(tables: Any) -> tuple[dict[str, tuple[str, ...]], tuple[Arm, ...]]:
    """Every combination of one level of each factor is an arm, named by its levels."""
    if not isinstance(tables, dict) or not all(
        isinstance(levels, dict) and len(levels) > 1 for levels in tables.values()
    ):
        raise UsageError("factors: wanted [factors.NAME] tables of two levels or more, each a table of settings")
    factors = {factor: tuple(levels) for factor, levels in tables.items()}
    every = [level for levels in factors.values() for level in levels]
    if len(set(every)) < len(every):
        raise UsageError("factors: two levels share a name, and arms are named by their levels")
    arms = [
        Arm(
            name=_folder_name("+".join(levels), "arm"),
            layers=tuple(
                _settings(tables[factor][level], f"[factors.{factor}] {level}")
                for factor, level in zip(factors, levels, strict=True)
            ),
            levels=levels,
        )
        for levels in itertools.product(*factors.values())
    ]
    return factors, tuple(arms)


def _settings(table: Any, where: str) -> Settings:
    if not isinstance(table, dict):
        raise UsageError(f"{where}: wanted a table of settings, got {table!r}")
    settings = by_flag(table)
    for key in KEPT_OUT:
        if key in settings:
            raise UsageError(f"{where}: '{key}' is the whole study's, not an arm's: " + OUTSIDE[key])
    return settings


OUTSIDE = {"seed": "list seeds under `seeds`, or give --seeds", "device": "give --device"}


def _check_arms(study: Study) -> None:
    names = [arm.name for arm in study.arms]
    if len(names) < 2:
        raise UsageError("a study compares two arms or more")
    if study.reference not in names:
        raise UsageError(f"reference: no arm is called '{study.reference}'.{did_you_mean(study.reference, names)}")
    folded: dict[str, str] = {}
    for name in names:
        if folded.setdefault(name.casefold(), name) != name:
            raise UsageError(f"arms '{folded[name.casefold()]}' and '{name}' would be one folder on some systems")
    seen: dict[TrainConfig, str] = {}
    for arm in study.arms:
        try:
            config = study.config(arm)
        except UsageError as problem:
            raise UsageError(f"arm '{arm.name}': {problem}") from problem
        if config in seen:
            raise UsageError(f"arms '{seen[config]}' and '{arm.name}' are the same settings")
        seen[config] = arm.name


def _folder_name(name: str, what: str) -> str:
    """`name`, which becomes a folder's: UsageError for one that would leave its parent, or act on a terminal."""
    wrong = (
        not name.strip(" .")
        or name != name.strip()
        or len(name.encode("utf-8", "replace")) > LONGEST_NAME
        or any(letter in "/\\" or not letter.isprintable() for letter in name)
    )
    if wrong:
        raise UsageError(
            f"{what} {name!r}: a folder gets this name, so wanted at most {LONGEST_NAME} printable bytes "
            "without / or \\, not dots alone, and no space at either end"
        )
    return name


def _typed(document: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    value = document.get(key, default)
    if value is None:
        raise UsageError(f"the key '{key}' is missing")
    if not isinstance(value, kind):
        raise UsageError(f"{key}: wanted {WORDS[kind]}, got {value!r}")
    return value


WORDS: dict[Any, str] = {str: "text", list: "a list", dict: "a table"}
