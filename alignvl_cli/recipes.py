"""What a recipe, a size and silence stand for, and how what was asked for becomes what is trained: flag, then
`--config` file, then recipe (ingredients) or size (shapes), then default.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from alignvl_cli.errors import DataError, UsageError, check_flag
from alignvl_cli.settings import (
    AdapterKind,
    CorruptKind,
    Device,
    EsSchedule,
    EsTarget,
    Init,
    LatentNorm,
    Loss,
    Method,
    MixCoefficient,
    NoiseKind,
    NoiseMatch,
    NoisePosition,
    NoiseUnits,
    Precision,
    Recipe,
    Size,
    TrainConfig,
    by_flag,
    did_you_mean,
    size_in_bytes,
    subset_of,
)

INGREDIENTS: dict[Recipe, dict[str, Any]] = {
    Recipe.alignvl: {"mix": True, "rp": True, "es": True},
    Recipe.fusemix: {"mix": True, "rp": False, "es": False},
    Recipe.clip: {"mix": False, "rp": False, "es": False},
    Recipe.sail: {"mix": False, "rp": False, "es": False},
    Recipe.best: {"mix": True, "rp": False, "es": False},
}
RECIPE_DETAILS: dict[Recipe, dict[str, Any]] = {
    Recipe.sail: {"adapter": AdapterKind.glu, "loss": Loss.sigmoid},
    Recipe.best: {"mask-duplicates": True},
}
"""What a recipe has besides, where that is not the default."""
SWITCHED_BY = {
    "mix": ("mix-alpha", "mix-coefficient"),
    "rp": ("noise", "noise-std", "noise-units", "noise-match", "noise-position"),
    "es": ("smoothing", "es-target", "es-schedule"),
}
"""Setting a detail of an ingredient switches the ingredient on."""

DETAIL_DEFAULTS: dict[str, Any] = {
    "method": Method.contrastive,
    "corrupt-captions": 0.0,
    "corrupt-kind": CorruptKind.shuffle,
    "subset": "all",
    "mix-alpha": 1.0,
    "mix-coefficient": MixCoefficient.batch,
    "noise": NoiseKind.gaussian,
    "noise-std": 0.01,
    "noise-units": NoiseUnits.absolute,
    "noise-match": NoiseMatch.variance,
    "noise-position": NoisePosition.input,
    "smoothing": 0.1,
    "es-target": EsTarget.uniform,
    "es-schedule": EsSchedule.constant,
    "mask-duplicates": False,
    "latent-norm": LatentNorm.none,
    "loss": Loss.infonce,
    "adapter": AdapterKind.fusemix,
    "temperature": "learned",
    "loss-tile": "auto",
    "ema": 0.0,
    "patience": 0,
    "memory-budget": "none",
    "seed": 0,
    "device": Device.auto,
    "precision": Precision.auto,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What `--size` decides."""

    latent_width: int
    """Wider latents are reduced to so many principal components of the training split; 0: never."""
    init: Init
    adapter_depth: int
    adapter_expansion: int
    embed_dim: int
    dropout: float
    epochs: int
    batch_size: int
    lr: float


RELEASED_SHAPE = Shape(
    latent_width=0,
    init=Init.random,
    adapter_depth=4,
    adapter_expansion=4,
    embed_dim=512,
    dropout=0.6,
    epochs=250,
    batch_size=20_480,
    lr=1e-3,
)
"""FuseMix release (Vouitsis et al., CVPR 2024): 40,960 drawn pairs for 500 epochs are 20,480 rows for 250 of ours."""

SMALL_DATA = 20_000
"""Pairs. Below it a drawn start takes a narrow block and a narrow space as well."""

CAN_START_AT_CCA = (AdapterKind.fusemix, AdapterKind.linear)
"""Adapters that are one linear map when their residual branches give nothing."""


def auto_shape(pairs: int, init: Init = Init.cca) -> Shape:
    """Adapter and schedule for `pairs` training pairs: one block, batches of about a seventh of the pairs up to 4,096.

    From a start at CCA one narrow block and ten short epochs for any number: chosen on the demo's training and
    validation splits, at about 3,700 pairs, and on synthetic pairs, 3,000 to 100,000 (`benchmarks/sizes.py`,
    docs/LOG.md). From a drawn start, `init` random, the size for many pairs is a guess.
    """
    seventh = 1 << round(math.log2(max(pairs, 8) / 7))
    starts_at_cca = init is Init.cca
    is_narrow = starts_at_cca or pairs < SMALL_DATA
    return Shape(
        latent_width=512 if is_narrow else 0,
        init=init,
        adapter_depth=1,
        adapter_expansion=1 if is_narrow else 4,
        embed_dim=256 if is_narrow else 512,
        dropout=0.6,
        epochs=10 if is_narrow else 20,
        batch_size=max(2, min(4096, pairs // 2, seventh)),
        lr=2e-4 if starts_at_cca else 3e-3 if is_narrow else 1e-3,
    )


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


NOT_IN_ADAPTER = {
    AdapterKind.linear: ("adapter-depth", "adapter-expansion", "dropout"),
    AdapterKind.glu: ("adapter-depth",),
}
"""Settings that an adapter does not have."""
ACT_ON_CLOSED_FORMS = (
    *("method", "seed", "size", "embed-dim", "latent-norm", "temperature"),
    *("device", "memory-budget", "corrupt-captions", "corrupt-kind", "subset"),
)
"""All that a closed form heeds."""


def resolve_train(*layers: Mapping[str, Any], pairs: int | None = None) -> TrainConfig:
    """The settings that `layers` ask for, the last layer strongest (file, then flags; base, then arm).

    Keys are flags without the dashes. `pairs` is the number of training pairs, which the automatic
    size depends on; without it the check of the settings is complete and the size a placeholder.
    Raises UsageError for an unknown key, a wrong value, a contradiction, or a setting without effect.
    """
    checked = _without_idle([{key: parse_setting(key, value) for key, value in layer.items()} for layer in layers])
    asked: dict[str, Any] = {key: value for layer in checked for key, value in layer.items()}
    is_solved = asked.get("method", Method.contrastive) is not Method.contrastive
    recipe = Recipe.clip if is_solved else asked.get("recipe", Recipe.alignvl)
    on = dict(INGREDIENTS[recipe])
    for layer in checked:
        on |= _switches(layer)
    values = DETAIL_DEFAULTS | RECIPE_DETAILS.get(recipe, {}) | asked
    if on["rp"] and values["noise"] is NoiseKind.none:  # switched on again above a layer that had it off
        values["noise"] = DETAIL_DEFAULTS["noise"]
    _refuse_idle(asked, values, on)
    kept = subset_of(values["subset"])
    pairs = pairs if kept is None else kept[1] if pairs is None else min(kept[1], pairs)
    size = asked.get("size", Size.auto)
    can_start_at_cca = values["adapter"] in CAN_START_AT_CCA and not is_solved
    start = asked.get("init", Init.cca if can_start_at_cca else Init.random)
    if start is Init.cca and not can_start_at_cca:
        raise UsageError(f"--init cca starts one linear map, which --adapter {values['adapter']} is not; leave one out")
    shape = RELEASED_SHAPE if size is Size.released else auto_shape(10_000 if pairs is None else pairs, start)
    values = by_flag(asdict(shape)) | values | {"recipe": recipe, "size": size, "mix": on["mix"]}
    if is_solved:
        values |= {"adapter": AdapterKind.linear, "epochs": 0, "latent-width": 0, "init": Init.random}
    values["noise"] = values["noise"] if on["rp"] else NoiseKind.none
    values["smoothing"] = values["smoothing"] if on["es"] else 0.0
    for key in ("temperature", "loss-tile", "memory-budget"):
        values[key] = GRAMMAR[key](values[key])
    return TrainConfig(**{field.name: values[field.name.replace("_", "-")] for field in fields(TrainConfig)})


def read_settings(path: Path) -> dict[str, Any]:
    """The top-level keys of a TOML file, for a layer of `resolve_train`; `_` and `-` read alike."""
    import tomllib

    try:
        with open(path, "rb") as stream:
            settings = tomllib.load(stream)
    except OSError as problem:
        raise DataError(f"--config {path}: cannot be read ({problem.strerror})") from problem
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise DataError(f"--config {path}: not valid TOML ({problem})") from problem
    return by_flag(settings)


def run_name(config: TrainConfig) -> str:
    """Recipe, what departs from it, and the seed: the readable part of a run's folder name."""
    if config.method is not Method.contrastive:
        return f"{config.method.value}-s{config.seed}"
    plain = resolve_train({"recipe": config.recipe})
    parts = [config.recipe.value]
    if config.mix != plain.mix:
        parts.append("mix" if config.mix else "no-mix")
    if config.noise != plain.noise:
        parts.append("no-rp" if config.noise is NoiseKind.none else config.noise.value)
    if config.noise is not NoiseKind.none and config.noise_std != plain.noise_std:
        parts.append(f"std{config.noise_std:g}" + ("rms" if config.noise_units is NoiseUnits.rms else ""))
    if config.smoothing != plain.smoothing:
        parts.append(f"es{config.smoothing:g}" if config.smoothing else "no-es")
    if config.smoothing and config.es_target != plain.es_target:
        parts.append(config.es_target.value)
    if config.smoothing and config.es_schedule != plain.es_schedule:
        parts.append(config.es_schedule.value)
    if config.adapter != plain.adapter:
        parts.append(config.adapter.value)
    if config.loss != plain.loss:
        parts.append(config.loss.value)
    return "-".join([*parts, f"s{config.seed}"])


def _switches(layer: Mapping[str, Any]) -> dict[str, bool]:
    """Which ingredients this layer switches on or off, by their own flag or by a detail of theirs."""
    switched = {}
    for ingredient, details in SWITCHED_BY.items():
        given = [key for key in details if key in layer]
        off_by_kind = ingredient == "rp" and layer.get("noise") is NoiseKind.none
        if off_by_kind and (layer.get("rp") or len(given) > 1):
            other = "rp" if layer.get("rp") else next(key for key in given if key != "noise")
            raise UsageError(f"--noise none and --{other} contradict each other; leave one out")
        if layer.get(ingredient) is False and given and not off_by_kind:
            raise UsageError(f"--no-{ingredient} leaves --{given[0]} without effect; leave one of them out")
        if ingredient in layer:
            switched[ingredient] = layer[ingredient]
        elif given:
            switched[ingredient] = not off_by_kind
    return switched


def _without_idle(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The layers, without what a closed form asked for in a stronger layer leaves idle; UsageError for what is asked
    for beside it, or above it."""
    places = [place for place, layer in enumerate(layers) if "method" in layer]
    if not places or layers[places[-1]]["method"] is Method.contrastive:
        return layers
    for layer in layers[places[-1] :]:
        for key, value in layer.items():
            if key not in ACT_ON_CLOSED_FORMS:
                flag = f"--no-{key}" if value is False else f"--{key}"
                method = layers[places[-1]]["method"]
                raise UsageError(f"--method {method} is a closed form, on which {flag} has no effect; leave it out")
    return [{key: value for key, value in layer.items() if key in ACT_ON_CLOSED_FORMS} for layer in layers]


def _refuse_idle(asked: Mapping[str, Any], values: Mapping[str, Any], on: Mapping[str, bool]) -> None:
    """Refuse settings that the others leave without effect: nobody must believe that they acted."""
    if "corrupt-kind" in asked and not values["corrupt-captions"]:
        raise UsageError("--corrupt-kind says how, and --corrupt-captions SHARE how many; give both or neither")
    if "noise-match" in asked and on["rp"] and values["noise"] is not NoiseKind.uniform:
        raise UsageError(f"--noise-match acts on --noise uniform alone, and the noise is {values['noise']}")
    at_output = values["noise-position"] is NoisePosition.output
    if on["rp"] and at_output and values["noise"] is NoiseKind.dropout:
        raise UsageError("--noise dropout is sized by the RMS of the latents; it cannot act at --noise-position output")
    for key in NOT_IN_ADAPTER.get(values["adapter"], ()):
        if key in asked:
            raise UsageError(f"--adapter {values['adapter']} has no {key}; leave --{key} out")
