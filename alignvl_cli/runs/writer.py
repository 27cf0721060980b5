"""Fills a run folder while training goes on; `result.json`, last, makes it complete."""

import os
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from safetensors.torch import save
from torch import Tensor

from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.locks import held
from alignvl_cli.provenance import canonical_json, committed, file_sha256, foreign_file, is_litter, write_json
from alignvl_cli.runs.checkpoint import remove_checkpoint, write_checkpoint
from alignvl_cli.runs.folder import (
    ADAPTERS,
    CONFIG,
    ENVIRONMENT,
    FORMAT,
    METRICS,
    RESULT,
    WRITTEN,
    is_complete_run,
    seems_to_be,
)


class RunWriter:
    """One run folder being filled. Use as a context manager: leaving it closes `metrics.jsonl`."""

    def __init__(self, path: Path, config: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Begin in the empty folder `path` (see `claim_run`); `config` gains the format and the weights' sha256."""
        self.path = path
        self._config = {"format": FORMAT, **config, "adapters_sha256": None}
        write_json(path / ENVIRONMENT, environment)
        write_json(path / CONFIG, self._config)  # from here on it is a run that can be resumed
        self._metrics: TextIO = open(path / METRICS, "x", encoding="utf-8")  # noqa: SIM115 - closed by __exit__

    @classmethod
    def reopen(
        cls, path: Path, config: Mapping[str, Any], metrics_bytes: int, metrics_sha256: str | None = None
    ) -> "RunWriter":
        """Go on in the unfinished run `path`, whose `config` was read from it: `metrics.jsonl` is cut back to
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
        """Write what the run can go on from, with the length of `metrics.jsonl` at this moment (`metrics_bytes`)."""
        os.fsync(self._metrics.fileno())
        size = os.fstat(self._metrics.fileno()).st_size
        log = {"metrics_bytes": size, "metrics_sha256": file_sha256(self.path / METRICS)}
        write_checkpoint(self.path, step, tensors, {**state, **log})

    def save_adapters(self, weights: Mapping[str, Tensor]) -> None:
        """Write the weights, whole or not at all, and their sha256. Equal weights are equal bytes."""
        with committed(self.path / ADAPTERS) as scratch:
            scratch.write_bytes(save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}))
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


def held_run(path: Path) -> AbstractContextManager[None]:
    """Hold the run folder `path`, which exists, against every other process; DataError when one holds it."""
    busy = f"{path}: another process is training in this run folder; wait for it, or name another place"
    return held(path, busy, is_folder=True)


def _is_scratch(path: Path) -> bool:
    """Whether a killed process was writing this file (see `committed`)."""
    return path.is_file() and path.name.startswith(".") and path.name.endswith(".tmp")


def _clear(path: Path, overwrite: bool) -> None:
    if not (path / CONFIG).is_file():
        if all(entry.name == ENVIRONMENT or _is_scratch(entry) or is_litter(entry.name) for entry in path.iterdir()):
            for entry in path.iterdir():  # of a run that was killed before it had begun
                entry.unlink()
            return
        raise UsageError(f"--output {path}: the folder holds something that is no run; name another place")
    if (found := seems_to_be(path)) is not None:
        raise UsageError(f"--output {path}: the folder holds something that is no run ({found}); name another place")
    with held_run(path):
        if not overwrite:
            is_complete = is_complete_run(path)
            state = "a complete run" if is_complete else "an unfinished run"
            continuing = "" if is_complete else f", or go on with it: `alignvl train --resume {path}`"
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
            elif entry.name != CONFIG:
                entry.unlink()
        (path / CONFIG).unlink()  # last: until then what is left is known for a run
