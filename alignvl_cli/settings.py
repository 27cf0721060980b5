"""THE table: each setting of each command, declared once. A flag is a field is a study's arm.

A class is a command's settings, or a part of several commands'. Its fields say all there is to know (`declarations`):
type, default or who decides it, range, help line, panel. `cli.options` makes the flags of them, `recipes` reads files
and studies by them, `cli.reference` writes docs/cli.md from them.

No heavy library is imported, so that `--help` is instant; for the same reason (each method of a dataclass is compiled)
what only carries flags to a command has neither `==` nor `repr`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from alignvl_cli.declarations import Checked, Range, at_least, declared, setting
from alignvl_cli.errors import UsageError

MAX_PIXELS = 89_478_485
"""Pillow's own warning limit: a quarter of a gigabyte of RGB."""
BUNDLED = "bundled:"
"""Before the name of an encoder that the extra `demo` brings."""
DEFAULT_VISION = BUNDLED + "efficientnet-lite0"
DEFAULT_TEXT = BUNDLED + "all-minilm-l6-v2"
LAST_LAYER = "last"
"""The part of a latent that is its encoder's own vector."""
AUTO_LAYERS = "auto"
"""A few layers from early to last, by the depth of the model: see `encoders.layers`."""
ALL_PARTS = "all"
ALWAYS_FORGIVEN = 10
"""Images that may be unreadable however small the dataset is."""
DEFAULT_MARGIN = 1.0
"""Points of mean recall within which two arms count as equivalent, where a study does not say."""
CACHE_GIB = 50.0
REPORTED_SPLIT = "test"
NO_REUSE = Path("none")
"""In place of a store whose latents to reuse."""
TEMPLATES = ("{}", "a photo of {}", "a picture of {}")
"""Prompts of a class, its label in them."""


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
    hub_folder = "hub-folder"
    parquet = "parquet"


class DatasetFormat(StrEnum):
    """How a dataset is laid out (`--format`)."""

    jsonl = "jsonl"
    csv = "csv"
    tsv = "tsv"
    parquet = "parquet"
    json = "json"
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
    csa = "csa"
    wasserstein_procrustes = "wasserstein-procrustes"
    """Without pairs, but for those that `--pair-share` lets in."""


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


class StructureDivergence(StrEnum):
    """How unlike STRUCTURE's neighbourhoods of latents and embeddings are."""

    paper = "paper"
    """Jensen-Shannon."""
    code = "code"
    """What the authors' code computes: the same with the arguments of both KL divergences exchanged."""


class LatentNorm(StrEnum):
    none = "none"
    l2 = "l2"
    standardize = "standardize"
    rms = "rms"
    """Centred, and scaled by one number, so that an entry's mean square is 1; again after `--latent-width`."""


class Loss(StrEnum):
    infonce = "infonce"
    sigmoid = "sigmoid"


class AdapterKind(StrEnum):
    fusemix = "fusemix"
    linear = "linear"
    mlp = "mlp"
    glu = "glu"


class OptimizerKind(StrEnum):
    adamw = "adamw"
    lion = "lion"


class Recipe(StrEnum):
    alignvl = "alignvl"
    fusemix = "fusemix"
    clip = "clip"
    sail = "sail"
    best = "best"


class Size(StrEnum):
    """What decides shape and schedule (`--size`)."""

    auto = "auto"
    """The number of training pairs; a second, plain pair of adapters is trained, and both joined with CCA."""
    pairs = "pairs"
    """The number of training pairs; one pair of adapters, alone: the same in every arm of a study."""
    released = "released"
    """As FuseMix released them."""


class KeepEpoch(StrEnum):
    """Which of the validated epochs a run keeps (`--keep-epoch`)."""

    latest = "latest"
    """The latest that is not clearly worse than the best, by less than a standard error of the validation recall."""
    best = "best"
    """The best: with few validation pairs mostly an early epoch that had luck, before the learning rate has fallen."""


class ReportTo(StrEnum):
    """Where a run's figures go besides `metrics.jsonl`."""

    tensorboard = "tensorboard"
    mlflow = "mlflow"
    wandb = "wandb"
    trackio = "trackio"


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


class ReportFormat(StrEnum):
    """What `alignvl report` writes (`--format`)."""

    table = "table"
    markdown = "markdown"
    latex = "latex"
    csv = "csv"
    json = "json"
    html = "html"


def _batch_size(text: str) -> int | None:
    """None for `auto`."""
    if text == "auto":
        return None
    if not text.isdecimal():
        raise UsageError(f"--batch-size: wanted a whole number or 'auto', got '{text}'")
    return int(text)


def layers_asked(text: str, flag: str) -> str:
    """`last`, `all`, `auto`, or layers with commas between them, as one writes them; UsageError for anything else."""
    names = [name.strip() for name in text.split(",")]
    is_listed = all(name == LAST_LAYER or (name.isascii() and name.isdigit()) for name in names)
    if not (is_listed or names in (["all"], ["auto"])):
        raise UsageError(f"--{flag}: wanted 'last', 'all', 'auto', or numbers such as 0,3,last, got '{text}'")
    return ",".join(name if name == LAST_LAYER or not is_listed else str(int(name)) for name in names)


def views_asked(text: str) -> int:
    """How many views of a picture; UsageError for a number that there is not."""
    if text.strip() not in ("1", "2", "4"):
        raise UsageError(f"--views: wanted 1, 2 or 4, got '{text}'")
    return int(text)


def _parts(text: str) -> str:
    return ",".join(name.strip() for name in text.split(","))


def _share(text: str) -> float:
    """A part of a whole as it is typed: `0.01`, or `1%`."""
    written = text.strip()
    try:
        return float(written.removesuffix("%")) / (100 if written.endswith("%") else 1)
    except ValueError:
        raise UsageError(f"--max-rejected: wanted a share from 0 to 1, as 0.01 or 1%, got '{text}'") from None


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


def _number_or_auto(flag: str, wanted: str, least: float, most: float, text: str) -> float | None:
    """None for `auto`; `wanted` is the range in words."""
    if text == "auto":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise UsageError(f"--{flag}: wanted 'auto' or a number {wanted}, got '{text}'")
    return value


def _loss_tile(text: str) -> int | None:
    """None for `auto`."""
    if text == "auto":
        return None
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise UsageError(f"--loss-tile: wanted 'auto' or a number of rows from 1, got '{text}'")
    return int(text)


LEFT_OUT: dict[str, Any] = {
    "image_parts": ALL_PARTS,
    "text_parts": ALL_PARTS,
    "cca_weight": 0.0,
    "unpaired_weight": 0.0,
    "optimizer": OptimizerKind.adamw,
    "tau_start": None,
    "keep_epoch": KeepEpoch.best,
    "pair_share": 0.0,
    "structure": 0.0,
    "structure_levels": 1,
    "structure_divergence": StructureDivergence.paper,
    "structure_warmup": 0.1,
}
"""Settings that a training's record leaves out where they are these: earlier versions had none of them."""
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


def _subset(text: str) -> str:
    subset_of(text)
    return text


GIB = 2**30
"""What the size of an index without a unit is counted in."""
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


def _memory_budget(text: str) -> int | None:
    """None for `none`."""
    return None if text == "none" else size_in_bytes("memory-budget", text, also="'none' or ")


def _memory(text: str) -> int:
    return size_in_bytes("memory", text, plain=GIB)


def _max_body(text: str) -> int:
    return size_in_bytes("max-body", text)


ABOVE_0 = Range("above 0", lambda value: value > 0)
SHARE = Range("a share from 0 to 1", lambda value: 0 <= value <= 1)
PRECISION = Range("a share above 0 and at most 1", lambda value: 0 < value <= 1)
SEED = Range("from 0 to 2^63 - 1", lambda value: 0 <= value < 2**63)
MARGIN = Range("above 0 and at most 100", lambda value: 0 < value <= 100)
NOISE_STD = Range("above 0 (switch the perturbation off with --no-rp)", ABOVE_0.holds)
MASS = Range("above 0 and below 1 (switch smoothing off with --no-es)", lambda value: 0 < value < 1)
DROPOUT = Range("0, or from 0.002 to 0.996", lambda value: value == 0 or 0.002 <= value <= 0.996)  # 256 levels
PORT = Range("from 0 to 65535 (0: a free one)", lambda value: 0 <= value < 2**16)
DECAY = Range("at least 0 (off) and below 1", lambda value: 0 <= value < 1)

BY_RECIPE, BY_SIZE = "by recipe", "by size"
ENCODERS, DATA, WORK = "Encoders", "Data", "Work"
MIXING, PERTURBATION, SMOOTHING = "Mixing (FuseMix)", "Random Perturbation (RP)", "Embedding Smoothing (ES)"
STRUCTURE = "Structure of the latents (STRUCTURE)"
MODEL, SCHEDULE = "Adapters and loss", "Schedule and machine"
PROTOCOL, REPORTS = "Protocol", "Reports"
LIMITS = "Limits"

# Settings of several commands; each class makes a field of its own of them.
device = partial(setting, "Where to compute; auto takes CUDA, else MPS, else the CPU.", Device.auto)
precision = partial(setting, "auto: bf16 where the hardware computes in it, else fp32.", Precision.auto)
overwrite = partial(setting, "Replace a complete artefact at --output.", False)
as_json = partial(setting, "One JSON document on stdout instead of the table.", False, flag="json")
split = partial(setting, "Split of the store, or `all`.")
max_pixels = partial(setting, "Larger images are rejected before decoding.", MAX_PIXELS, DATA, within=at_least(1))
max_rejected = partial(
    setting,
    "Share of images that may be unreadable, 0.01 or 1%; ten always may.",
    *(0.01, DATA),
    within=SHARE,
    metavar="SHARE",
    read=_share,
)
workers = partial(
    setting, "Processes that decode images.", None, WORK, within=at_least(0), says="by the machine"
)  # None: one for each core but one, none on small machines
pickled = "Read weights that are pickled where there are no safetensors."


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CommonSettings:
    """Of every command."""

    workspace: Path = setting(
        "Folder of artefacts without an explicit path.", Path("alignvl-workspace"), envvar="ALIGNVL_WORKSPACE"
    )
    quiet: bool = setting("No progress and no notes; warnings stay.", False, short="q")
    verbose: bool = setting("Tracebacks with errors.", False, short="v")


@dataclass(frozen=True, kw_only=True, slots=True)
class Trust:
    """What of a model's own files may run code: nothing, unless the user says so each time it is loaded."""

    remote_code: bool = setting("Run the Python files that a model brings along.", False, flag="trust-remote-code")
    pickle: bool = setting(pickled, False, flag="allow-pickle")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class EncoderSettings:
    """The two frozen encoders of an extraction."""

    vision: str = setting("Hub id, id@revision or local folder.", DEFAULT_VISION, ENCODERS)
    text: str = setting("Hub id, id@revision or local folder.", DEFAULT_TEXT, ENCODERS)
    image_pooling: Pooling | None = setting("Which vector is the latent.", None, ENCODERS, says="the model's")
    text_pooling: Pooling | None = setting("Which vector is the latent.", None, ENCODERS, says="the model's")
    image_layers: str = setting(
        "Layers that make the latent: last, auto, all, or 0 (the stem) and up.",
        *(AUTO_LAYERS, ENCODERS),
        metavar="LAYERS",
        read=partial(layers_asked, flag="image-layers"),
    )
    text_layers: str = setting(
        "Layers that make the latent: last, auto, all, or 0 (the embeddings) and up.",
        *(AUTO_LAYERS, ENCODERS),
        metavar="LAYERS",
        read=partial(layers_asked, flag="text-layers"),
    )
    views: int = setting(
        "Views of a picture that its latent is the mean of: as it is, mirrored, inner part, on white.",
        *(1, ENCODERS),
        metavar="1|2|4",
        read=views_asked,
    )
    text_prefix: str | None = setting(
        "Put before every caption and query, as in 'query: '.",
        *(None, ENCODERS),
        says="what the model's files state",
        metavar="TEXT",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetOptions:
    """How to read the user's own data."""

    format: DatasetFormat | None = setting("How the data are laid out.", None, DATA, says="told from them")
    image_root: str | Path | None = setting(
        "Folder that image paths start from, or its URL.", None, DATA, says="the file's folder", metavar="FOLDER"
    )
    image_column: str = setting("Column of the image paths.", "image", DATA)
    caption_column: str | None = setting(
        "Column of the captions, or several: `caption_*`, `a,b`.",
        *(None, DATA),
        says="`captions`, else `caption`, else `caption_0`, ...",
    )
    id_column: str = setting("Column of the ids; empty where ids are not of the images: paths are the ids.", "id", DATA)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CacheSettings(Checked):
    """Where copies of what lies behind a URL are kept."""

    cache_dir: Path | None = setting(
        "Folder of copies of tars and lists behind URLs.",
        *(None, DATA),
        says="alignvl in the user's cache folder",
        metavar="FOLDER",
    )
    cache_size: float = setting(
        "GiB of copies that are kept; tars that do not fit are read in parts, later once more.",
        *(CACHE_GIB, DATA),
        within=at_least(0),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractConfig(Checked):
    """What the work of an extraction depends on, besides the encoders."""

    batch_size: int | None = setting(
        "Items in one forward; auto: measured on a GPU, by rule on a CPU.",
        *(None, WORK),
        within=at_least(1),
        says="auto",
        metavar="N|auto",
        read=_batch_size,
    )
    workers: int | None = workers()
    dtype: StoreDtype = setting("How latents are kept.", StoreDtype.float32, WORK)
    max_pixels: int = max_pixels()
    max_rejected: float = max_rejected()


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ExtractSettings:
    """How an extraction is run."""

    device: Device = device()
    precision: Precision = precision()
    restart: bool = setting("Discard what an interrupted extraction left.", False, WORK)
    reuse: Path | None = setting(
        "Store whose latents of the same pictures and captions to reuse; none: encode all.",
        *(None, WORK),
        says="the store that --overwrite replaces",
        metavar="STORE|none",
    )
    overwrite: bool = overwrite()
    plan: bool = setting("Time a few batches, say what it would take, write nothing.", False)
    as_json: bool = setting("With --plan: one JSON document on stdout.", False, flag="json")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CheckSettings(Checked):
    """Of `data check`, besides how the data are read."""

    text: str | None = setting(
        "Text encoder (Hub id or folder) whose longest input is held against the captions.", None
    )
    text_prefix: str | None = setting("As for extract: what --text puts before every caption.", None, metavar="TEXT")
    max_pixels: int = max_pixels()
    max_rejected: float = max_rejected()
    workers: int | None = workers()
    as_json: bool = as_json()


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Every setting that decides a trained adapter pair. `recipes.resolve_train` makes one, and leaves nothing open."""

    method: Method = setting(
        "Training, or a closed form in seconds (a baseline); wasserstein-procrustes: in minutes, without any pair.",
        Method.contrastive,
    )
    pair_share: float = setting(
        "Weight of known pairs with --method wasserstein-procrustes; 0.5: as much as what it matches, 1: Procrustes.",
        *(0.0, None),
        within=SHARE,
        note="no pair is used",
    )
    corrupt_captions: float = setting(
        "Share of the training pairs to re-pair wrongly, to study noise.", 0.0, within=SHARE
    )
    corrupt_kind: CorruptKind = setting("With any other image, or a similar one.", CorruptKind.shuffle)
    subset: str = setting(
        "Pairs to train on: all, uniform:K, kdpp:K (diverse) or quality:K.",
        "all",
        metavar="all|KIND:K",
        read=_subset,
    )
    unpaired_weight: float = setting(
        "Of unpaired pictures and captions in the loss; auto: by validation. They are what --unpaired names, else what "
        "--subset leaves.",
        *(0.0, None),
        metavar="W|auto",
        read=partial(_number_or_auto, "unpaired-weight", "from 0 (none) to 1000", 0, 1000),
        note="auto with --unpaired",
    )
    recipe: Recipe = setting("Ingredients to start from; flags change them.", Recipe.alignvl)

    mix: bool = setting("Blend each pair with a partner.", panel=MIXING, says=BY_RECIPE)
    mix_alpha: float = setting("a of the coefficient's Beta(a, a).", 1.0, MIXING, within=ABOVE_0)
    mix_coefficient: MixCoefficient = setting(
        "One coefficient a batch (as released) or a pair.", MixCoefficient.batch, MIXING
    )

    rp: ClassVar[bool] = setting("Add noise to the latents.", panel=PERTURBATION, says=BY_RECIPE)
    """A flag alone: off is `noise` none."""
    noise: NoiseKind = setting("Its shape.", NoiseKind.gaussian, PERTURBATION)
    noise_std: float = setting(
        "Its standard deviation, sigma.",
        panel=PERTURBATION,
        within=NOISE_STD,
        says=BY_SIZE,
        note="0.01 where absolute",
    )
    noise_units: NoiseUnits = setting(
        "sigma times the RMS of that modality's training latents, or as it is (the paper).",
        *(NoiseUnits.rms, PERTURBATION),
    )
    noise_match: NoiseMatch = setting(
        "Uniform noise: the gaussian's variance, or U(-sigma, sigma).", NoiseMatch.variance, PERTURBATION
    )
    noise_position: NoisePosition = setting(
        "Before the adapters, or on their output before normalisation.", NoisePosition.input, PERTURBATION
    )

    es: ClassVar[bool] = setting("Soften the contrastive target.", panel=SMOOTHING, says=BY_RECIPE)
    """A flag alone: off is `smoothing` 0, a hard target."""
    smoothing: float = setting("alpha, the target's mass that is spread.", 0.1, SMOOTHING, within=MASS)
    es_target: EsTarget = setting("Over which entries.", EsTarget.uniform, SMOOTHING)
    es_schedule: EsSchedule = setting("alpha over the training.", EsSchedule.constant, SMOOTHING)

    structure: float = setting(
        "Weight of STRUCTURE's regulariser, which keeps who resembles whom among the latents; theirs: 10.",
        *(0.0, STRUCTURE),
        within=at_least(0),
        note="off",
    )
    structure_levels: int = setting("1: neighbours; 2: theirs too; and so on.", 1, STRUCTURE, within=at_least(1))
    structure_divergence: StructureDivergence = setting(
        "Jensen-Shannon, or what the authors' code has: its arguments exchanged.", StructureDivergence.paper, STRUCTURE
    )
    structure_warmup: float = setting(
        "Share of the training in which the weight rises from 0.", 0.1, STRUCTURE, within=SHARE
    )

    mask_duplicates: bool = setting("Same image or same caption: no negative.", False, MODEL, says=BY_RECIPE)
    image_parts: str = setting(
        "Parts of the image latents to learn from: all, or layers of the store.",
        *(ALL_PARTS, MODEL),
        metavar="all|NAMES",
        read=_parts,
    )
    text_parts: str = setting(
        "Parts of the text latents to learn from: all, or layers of the store.",
        *(ALL_PARTS, MODEL),
        metavar="all|NAMES",
        read=_parts,
    )
    latent_norm: LatentNorm = setting("What is done to the stored latents first.", panel=MODEL, says=BY_SIZE)
    loss: Loss = setting("Softmax over the batch, or SigLIP's sigmoid.", Loss.infonce, MODEL, says=BY_RECIPE)
    adapter: AdapterKind = setting("Kind of the two adapters.", AdapterKind.fusemix, MODEL, says=BY_RECIPE)
    size: Size = setting(
        "Shape and schedule by the number of pairs, for two pairs that are joined (auto) or one, or as FuseMix "
        "released them.",
        *(Size.auto, MODEL),
    )
    latent_width: int = setting(
        "Reduce wider latents to so many principal components; 0: never.",
        panel=MODEL,
        within=at_least(0, "0: the latents keep their width"),
        says=BY_SIZE,
    )
    init: Init = setting(
        "Start at random, or at the training latents' canonical correlations.", panel=MODEL, says=BY_SIZE
    )
    adapter_depth: int = setting(
        "Blocks of fusemix, hidden layers of mlp.", panel=MODEL, within=at_least(1), says=BY_SIZE
    )
    adapter_expansion: int = setting("Hidden width over the latent's.", panel=MODEL, within=at_least(1), says=BY_SIZE)
    embed_dim: int = setting("Width of the shared space.", panel=MODEL, within=at_least(1), says=BY_SIZE)
    dropout: float = setting("In the adapters.", panel=MODEL, within=DROPOUT, says=BY_SIZE)
    cca_weight: float | None = setting(
        "Join the adapters with the closed form: weight of its cosines; auto: by validation; 0: trained alone.",
        panel=MODEL,
        says=BY_SIZE,
        metavar="W|auto",
        read=partial(_number_or_auto, "cca-weight", "from 0 (none) to 10", 0, 10),
    )
    """None: 0.25, 0.5 or 1, by validation."""
    temperature: float | None = setting(
        "'learned' or 'fixed:TAU'.", None, MODEL, says="learned", metavar="learned|fixed:TAU", read=_temperature
    )
    """Fixed tau, or None: learned from 0.07; of the sigmoid loss 1 / t, learned from 0.1."""
    tau_start: float | None = setting(
        "Where a learned temperature starts; auto: at 0.07, with the sigmoid loss at 0.1.",
        *(None, MODEL),
        says="auto",
        metavar="TAU|auto",
        read=partial(_number_or_auto, "tau-start", "from 0.001 to 0.5", 0.001, 0.5),
    )
    loss_tile: int | None = setting(
        "Rows of the batch compared at once, or 'auto'. Smaller: less memory, the same loss.",
        *(None, MODEL),
        says="auto",
        metavar="ROWS|auto",
        read=_loss_tile,
    )
    """Side of the tiles that the loss is computed in; None: by batch size and memory."""

    seed: int = setting("Of every random draw.", 0, SCHEDULE, within=SEED)
    epochs: int = setting("Passes over the pairs.", panel=SCHEDULE, within=at_least(1), says=BY_SIZE)
    batch_size: int = setting(
        "Rows in the loss, in every arm, at most half the pairs.", panel=SCHEDULE, within=at_least(2), says=BY_SIZE
    )
    """Mixing draws its partners besides."""
    optimizer: OptimizerKind = setting(
        "AdamW, or Lion, which wants a tenth of its --lr or less.", OptimizerKind.adamw, SCHEDULE
    )
    lr: float = setting("Peak learning rate.", panel=SCHEDULE, within=ABOVE_0, says=BY_SIZE)
    ema: float = setting(
        "Decay of a moving average of the weights, validated and kept in their place.",
        *(0.0, SCHEDULE),
        within=DECAY,
        note="off",
    )
    keep_epoch: KeepEpoch = setting(
        "Keep the latest epoch that is within a standard error of the best on validation, or the best.",
        *(KeepEpoch.latest, SCHEDULE),
    )
    patience: int = setting(
        "Stop after this many validations without a better one.",
        *(0, SCHEDULE),
        within=at_least(0, "off"),
        note="never",
    )
    device: Device = device(panel=SCHEDULE)
    precision: Precision = precision(panel=SCHEDULE)
    memory_budget: int | None = setting(
        "Training latents in memory at a time, such as 8GB; a larger store is shuffled by blocks.",
        *(None, SCHEDULE),
        says="none",
        note="all of them",
        metavar="SIZE",
        read=_memory_budget,
    )
    """Bytes; beyond them blocks of the store are in memory, one after the other. None: all are."""

    def to_json(self) -> dict[str, Any]:
        """Without the parts where all are taken: a record says what departs from them."""
        return {name: value for name, value in asdict(self).items() if (name, value) not in LEFT_OUT.items()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "TrainConfig":
        """The settings that `to_json` gave; KeyError, TypeError or ValueError when they are of another version."""
        kinds = {field.name: declared(cls)[field.name].kind for field in fields(cls)}
        record = LEFT_OUT | dict(record)
        if record.keys() != kinds.keys():
            raise KeyError(f"settings of another version: {sorted(record.keys() ^ kinds.keys())}")
        is_enum = {name: issubclass(kind, StrEnum) for name, kind in kinds.items()}
        return cls(**{key: kinds[key](value) if is_enum[key] else value for key, value in record.items()})


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RunSettings:
    """How a training is run; none of it decides what is trained."""

    report_to: ReportTo | None = setting(
        "Experiment tracker that gets the figures too, on this machine unless its own settings say otherwise.",
        None,
        says="none",
    )
    overwrite: bool = overwrite()


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class EvalSettings(Checked):
    """Of `eval`."""

    split: str = split("test")
    recall_k: str = setting("K of the recalls; RSUM is always of 1, 5 and 10.", "1,5,10", PROTOCOL)
    folds: int = setting("Means over folds of consecutive images: COCO 1K is 5.", 1, PROTOCOL, within=at_least(1))
    identical_hits: bool = setting("A caption of the same text is a hit too.", False, PROTOCOL)
    bootstrap: bool = setting("95 % intervals, of differences too.", False, REPORTS)
    calibration: bool = setting("Is it as sure as it is right? Table and diagrams.", False, REPORTS)
    hubness: HubnessReport | None = setting("How bad hubs are, and recall after a correction.", None, REPORTS)
    eccv: Path | None = setting("COCO 5K: also ECCV Caption and CxC; give dataset_coco.json.", None, REPORTS)
    device: Device = device()
    as_json: bool = as_json()


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class IndexSettings:
    """Of `index`."""

    split: str = split("all")
    factory: str = setting("FAISS factory string; auto: exact up to a million vectors, if they fit.", "auto")
    memory: int | None = setting(
        "What the indexes may take: 8GB, 2GiB, or GiB alone.",
        None,
        says="half of what is free",
        metavar="SIZE",
        read=_memory,
    )
    """Bytes."""
    hubness: HubCorrection | None = setting("Correct hubs, told by the training split's queries.", None)
    device: Device = device()
    overwrite: bool = overwrite()


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SearchSettings(Checked):
    """Of `search`."""

    of: Gallery | None = setting("What to search.", None, says="images by text, captions by picture")
    k: int = setting("Hits a query.", 10, within=at_least(1), short="k")
    threshold: float | None = setting("Leave out hits that score less.", None)
    min_precision: float | None = setting(
        "Leave out hits below the score from which on this share is right on validation.", None, within=PRECISION
    )
    group_duplicates: bool = setting(
        "Show pictures alike to the eye once: perceptual hashes within 6 of 64 bits and mean colours within 12 of 255, "
        "as in data check; identical files always.",
        False,
    )
    html: Path | None = setting("Also write the hits as a page, pictures inside it.", None)
    open_page: bool = setting("Show that page in a browser. Default place: the workspace.", False, flag="open")
    overwrite: bool = setting("Replace what is at --html; a search's page always is.", False)
    device: Device = device()
    as_json: bool = as_json()


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class MapSettings(Checked):
    """Of `map`."""

    of: Gallery | None = setting("What to place.", None, says="images and captions together")
    neighbours: int = setting("Nearest ones of each that are kept, and that UMAP goes by.", 15, within=at_least(2))
    seed: int = setting("Of UMAP's draws.", 0, within=Range("from 0 to 2^32 - 1", lambda value: 0 <= value < 2**32))
    overwrite: bool = setting("Replace the files that are there.", False)


@dataclass(frozen=True, kw_only=True)
class ServeSettings(Checked):
    """Of `serve`."""

    host: str = setting("Address to listen at; 0.0.0.0: every one of this machine.", "127.0.0.1")
    port: int = setting("Port to listen at; 0: a free one.", 8000, within=PORT)
    without_token: bool = setting("Serve other machines although ALIGNVL_TOKEN is not set.", False)
    queue: int = setting("Requests that may wait; more are answered 429.", 64, LIMITS, within=at_least(1))
    max_body: int = setting(
        "Largest body of a request, a picture; larger ones are answered 413.",
        *(20 * 10**6, LIMITS),
        says="20MB",
        metavar="SIZE",
        read=_max_body,
    )
    """Bytes."""
    max_pixels: int = setting("Pictures of more pixels are answered 422.", 50_000_000, LIMITS, within=at_least(1))
    max_text: int = setting("Texts of more characters are answered 422.", 2000, LIMITS, within=at_least(1))
    timeout: float = setting("Seconds until a request is answered 504.", 30.0, LIMITS, within=ABOVE_0)
    device: Device = device()


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ClassifySettings:
    """Of `classify`."""

    split: str = split("test")
    labels: Path | None = setting(
        "Classes, one a line; words for prompts after a tab.", None, says="the labels of the split"
    )
    templates: list[str] | None = setting(
        "A prompt with {} for the label; repeat it for an ensemble.", None, short="t", says=", ".join(TEMPLATES)
    )
    device: Device = device()
    as_json: bool = as_json()


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AblateSettings(Checked):
    """Of `ablate`."""

    plan: bool = setting("Only say what it would take, and whether the seeds can settle anything.", False)
    seeds: str | None = setting("0-9, or 0,1,5.", None, says="those of the study")
    margin: float | None = setting(
        "Points of mean recall within which arms are equivalent.",
        None,
        within=MARGIN,
        says=f"the study's, else {DEFAULT_MARGIN:g}",
    )
    jobs: int | None = setting(
        "Runs at a time, each a process.", None, within=at_least(1), says="one a GPU, or a share of the cores"
    )
    threads: int = setting("Of each run. Part of what is repeated bit for bit.", 1, within=at_least(1))
    device: Device = device()
    as_json: bool = as_json()


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ReportSettings:
    """Of `report`."""

    format: ReportFormat | None = setting(
        "json and csv hold every figure of a study.", None, says="by --output, else table"
    )
    plots: Path | None = setting("Folder to write every plot to, as PNG and SVG.", None)
    split: str | None = setting("Split that a run is evaluated on.", None, says=REPORTED_SPLIT)
    device: Device = device()
    overwrite: bool = setting("Replace files that are there.", False)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ProbeSettings(Checked):
    """Of `probe`."""

    sample: int = setting("Images of a split that are looked at, at most.", 4000, within=at_least(20))
    as_json: bool = as_json()


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ExportSettings:
    """Of `export`."""

    to: ExportTarget = setting("What will load it.")
    split: str = setting("With --to parquet: split of the store, or `all`.", ALL_PARTS)
    dtype: StoreDtype = setting("With --to parquet: of the vectors.", StoreDtype.float32)
    push_to_hub: str | None = setting(
        "With --to hub-folder: upload it to this Hub model, made private if it is new.", None, metavar="OWNER/NAME"
    )
    allow_pickle: bool = setting(pickled, False)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class StoreExportSettings:
    """Of `store export`."""

    to: LatentFormat = setting("Layout of the files.", LatentFormat.npy)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class StoreImportSettings:
    """Of `store import`."""

    vision: str = setting("Id of the model that the image latents came from.")
    text: str = setting("Id of the model that the text latents came from.")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class InspectSettings(Checked):
    """Of `inspect`."""

    check: bool = setting("Read every byte and verify it.", False)
    verify: int | None = setting(
        "Encode N images and N captions of a store again and compare.", None, within=at_least(1), metavar="N"
    )
    csv: bool = setting("The workspace's runs as CSV: settings that differ, recalls, date, store.", False)
    as_json: bool = as_json()


def by_flag(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings under their flags' names without the dashes: `noise_std` is `noise-std`."""
    return {name.replace("_", "-"): value for name, value in settings.items()}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` when a known name is close to `word`, else nothing."""
    import difflib  # with tomllib, a tenth of the start-up time of `--help`

    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""
