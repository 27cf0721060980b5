"""Settings of every stage: frozen dataclasses and enums that the command line, files and studies share.

A flag is a field is a study's arm. This module imports no heavy library, so that `--help` is instant.
Precedence: flag, then `--config` file, then recipe (ingredients) or size (shapes), then default.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from alignvl_cli.errors import DataError, UsageError

MAX_PIXELS = 89_478_485
"""Pillow's own warning limit: a quarter of a gigabyte of RGB."""
ALWAYS_FORGIVEN = 10
"""Images that may be unreadable however small the dataset is."""


class Device(StrEnum):
    auto = "auto"
    cuda = "cuda"
    mps = "mps"
    cpu = "cpu"


class Precision(StrEnum):
    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


class Pooling(StrEnum):
    """Which vector of a frozen encoder is the latent."""

    cls = "cls"
    mean = "mean"
    last = "last"
    pooler = "pooler"
    cls_mean = "cls+mean"
    projection = "projection"


@dataclass(frozen=True, kw_only=True, slots=True)
class Trust:
    """What of a model's own files may run code: nothing, unless the user says so each time it is loaded."""

    remote_code: bool = False
    """`--trust-remote-code`: Python files beside the weights."""
    pickle: bool = False
    """`--allow-pickle`: weights that are read by unpickling."""


class StoreDtype(StrEnum):
    float32 = "float32"
    float16 = "float16"


class LatentFormat(StrEnum):
    """Files that a store is exported to."""

    npy = "npy"
    safetensors = "safetensors"


class ExportTarget(StrEnum):
    """What will load an exported run (`--to`)."""

    onnx = "onnx"
    sentence_transformers = "sentence-transformers"
    safetensors = "safetensors"


class Shell(StrEnum):
    """What `alignvl completion` prints a script for."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


class DatasetFormat(StrEnum):
    """How a dataset is laid out (`--format`)."""

    jsonl = "jsonl"
    csv = "csv"
    tsv = "tsv"
    parquet = "parquet"
    karpathy = "karpathy"
    coco = "coco"
    flickr_token = "flickr-token"
    flickr_csv = "flickr-csv"
    folder = "folder"
    webdataset = "webdataset"
    huggingface = "huggingface"


class Init(StrEnum):
    """Where the adapters start: drawn at random, or at the canonical correlations of the training latents."""

    random = "random"
    cca = "cca"


class Method(StrEnum):
    """How the adapters are found: by training, or in closed form."""

    contrastive = "contrastive"
    procrustes = "procrustes"
    cca = "cca"
    ridge = "ridge"


class CorruptKind(StrEnum):
    """What image a corrupted caption gets."""

    shuffle = "shuffle"
    near = "near"


class SubsetKind(StrEnum):
    """How the training pairs to keep are chosen."""

    uniform = "uniform"
    kdpp = "kdpp"
    quality = "quality"


class NoiseKind(StrEnum):
    gaussian = "gaussian"
    uniform = "uniform"
    laplace = "laplace"
    dropout = "dropout"
    none = "none"


class NoiseUnits(StrEnum):
    absolute = "absolute"
    rms = "rms"


class NoiseMatch(StrEnum):
    """What `uniform` shares with a gaussian of the same `--noise-std`: its variance, or its half range."""

    variance = "variance"
    range = "range"


class NoisePosition(StrEnum):
    input = "input"
    output = "output"


class MixCoefficient(StrEnum):
    batch = "batch"
    pair = "pair"


class EsTarget(StrEnum):
    """Where the smoothed mass goes."""

    uniform = "uniform"
    off_diagonal = "off-diagonal"
    similarity = "similarity"


class EsSchedule(StrEnum):
    constant = "constant"
    linear = "linear"
    confidence = "confidence"


class LatentNorm(StrEnum):
    none = "none"
    l2 = "l2"
    standardize = "standardize"


class Loss(StrEnum):
    infonce = "infonce"
    sigmoid = "sigmoid"


class AdapterKind(StrEnum):
    fusemix = "fusemix"
    linear = "linear"
    mlp = "mlp"
    glu = "glu"


class Recipe(StrEnum):
    alignvl = "alignvl"
    fusemix = "fusemix"
    clip = "clip"
    sail = "sail"
    best = "best"


class Size(StrEnum):
    auto = "auto"
    released = "released"


class ReportTo(StrEnum):
    """Where a run's figures go besides `metrics.jsonl`."""

    tensorboard = "tensorboard"


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetOptions:
    """How to read the user's own data."""

    image_root: Path | None = None
    """Folder that relative image paths start from; default: the manifest's own (`--image-root`)."""
    image_column: str = "image"
    """`--image-column`"""
    caption_column: str | None = None
    """Default: `captions`, else `caption` (`--caption-column`)."""
    format: DatasetFormat | None = None
    """None: told from the path and what stands there (`--format`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractConfig:
    """Settings of one extraction, besides the encoders."""

    batch_size: int | None = None
    """Pictures, and captions, in one forward; None: as measured, or by the rule for CPUs (extraction/batches.py)."""
    workers: int | None = None
    """Processes that decode images; None: one for each core but one, none on small machines."""
    dtype: StoreDtype = StoreDtype.float32
    max_pixels: int = MAX_PIXELS
    max_rejected: float = 0.01
    """Share of the images that may be unreadable; ten images always may."""

    def __post_init__(self) -> None:
        _require(self.batch_size is None or self.batch_size >= 1, "batch-size", "at least 1", self.batch_size)
        _require(self.workers is None or self.workers >= 0, "workers", "at least 0", self.workers)
        _require(self.max_pixels >= 1, "max-pixels", "at least 1", self.max_pixels)
        _require(0 <= self.max_rejected <= 1, "max-rejected", "a share from 0 to 1", self.max_rejected)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Every setting that decides a trained adapter pair, resolved: no field is left open."""

    method: Method
    recipe: Recipe
    size: Size

    corrupt_captions: float
    """Share of the training pairs whose caption gets another image."""
    corrupt_kind: CorruptKind
    subset: str
    """Training pairs kept: `all`, or `KIND:PAIRS` (see `subset_of`)."""

    # Ingredients: a recipe sets them.
    mix: bool
    mix_alpha: float
    mix_coefficient: MixCoefficient
    noise: NoiseKind
    noise_std: float
    noise_units: NoiseUnits
    noise_match: NoiseMatch
    noise_position: NoisePosition
    smoothing: float
    """Mass of the contrastive target that is spread over the batch; 0: a hard target."""
    es_target: EsTarget
    es_schedule: EsSchedule
    mask_duplicates: bool
    latent_norm: LatentNorm
    loss: Loss
    adapter: AdapterKind
    temperature: float | None
    """Fixed tau, or None: learned from 0.07; of the sigmoid loss 1 / t, learned from 0.1."""

    loss_tile: int | None
    """Side of the tiles that the loss is computed in; None: by batch size and memory."""

    # Shapes and schedule: a size sets them.
    latent_width: int
    init: Init
    adapter_depth: int
    adapter_expansion: int
    embed_dim: int
    dropout: float
    epochs: int
    batch_size: int
    """Rows in the loss, in every arm: mixing draws its partners besides."""
    lr: float

    ema: float
    """Decay of the weights' moving average, which is validated and kept in their place; 0: no averaging."""
    patience: int
    """Validations without a better one after which training stops; 0: it never does."""
    memory_budget: int | None
    """Bytes of training latents that may be in memory; beyond them windows of the store are. None: all are."""
    seed: int
    device: Device
    precision: Precision

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "TrainConfig":
        """The settings that `to_json` gave; KeyError, TypeError or ValueError when they are of another version."""
        kinds = {field.name: field.type for field in fields(cls)}
        if record.keys() != kinds.keys():
            raise KeyError(f"settings of another version: {sorted(record.keys() ^ kinds.keys())}")
        is_enum = {name: isinstance(kind, type) and issubclass(kind, StrEnum) for name, kind in kinds.items()}
        return cls(**{key: kinds[key](value) if is_enum[key] else value for key, value in record.items()})  # type: ignore[operator]

    @property
    def name(self) -> str:
        """Recipe, what departs from it, and the seed: the readable part of a run's folder name."""
        if self.method is not Method.contrastive:
            return f"{self.method.value}-s{self.seed}"
        plain = resolve_train({"recipe": self.recipe})
        parts = [self.recipe.value]
        if self.mix != plain.mix:
            parts.append("mix" if self.mix else "no-mix")
        if self.noise != plain.noise:
            parts.append("no-rp" if self.noise is NoiseKind.none else self.noise.value)
        if self.noise is not NoiseKind.none and self.noise_std != plain.noise_std:
            parts.append(f"std{self.noise_std:g}" + ("rms" if self.noise_units is NoiseUnits.rms else ""))
        if self.smoothing != plain.smoothing:
            parts.append(f"es{self.smoothing:g}" if self.smoothing else "no-es")
        if self.smoothing and self.es_target != plain.es_target:
            parts.append(self.es_target.value)
        if self.smoothing and self.es_schedule != plain.es_schedule:
            parts.append(self.es_schedule.value)
        if self.adapter != plain.adapter:
            parts.append(self.adapter.value)
        if self.loss != plain.loss:
            parts.append(self.loss.value)
        return "-".join([*parts, f"s{self.seed}"])


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
"""Pairs. Below it reduced latents, a narrow block and a narrow space did as well as wide ones."""


CAN_START_AT_CCA = (AdapterKind.fusemix, AdapterKind.linear)
"""Adapters that are one linear map when their residual branches give nothing."""


def auto_shape(pairs: int, init: Init = Init.cca) -> Shape:
    """Adapter and schedule for `pairs` training pairs: one block, 10 or 20 epochs of about seven batches or more.

    Chosen on the demo's training and validation splits, at about 3,700 pairs (docs/LOG.md); elsewhere a guess, and said
    to be one. `init` is the start of few pairs, whose learning rate depends on it; many start at random.
    """
    seventh = 1 << round(math.log2(max(pairs, 8) / 7))
    is_small = pairs < SMALL_DATA
    starts_at_cca = is_small and init is Init.cca
    return Shape(
        latent_width=512 if is_small else 0,
        init=Init.cca if starts_at_cca else Init.random,
        adapter_depth=1,
        adapter_expansion=1 if is_small else 4,
        embed_dim=256 if is_small else 512,
        dropout=0.6,
        epochs=10 if is_small else 20,
        batch_size=max(2, min(4096, pairs // 2, seventh)),
        lr=2e-4 if starts_at_cca else 3e-3 if is_small else 1e-3,
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
SHAPE_KEYS = tuple(field.name.replace("_", "-") for field in fields(Shape))
KINDS: dict[str, type] = {
    "recipe": Recipe,
    "size": Size,
    **dict.fromkeys(INGREDIENTS[Recipe.alignvl], bool),
    **{key: type(value) for key, value in DETAIL_DEFAULTS.items()},
    **{field.name.replace("_", "-"): type(getattr(RELEASED_SHAPE, field.name)) for field in fields(Shape)},
}
"""Every setting of `train`, as its flag is spelled without the dashes, and its type."""

SMALLEST_SUBSET = 4
"""Two batches of two pairs."""

RANGES: dict[str, tuple[str, Any]] = {
    "corrupt-captions": ("a share from 0 to 1", lambda value: 0 <= value <= 1),
    "mix-alpha": ("above 0", lambda value: value > 0),
    "noise-std": ("above 0 (switch the perturbation off with --no-rp)", lambda value: value > 0),
    "smoothing": ("above 0 and below 1 (switch smoothing off with --no-es)", lambda value: 0 < value < 1),
    "latent-width": ("at least 0 (0: the latents keep their width)", lambda value: value >= 0),
    "adapter-depth": ("at least 1", lambda value: value >= 1),
    "adapter-expansion": ("at least 1", lambda value: value >= 1),
    "embed-dim": ("at least 1", lambda value: value >= 1),
    "dropout": ("at least 0 and below 1", lambda value: 0 <= value < 1),
    "epochs": ("at least 1", lambda value: value >= 1),
    "batch-size": ("at least 2", lambda value: value >= 2),
    "lr": ("above 0", lambda value: value > 0),
    "ema": ("at least 0 (off) and below 1", lambda value: 0 <= value < 1),
    "patience": ("at least 0 (off)", lambda value: value >= 0),
    "seed": ("from 0 to 2^63 - 1", lambda value: 0 <= value < 2**63),
}


NOT_IN_ADAPTER = {
    AdapterKind.linear: ("adapter-depth", "adapter-expansion", "dropout"),
    AdapterKind.glu: ("adapter-depth",),
}


def resolve_train(*layers: Mapping[str, Any], pairs: int | None = None) -> TrainConfig:
    """The settings that `layers` ask for, the last layer strongest (file, then flags; base, then arm).

    Keys are flags without the dashes. `pairs` is the number of training pairs, which the automatic
    size depends on; without it the check of the settings is complete and the size a placeholder.
    Raises UsageError for an unknown key, a wrong value, a contradiction, or a setting without effect.
    """
    checked = _without_idle([{key: _parsed(key, value) for key, value in layer.items()} for layer in layers])
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
    can_start_at_cca = values["adapter"] in CAN_START_AT_CCA
    start = asked.get("init", Init.cca if can_start_at_cca else Init.random)
    if start is Init.cca and not can_start_at_cca:
        raise UsageError(f"--init cca starts one linear map, which --adapter {values['adapter']} is not; leave one out")
    shape = RELEASED_SHAPE if size is Size.released else auto_shape(10_000 if pairs is None else pairs, start)
    shape_values = {key.replace("_", "-"): value for key, value in asdict(shape).items()}
    values = shape_values | values | {"recipe": recipe, "size": size, "mix": on["mix"]}
    if is_solved:
        values |= {"adapter": AdapterKind.linear, "epochs": 0, "latent-width": 0, "init": Init.random}
    values["noise"] = values["noise"] if on["rp"] else NoiseKind.none
    values["smoothing"] = values["smoothing"] if on["es"] else 0.0
    values["temperature"] = _temperature(values["temperature"])
    values["loss-tile"] = _loss_tile(values["loss-tile"])
    values["memory-budget"] = _size(values["memory-budget"])
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
    return {key.replace("_", "-"): value for key, value in settings.items()}


def nearest(word: str, known: Mapping[str, Any] | list[str]) -> str:
    """` Did you mean 'x'?` when a known name is close to `word`, else nothing."""
    import difflib  # with tomllib, a tenth of the start-up time of `--help`

    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def _parsed(key: str, value: Any) -> Any:
    """`value` as the type of setting `key`, in range; UsageError otherwise."""
    if key not in KINDS:
        raise UsageError(f"unknown setting '{key}'.{nearest(key, KINDS)}")
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
        raise UsageError(f"--{key}: wanted {_KIND_WORDS[kind]}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"--{key}: wanted a finite number, got {value}")
    if key in RANGES:
        wanted, holds = RANGES[key]
        _require(holds(value), key, wanted, value)
    if key in GRAMMAR:
        GRAMMAR[key](str(value))
    return value


_KIND_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


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


ACT_ON_CLOSED_FORMS = (
    *("method", "seed", "size", "embed-dim", "latent-norm", "temperature"),
    *("device", "memory-budget", "corrupt-captions", "corrupt-kind", "subset"),
)


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


UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def _size(text: str) -> int | None:
    """Bytes of `8GB`, `500MB` or `2GiB`; None for `none`."""
    if text == "none":
        return None
    number = text.strip().rstrip("BIKMGTbikmgt ")
    unit = text.strip()[len(number) :].strip().lower()
    try:
        size = float(number) * UNITS[unit]
    except (KeyError, ValueError):
        size = math.nan
    if not (math.isfinite(size) and size >= 1):
        raise UsageError(f"--memory-budget: wanted 'none' or a size such as 8GB, 500MB or 2GiB, got '{text}'")
    return int(size)


def subset_of(text: str) -> tuple[SubsetKind, int] | None:
    """None for `all`; kind and number of pairs for `KIND:PAIRS`."""
    if text == "all":
        return None
    kind, _, number = text.partition(":")
    if kind not in list(SubsetKind) or not (number.isascii() and number.isdigit() and int(number) >= SMALLEST_SUBSET):
        kinds = ", ".join(f"'{kind}:PAIRS'" for kind in SubsetKind)
        raise UsageError(f"--subset: wanted 'all', {kinds} with at least {SMALLEST_SUBSET} pairs, got '{text}'")
    return SubsetKind(kind), int(number)


GRAMMAR: dict[str, Callable[[str], object]] = {
    "temperature": _temperature,
    "loss-tile": _loss_tile,
    "subset": subset_of,
    "memory-budget": _size,
}
"""Settings that are words or numbers: what reads them, and refuses what it cannot."""


def _require(holds: bool, key: str, wanted: str, value: Any) -> None:
    if not holds:
        raise UsageError(f"--{key}: wanted {wanted}, got {value}")
