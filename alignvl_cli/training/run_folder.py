"""The run folder: what lies in it, its strict reader, and the writer that fills it while training goes on.

`result.json`, written last, makes a run complete.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TextIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from alignvl_cli.align.adapters import TAU_RANGE, AdapterPair, AdapterShape, temperature_of
from alignvl_cli.artifacts import (
    canonical_json,
    committed,
    file_sha256,
    foreign_file,
    held,
    is_litter,
    read_json,
    stated_format,
    write_json,
)
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.settings import Precision, TrainConfig
from alignvl_cli.training.checkpoint import remove_checkpoint, write_checkpoint

FORMAT = "alignvl.run/1"
NUMBERS = 1
"""Raised when a change of the code moves what a training or an evaluation of equal settings gives: runs of another
number are no longer taken for the same. Runs without it are of 1."""
FAMILY = "alignvl.run/"
"""What the format of a run begins with, of this and every other version."""
CONFIG = "config.json"
"""All it takes to rebuild the adapters: format, adapter shapes, encoders, stores, settings, sha256 of the weights."""
ADAPTERS = "adapters.safetensors"
METRICS = "metrics.jsonl"
ENVIRONMENT = "environment.json"
RESULT = "result.json"
"""Written last: a run is complete when it exists."""
TRACKER = "tracker.json"
"""Which experiment tracker the figures go to, and what it calls the run."""
LOCK = ".lock"
"""Held by the process that trains in the folder, and removed by it; of a killed one it may stay."""
WRITTEN = {
    ".": (CONFIG, ADAPTERS, METRICS, ENVIRONMENT, RESULT, TRACKER, "failed.json", LOCK),
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


def what_it_is_instead(path: Path) -> str | None:
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
    if (found := what_it_is_instead(path)) is not None:
        raise DataError(f"{path}: not a run ({found}); `alignvl train` makes one")


def load_run(path: Path, device: str = "cpu") -> Run:
    """Load a complete run; DataError for one that is missing, incomplete, of another format, or damaged."""
    if not path.is_dir():
        raise DataError(f"{path}: no such run (a run is a folder); `alignvl train` makes one")
    require_run(path)
    if not is_complete_run(path):
        raise DataError(
            f"{path}: this run is incomplete, its training did not finish; "
            f"resume it with `alignvl train --resume {path}`, "
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


def load_exported(path: Path, device: str = "cpu") -> Run:
    """What `alignvl export --to safetensors` or `--to hub-folder` wrote, as a run without store and result; DataError
    for a folder that is none, or damaged."""
    config = read_json(path / CONFIG, "exported configuration")
    try:
        adapters = AdapterPair(AdapterShape.from_json(config["adapters"]))
        weights = _weights(path / ADAPTERS, config["adapters_sha256"], adapters, device, "fetch or export it again")
        adapters.load_state_dict(weights, strict=True, assign=True)
        return Run(
            path=path,
            config=config,
            adapters=adapters.eval().requires_grad_(False),
            temperature=temperature_of(weights),
            encoder_hash=config["encoder_hash"],
            vision=config["vision"],
            text=config["text"],
            store_hash="",
            store_path="",
            split_used="",
            result={},
        )
    except (KeyError, TypeError, ValueError) as problem:
        raise DataError(
            f"{path}: neither a run nor what `alignvl export --to hub-folder` or `--to safetensors` makes ({problem!r})"
        ) from problem


@dataclass(frozen=True)
class Unfinished:
    """What a run that did not finish says of itself."""

    path: Path
    config: dict[str, Any]
    settings: TrainConfig
    others: tuple[TrainConfig, ...]
    """What they are to be compared with first; empty when that is done."""
    stores: tuple[StoreReference, ...]
    selection_store: StoreReference
    unpaired: tuple[StoreReference, ...]
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
            others=tuple(TrainConfig.from_json(other) for other in config.get("others", ())),
            stores=_references(config["stores"]),
            unpaired=_references(config.get("unpaired", [])),
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


def _references(records: Sequence[Mapping[str, str]]) -> tuple[StoreReference, ...]:
    return tuple(StoreReference(Path(one["path"]), one["content_hash"]) for one in records)


def _weights(
    path: Path, sha256: str, adapters: AdapterPair, device: str, remedy: str = "train it again"
) -> dict[str, torch.Tensor]:
    """The tensors of `path`, which must be those that `adapters` has by name and shape, finite, of this sha256."""
    remedy = f"it is damaged or not this run's; {remedy}"
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


class RunWriter:
    """One run folder being filled. Use as a context manager: leaving it closes `metrics.jsonl`."""

    def __init__(self, path: Path, config: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Begin in the empty folder `path` (see `claim_run`); `config` gains the format and the weights' sha256."""
        self.path = path
        self.describe(config, environment)  # from here on it is a run that can be resumed
        self._metrics: TextIO = open(path / METRICS, "x", encoding="utf-8")  # noqa: SIM115 - closed by __exit__

    def describe(self, config: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Write what the run says of itself, as long as it has no weights."""
        self._config = {"format": FORMAT, **config, "adapters_sha256": None}
        write_json(self.path / ENVIRONMENT, environment)
        write_json(self.path / CONFIG, self._config)

    @classmethod
    def reopen(
        cls, path: Path, config: Mapping[str, Any], metrics_bytes: int, metrics_sha256: str | None = None
    ) -> "RunWriter":
        """Resume the unfinished run `path`, whose `config` was read from it: `metrics.jsonl` is cut back to
        `metrics_bytes`. DataError when it is shorter than that, or then not of this hash."""
        writer = cls.__new__(cls)
        writer.path, writer._config = path, dict(config)
        writer._metrics = open(path / METRICS, "a", encoding="utf-8")  # noqa: SIM115 - closed by __exit__
        size = os.fstat(writer._metrics.fileno()).st_size
        if size < metrics_bytes:
            writer._metrics.close()
            raise DataError(
                f"{path / METRICS}: {size} bytes, and the checkpoint was taken after {metrics_bytes}: the file is "
                f"damaged; train the run again with `alignvl train --output {path} --overwrite`"
            )
        writer._metrics.truncate(metrics_bytes)
        if metrics_sha256 is not None and file_sha256(path / METRICS) != metrics_sha256:
            writer._metrics.close()
            raise DataError(
                f"{path / METRICS}: its lines are not those that the checkpoint was taken after: the file is "
                f"damaged; train the run again with `alignvl train --output {path} --overwrite`"
            )
        return writer

    def __enter__(self) -> "RunWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._metrics.close()

    def log(self, line: Mapping[str, Any]) -> None:
        """Append one line to `metrics.jsonl`; it is in the file when this returns."""
        self._metrics.write(canonical_json(line) + "\n")
        self._metrics.flush()

    def save_checkpoint(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write a checkpoint, with the length of `metrics.jsonl` at this moment (`metrics_bytes`)."""
        os.fsync(self._metrics.fileno())
        size = os.fstat(self._metrics.fileno()).st_size
        log = {"metrics_bytes": size, "metrics_sha256": file_sha256(self.path / METRICS)}
        write_checkpoint(self.path, step, tensors, {**state, **log})

    def save_adapters(self, weights: Mapping[str, Tensor], shape: AdapterShape | None = None) -> None:
        """Write the weights, whole or not at all, and their sha256, and the shape that they are of, if it is another
        now. Equal weights are equal bytes."""
        with committed(self.path / ADAPTERS) as scratch:
            scratch.write_bytes(save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}))
        if shape is not None:
            self._config["adapters"] = shape.to_json()
        self._config["adapters_sha256"] = file_sha256(self.path / ADAPTERS)
        write_json(self.path / CONFIG, self._config)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Make the run complete; the checkpoint has served. The result gains the log's hash, `sha256`."""
        write_json(self.path / RESULT, {**result, "sha256": {METRICS: file_sha256(self.path / METRICS)}})
        remove_checkpoint(self.path)


def claim_run(path: Path, overwrite: bool) -> None:
    """Make `path` an empty folder for a new run.

    UsageError when a run is there and `overwrite` is not set, or something that is no run is, be it one file beside a
    run; DataError when the folder cannot be made, or another process trains in it.
    """
    try:
        if path.is_dir() and any(path.iterdir()):
            _clear(path, overwrite)
        elif path.exists() and not path.is_dir():
            raise UsageError(f"--output {path}: a run is a folder, and this is a file; name another place")
        path.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise DataError(f"--output {path}: cannot write there ({problem.strerror or problem})") from problem


@contextmanager
def held_run(path: Path) -> Iterator[None]:
    """Hold the run folder `path`, which exists, against every other process; DataError when one holds it."""
    busy = f"{path}: another process is training in this run folder; wait for it, or name another place"
    with held(path / LOCK, busy):
        try:
            yield
        finally:
            with suppress(OSError):  # Windows removes no open file
                (path / LOCK).unlink(missing_ok=True)


def _is_leftover(path: Path) -> bool:
    """Whether this is all that a process left which was killed before the run had begun (see `committed`)."""
    is_scratch = path.is_file() and path.name.startswith(".") and path.name.endswith(".tmp")
    return is_scratch or path.name in (ENVIRONMENT, LOCK) or is_litter(path.name)


def _clear(path: Path, overwrite: bool) -> None:
    if not (path / CONFIG).is_file():
        if all(map(_is_leftover, path.iterdir())):
            with held_run(path):
                for entry in path.iterdir():
                    if entry.name != LOCK:
                        entry.unlink()
            return
        raise UsageError(f"--output {path}: the folder holds something that is no run; name another place")
    if (found := what_it_is_instead(path)) is not None:
        raise UsageError(f"--output {path}: the folder holds something that is no run ({found}); name another place")
    with held_run(path):
        if not overwrite:
            is_complete = is_complete_run(path)
            state = "a complete run" if is_complete else "an unfinished run"
            continuing = "" if is_complete else f", or resume it: `alignvl train --resume {path}`"
            raise UsageError(f"--output {path}: {state} is there already; add --overwrite to replace it{continuing}")
        if (beside := foreign_file(path, WRITTEN)) is not None:
            raise UsageError(
                f"--output {path}: beside the run it holds {beside}, which no training writes, and which --overwrite "
                "would remove too; move it, or name another place"
            )
        (path / RESULT).unlink(missing_ok=True)  # first: a half-removed run must not pass for a complete one
        for entry in path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name not in (CONFIG, LOCK):
                entry.unlink()
        (path / CONFIG).unlink()  # last: until then what is left is known for a run
