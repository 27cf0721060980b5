"""Fills a run folder while training goes on; `result.json`, last, makes it complete."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from safetensors.torch import save
from torch import Tensor

from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.provenance import canonical_json, committed, file_sha256, write_json
from alignvl_cli.runs.folder import ADAPTERS, CONFIG, ENVIRONMENT, FORMAT, METRICS, RESULT, is_complete_run


class RunWriter:
    """One run folder being filled. Use as a context manager: leaving it closes `metrics.jsonl`."""

    def __init__(self, path: Path, config: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Begin in the empty folder `path` (see `claim_run`); `config` gains the format and the weights' sha256."""
        self.path = path
        self._config = {"format": FORMAT, **config, "adapters_sha256": None}
        write_json(path / CONFIG, self._config)
        write_json(path / ENVIRONMENT, environment)
        self._metrics: TextIO = open(path / METRICS, "x", encoding="utf-8")  # noqa: SIM115 - closed by __exit__

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

    def save_adapters(self, weights: Mapping[str, Tensor]) -> None:
        """Write the weights, whole or not at all, and their sha256. Equal weights are equal bytes."""
        with committed(self.path / ADAPTERS) as scratch:
            scratch.write_bytes(save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}))
        self._config["adapters_sha256"] = file_sha256(self.path / ADAPTERS)
        write_json(self.path / CONFIG, self._config)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Make the run complete."""
        write_json(self.path / RESULT, result)


def claim_run(path: Path, overwrite: bool) -> None:
    """Make `path` an empty folder for a new run.

    UsageError when a run is there and `overwrite` is not set, or something that is no run is; DataError
    when the folder cannot be made.
    """
    try:
        if path.is_dir() and any(path.iterdir()):
            _clear(path, overwrite)
        elif path.exists() and not path.is_dir():
            raise UsageError(f"--output {path}: a run is a folder, and this is a file; name another place")
        path.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise DataError(f"--output {path}: cannot write there ({problem.strerror or problem})") from problem


def _clear(path: Path, overwrite: bool) -> None:
    if not (path / CONFIG).is_file():
        raise UsageError(f"--output {path}: the folder holds something that is no run; name another place")
    if not overwrite:
        state = "a complete run" if is_complete_run(path) else "an unfinished run"
        raise UsageError(f"--output {path}: {state} is there already; add --overwrite to replace it")
    (path / RESULT).unlink(missing_ok=True)  # first: a half-removed run must not pass for a complete one
    shutil.rmtree(path)
