"""A study file: arms of one question, as TOML, checked before anything is opened.

Loads no heavy library.
"""

import itertools
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.recipes import one_layer, parse_setting, resolve_train
from alignvl_cli.settings import DEFAULT_MARGIN, Device, Recipe, Size, SubsetKind, TrainConfig, by_flag, did_you_mean

KEYS = ("name", "question", "reference", "seeds", "margin", "primary", "base", "data", "arms", "factors")
LONGEST_NAME = 100
LARGEST_SEED = 2**63 - 1
KEPT_OUT = ("seed", "device")
"""Settings that belong to the whole study, and not to an arm."""

ONE_SHAPE = {"size": Size.pairs}
"""Arms are compared at the same shape: it is not searched for in each."""
LIKE = "like"
"""Key of an arm: the arm whose settings it starts from."""

Settings = dict[str, Any]


class Primary(NamedTuple):
    """A metric that verdicts may be about."""

    name: str
    """In `results.parquet`, and in a study file."""
    words: str
    recall: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    """The K of its R@K, image to text and text to image; None when it is not made of recalls."""
    divisor: int = 1
    """Of the sum of those recalls."""
    scale: float = 1
    """What a recorded value is multiplied with, to be in points."""
    lower_is_better: bool = False
    margin: float = DEFAULT_MARGIN


def _primaries() -> Iterator[Primary]:
    ks = (1, 5, 10)
    yield Primary("mean_recall", "mean recall", (ks, ks), divisor=6)
    yield Primary("rsum", "RSUM", (ks, ks), margin=6 * DEFAULT_MARGIN)
    for place, (direction, words) in enumerate(
        (("image_to_text", "image to text"), ("text_to_image", "text to image"))
    ):
        for k in ks:
            yield Primary(f"{direction}.R@{k}", f"R@{k} {words}", ((k,), ()) if place == 0 else ((), (k,)))
        yield Primary(f"{direction}.mAP@R", f"mAP@R {words}")
        ece = f"calibration error {words}"
        yield Primary(f"{direction}.ece", ece, scale=100, lower_is_better=True)
        yield Primary(f"{direction}.ece_fitted", f"{ece}, tau fitted", scale=100, lower_is_better=True)


PRIMARIES = {primary.name: primary for primary in _primaries()}
DEFAULT_PRIMARY = "mean_recall"


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """The data of a study: every combination is a cell, in which all arms are compared."""

    stores: tuple[str, ...] = ()
    """As they are written; empty: the one store that the study is given."""
    subsets: tuple[str, ...] = ()
    corrupt: tuple[float, ...] = ()
    """Shares of wrong pairs."""

    def layers(self) -> list[Settings]:
        """Settings of each combination of subset and share."""
        return [
            ({"subset": subset} if subset else {}) | ({"corrupt-captions": share} if share else {})
            for subset, share in itertools.product(self.subsets or ("",), self.corrupt or (0.0,))
        ]

    @property
    def keys(self) -> tuple[str, ...]:
        """Settings that are no arm's any more."""
        return ("subset",) * bool(self.subsets) + ("corrupt-captions",) * bool(self.corrupt)


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
    """Points of the primary metric."""
    primary: str
    base: Settings
    data: Data | None
    """None: one store, whole."""
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
        config = resolve_train(*self._layers(arm, seed, device, data), pairs=pairs)
        if config.size is Size.auto:
            raise UsageError("size auto chooses a shape for each run, and arms are compared at one; leave it out")
        if config.recipe is Recipe.best:
            raise UsageError(
                "recipe best joins several trainings of different ingredients, and an arm is one training: compare its "
                "run with others by `alignvl eval RUN RUN --bootstrap`"
            )
        return config

    def given(self, arm: Arm, seed: int, device: Device, data: Settings | None = None) -> Settings:
        """What one run is asked for, by flag."""
        return one_layer(*self._layers(arm, seed, device, data))

    def _layers(self, arm: Arm, seed: int, device: Device, data: Settings | None) -> list[Settings]:
        base = self.base
        if self.data is not None and self.data.corrupt and "corrupt-captions" not in (data or {}):
            base = {key: value for key, value in base.items() if key != "corrupt-kind"}  # of no wrong pair
        return [ONE_SHAPE, base, data or {}, *arm.layers, {"seed": seed, "device": device}]

    def changed(self, seeds: Sequence[int] | None = None, margin: float | None = None) -> "Study":
        """With other seeds, another margin; None: its own. UsageError as in `load_study`."""
        return replace(
            self,
            seeds=self.seeds if seeds is None else check_seeds(list(seeds)),
            margin=self.margin if margin is None else check_margin(margin),
        )

    def record(self) -> Settings:
        """The part of `study.json` that `study_of` reads."""
        return {
            "name": self.name,
            "question": self.question,
            "reference": self.reference,
            "seeds": list(self.seeds),
            "margin": self.margin,
            "primary": self.primary,
            "base": self.base,
            "data": None if self.data is None else asdict(self.data),
            "factors": {factor: list(levels) for factor, levels in self.factors.items()},
            "arms": {arm.name: {"layers": list(arm.layers), "levels": list(arm.levels)} for arm in self.arms},
        }


def study_of(record: Mapping[str, Any]) -> Study:
    """The study in a `study.json`, of this or an earlier version."""
    data = record.get("data")
    return Study(
        name=record["name"],
        question=record["question"],
        reference=record["reference"],
        seeds=tuple(record["seeds"]),
        margin=record["margin"],
        primary=record.get("primary", DEFAULT_PRIMARY),
        base=record["base"],
        data=None if data is None else Data(**{key: tuple(values) for key, values in data.items()}),
        arms=tuple(
            Arm(name=name, layers=tuple(kept["layers"]), levels=tuple(kept["levels"]))
            for name, kept in record["arms"].items()
        ),
        factors={factor: tuple(levels) for factor, levels in record["factors"].items()},
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
    primary = _typed(document, "primary", str, DEFAULT_PRIMARY)
    if primary not in PRIMARIES:
        raise UsageError(
            f"primary: wanted one of {', '.join(PRIMARIES)}, got '{primary}'.{did_you_mean(primary, list(PRIMARIES))}"
        )
    study = Study(
        name=_folder_name(_typed(document, "name", str), "name"),
        question=_typed(document, "question", str, ""),
        reference=_typed(document, "reference", str),
        seeds=_seeds(document),
        margin=check_margin(document.get("margin", PRIMARIES[primary].margin)),
        primary=primary,
        base=base,
        data=_data(_typed(document, "data", dict)) if "data" in document else None,
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
        raise UsageError(f"margin: wanted points of the primary metric, above 0 and at most 100, got {margin!r}")
    return float(margin)


DATA_KEYS = {"stores": "stores", "subsets": "subsets", "corrupt-captions": "corrupt"}
"""Key of [data] -> field of `Data`."""


def _data(table: Settings) -> Data:
    kept: dict[str, tuple[Any, ...]] = {}
    for key, values in by_flag(table).items():
        if key not in DATA_KEYS:
            raise UsageError(f"[data]: unknown key '{key}'.{did_you_mean(key, list(DATA_KEYS))}")
        if not isinstance(values, list) or not values:
            raise UsageError(f"[data] {key}: wanted a list, got {values!r}")
        if key == "stores" and not all(isinstance(value, str) and value for value in values):
            raise UsageError(f"[data] stores: wanted paths or names of stores, got {values!r}")
        if key == "subsets":  # a number alone is drawn uniformly
            values = [f"{SubsetKind.uniform}:{value}" if type(value) is int else value for value in values]
            values = [parse_setting("subset", value) for value in values]
        elif key == "corrupt-captions":
            values = [parse_setting("corrupt-captions", value) for value in values]
        if len(set(values)) < len(values):
            raise UsageError(f"[data] {key}: one stands there twice; a repeated run is no new evidence")
        kept[DATA_KEYS[key]] = tuple(values)
    if not kept:
        raise UsageError(f"[data]: wanted one or more of {', '.join(DATA_KEYS)}")
    return Data(**kept)


def _listed(tables: Any) -> tuple[Arm, ...]:
    """An arm for each table, and each value where a setting has a list of them; `like` brings another's settings."""
    if not isinstance(tables, dict):
        raise UsageError("arms: wanted [arms.NAME] tables")
    arms: list[Arm] = []
    for name, table in tables.items():
        own = _settings(table, f"[arms.{name}]", sweeps=True)
        inherited = _inherited(name, own, tables)
        swept = {key: values for key, values in own.items() if isinstance(values, list)}
        for values in itertools.product(*swept.values()):
            layer = {key: value for key, value in own.items() if key != LIKE} | dict(zip(swept, values, strict=True))
            called = "-".join([name, *map(_in_a_name, values)])
            try:
                layer = one_layer(*inherited, layer) if inherited else layer
            except UsageError as problem:
                raise UsageError(f"arm '{called}': {problem}") from problem
            arms.append(Arm(name=_folder_name(called, "arm"), layers=(layer,)))
    names = [arm.name for arm in arms]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"two arms are called '{twice}': one is of a list of values; rename one of them")
    return tuple(arms)


def _in_a_name(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def _inherited(name: str, own: Settings, tables: Mapping[str, Any]) -> list[Settings]:
    """The settings that an arm starts from, the weakest first."""
    layers: list[Settings] = []
    seen = [name]
    while LIKE in own:
        other = own[LIKE]
        if other not in tables:
            raise UsageError(
                f"arm '{seen[-1]}': like: no arm is called {other!r}.{did_you_mean(str(other), list(tables))}"
            )
        if other in seen:
            raise UsageError(f"arm '{name}': like: {' is like '.join([*seen, other])}, which is a circle")
        own = _settings(tables[other], f"[arms.{other}]", sweeps=True)
        if swept := [key for key, value in own.items() if isinstance(value, list)]:
            raise UsageError(
                f"arm '{seen[-1]}': like: '{other}' is several arms, one for each {swept[0]}; name an arm of one value"
            )
        layers.insert(0, {key: value for key, value in own.items() if key != LIKE})
        seen.append(other)
    return layers


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


def _settings(table: Any, where: str, *, sweeps: bool = False) -> Settings:
    if not isinstance(table, dict):
        raise UsageError(f"{where}: wanted a table of settings, got {table!r}")
    settings = by_flag(table)
    for key, value in settings.items():
        if isinstance(value, list) and not (sweeps and key != LIKE and value):
            arms = "write one value, or a list in [arms.NAME], which makes an arm of each"
            raise UsageError(f"{where}: {key} = {value!r}: {arms}")
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
    kept = study.data.keys if study.data else ()
    for where, layer in [
        ("[base]", study.base),
        *((f"arm '{arm.name}'", layer) for arm in study.arms for layer in arm.layers),
    ]:
        if (key := next((key for key in kept if key in layer), None)) is not None:
            raise UsageError(f"{where}: '{key}' is set by [data] for all arms alike; leave one of the two out")
    folded: dict[str, str] = {}
    for name in names:
        if folded.setdefault(name.casefold(), name) != name:
            raise UsageError(f"arms '{folded[name.casefold()]}' and '{name}' would be one folder on some systems")
    seen: dict[TrainConfig, str] = {}
    for arm in study.arms:
        try:
            config = study.config(arm, data=study.data.layers()[-1] if study.data else None)
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
