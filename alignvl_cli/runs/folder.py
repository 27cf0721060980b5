"""What lies in a run folder, and the strict reader of a complete one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from alignvl_cli.align.adapters import TAU_RANGE, AdapterPair, AdapterShape, temperature_of
from alignvl_cli.config import Precision, TrainConfig
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.provenance import file_sha256, read_json, stated_format

FORMAT = "alignvl.run/1"
FAMILY = "alignvl.run/"
"""What the format of a run begins with, of this and every other version."""
CONFIG = "config.json"
"""All it takes to rebuild the adapters: format, adapter shapes, encoders, stores, settings, sha256 of the weights."""
ADAPTERS = "adapters.safetensors"
METRICS = "metrics.jsonl"
ENVIRONMENT = "environment.json"
RESULT = "result.json"
"""Written last: a run is complete when it exists."""
WRITTEN = {
    ".": (CONFIG, ADAPTERS, METRICS, ENVIRONMENT, RESULT, "failed.json"),
    "checkpoint": ("state.json", "*.safetensors"),
    "eval": ("*.json", "*.parquet", "*-reliability.png", "*-reliability.svg"),
    "tensorboard": ("events.out.tfevents.*",),
}
"""Subfolder of a run -> names of all that is ever written there; anything else is the user's."""


class StoreReference(NamedTuple):
    """A store as a run names it: where it lay, and what it held."""

    path: Path
    content_hash: str


@dataclass(frozen=True)
class Run:
    """A complete run, checked: weights of the stated sha256, names and shapes, all finite."""

    path: Path
    config: dict[str, Any]
    adapters: AdapterPair
    """In eval mode, on the device that was asked for."""
    temperature: float
    """tau; 1 / t of a run with the sigmoid loss, whose bias no softmax sees."""
    encoder_hash: str
    vision: dict[str, Any]
    """{"record": what decides a latent, "about": what is recorded beside it}; `text` alike."""
    text: dict[str, Any]
    store_hash: str
    """Content hash of the (first) store that it was trained on; `store_path` is where that lay."""
    store_path: str
    split_used: str
    """The split that selected the epoch."""
    result: dict[str, Any]


def is_complete_run(path: Path) -> bool:
    """Whether training finished there; `load_run` says whether it is sound."""
    return (path / RESULT).is_file()


def seems_to_be(path: Path) -> str | None:
    """What a folder with a `config.json` is that is no run of any version, in words; None for a run."""
    if (stated_format(path / CONFIG) or "").startswith(FAMILY):
        return None
    try:
        config = read_json(path / CONFIG, "configuration")
    except DataError as problem:
        return str(problem)
    if "adapters_sha256" in config:
        return "an exported run"
    if "model_type" in config or "architectures" in config:
        return "a model folder of Hugging Face"
    return f"a folder whose {CONFIG} is of another program"


def require_run(path: Path) -> None:
    """DataError, which says what it is instead, for a folder that holds no run, finished or not."""
    if not (path / CONFIG).is_file():
        raise DataError(f"{path}: not a run, it holds no {CONFIG}; `alignvl train` makes one")
    if (found := seems_to_be(path)) is not None:
        raise DataError(f"{path}: not a run ({found}); `alignvl train` makes one")


def load_run(path: Path, device: str = "cpu") -> Run:
    """Load a complete run; DataError for one that is missing, incomplete, of another format, or damaged."""
    if not path.is_dir():
        raise DataError(f"{path}: no such run (a run is a folder); `alignvl train` makes one")
    require_run(path)
    if not is_complete_run(path):
        raise DataError(
            f"{path}: this run is incomplete, its training did not finish; "
            f"go on with `alignvl train --resume {path}`, "
            f"or train it again with `alignvl train --output {path} --overwrite`"
        )
    config = read_json(path / CONFIG, "run's configuration")
    if config.get("format") != FORMAT:
        raise DataError(f"{path / CONFIG}: format {config.get('format')!r}, and this version reads {FORMAT}")
    result = read_json(path / RESULT, "run's result")
    result.pop("sha256", None)  # of the log, for its readers
    try:
        adapters = AdapterPair(AdapterShape.from_json(config["adapters"]))
        store = config["stores"][0]
        weights = _weights(path / ADAPTERS, config["adapters_sha256"], adapters, device)
        adapters.load_state_dict(weights, strict=True, assign=True)
        return Run(
            path=path,
            config=config,
            adapters=adapters.eval().requires_grad_(False),
            temperature=temperature_of(weights),
            encoder_hash=config["encoder_hash"],
            vision=config["vision"],
            text=config["text"],
            store_hash=store["content_hash"],
            store_path=store["path"],
            split_used=config["selection_split"],
            result=result,
        )
    except (KeyError, IndexError, TypeError, ValueError) as problem:
        raise DataError(f"{path / CONFIG}: not a run's configuration ({problem!r}); train it again") from problem


@dataclass(frozen=True)
class Unfinished:
    """What a run that did not finish says of itself."""

    path: Path
    config: dict[str, Any]
    settings: TrainConfig
    stores: tuple[StoreReference, ...]
    selection_store: StoreReference
    device: str
    precision: Precision
    threads: int


def load_unfinished(path: Path) -> Unfinished:
    """Read an unfinished run; UsageError for one that is complete, DataError for what is no run of this version."""
    if not (path / CONFIG).is_file():
        raise DataError(f"{path}: no run to resume, it holds no {CONFIG}; `alignvl train` makes one")
    require_run(path)
    if is_complete_run(path):
        raise UsageError(
            f"--resume {path}: this run is complete, there is nothing left to train; "
            f"to train it again: `alignvl train --output {path} --overwrite`"
        )
    config = read_json(path / CONFIG, "run's configuration")
    if config.get("format") != FORMAT:
        raise DataError(f"{path / CONFIG}: format {config.get('format')!r}, and this version continues {FORMAT}")
    try:
        return Unfinished(
            path=path,
            config=config,
            settings=TrainConfig.from_json(config["settings"]),
            stores=tuple(StoreReference(Path(one["path"]), one["content_hash"]) for one in config["stores"]),
            selection_store=StoreReference(
                Path(config["selection_store"]["path"]), config["selection_store"]["content_hash"]
            ),
            device=config["machine"]["device"],
            precision=Precision(config["machine"]["precision"]),
            threads=int(config["machine"]["threads"]),
        )
    except (KeyError, TypeError, ValueError) as problem:
        raise DataError(
            f"{path / CONFIG}: not the configuration of a run that this version can continue ({problem}); "
            f"train it again with `alignvl train --output {path} --overwrite`"
        ) from problem


def _weights(path: Path, sha256: str, adapters: AdapterPair, device: str) -> dict[str, torch.Tensor]:
    """The tensors of `path`, which must be those that `adapters` has by name and shape, finite, of this sha256."""
    remedy = "it is damaged or not this run's; train it again"
    try:
        if file_sha256(path) != sha256:
            raise DataError(f"{path}: its sha256 is not the one that {CONFIG} states: {remedy}")
        weights = load_file(path, device=device)
    except OSError as problem:
        raise DataError(f"{path}: cannot read these weights: {problem.strerror or problem}") from problem
    except SafetensorError as problem:
        raise DataError(f"{path}: no safetensors file ({problem}): {remedy}") from problem
    wanted = {name: tuple(tensor.shape) for name, tensor in adapters.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if found != wanted:
        name = min(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        raise DataError(f"{path}: {name} is {found.get(name, 'absent')}, wanted {wanted.get(name, 'absent')}: {remedy}")
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise DataError(f"{path}: {name} holds NaN or infinity: {remedy}")
    tau = temperature_of(weights)
    if not TAU_RANGE[0] * 0.999 <= tau <= TAU_RANGE[1] * 1.001:  # float32 of a bound lies beside it
        raise DataError(f"{path}: temperature {tau} is outside {TAU_RANGE}: {remedy}")
    return weights
