"""Settings of every stage: the choices (enums) and what they add up to (frozen dataclasses). A flag is a field is a
study's arm.

No heavy library is imported, so that `--help` is instant. `recipes` says how flags, file, recipe, size and defaults
become one `TrainConfig`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from alignvl_cli.errors import UsageError, check_flag

MAX_PIXELS = 89_478_485
"""Pillow's own warning limit: a quarter of a gigabyte of RGB."""
BUNDLED = "bundled:"
"""Before the name of an encoder that the extra `demo` brings."""
DEFAULT_VISION = BUNDLED + "efficientnet-lite0"
DEFAULT_TEXT = BUNDLED + "all-minilm-l6-v2"
ALWAYS_FORGIVEN = 10
"""Images that may be unreadable however small the dataset is."""


def too_many_rejected(rejected: int, images: int, share: float) -> bool:
    """Whether more of `images` were rejected than `share` of them and the ten that always may be."""
    return rejected > max(ALWAYS_FORGIVEN, share * images)


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


class Gallery(StrEnum):
    """What is searched: the images, or the captions (`--of`)."""

    image = "image"
    text = "text"


class HubnessReport(StrEnum):
    """What is told of hubs (`eval --hubness`)."""

    report = "report"
    """How unevenly the gallery's rows occur among the nearest ones."""
    nnn = "nnn"
    """Also recall after nearest-neighbour normalisation, which needs the training split alone."""
    inverted_softmax = "inverted-softmax"
    """Also recall after inverted softmax, which uses all test queries together."""


class HubCorrection(StrEnum):
    """What a search can correct hubs with (`index --hubness`): one query at a time, so nothing transductive."""

    nnn = "nnn"


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
        check_flag(self.batch_size is None or self.batch_size >= 1, "batch-size", "at least 1", self.batch_size)
        check_flag(self.workers is None or self.workers >= 0, "workers", "at least 0", self.workers)
        check_flag(self.max_pixels >= 1, "max-pixels", "at least 1", self.max_pixels)
        check_flag(0 <= self.max_rejected <= 1, "max-rejected", "a share from 0 to 1", self.max_rejected)


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


def by_flag(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings under their flags' names without the dashes: `noise_std` is `noise-std`."""
    return {name.replace("_", "-"): value for name, value in settings.items()}


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


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` when a known name is close to `word`, else nothing."""
    import difflib  # with tomllib, a tenth of the start-up time of `--help`

    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""
