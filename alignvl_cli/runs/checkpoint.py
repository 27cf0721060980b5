"""`checkpoint/` in a run folder: what an unfinished run goes on from, tensors and JSON, whole or absent.

`STEP.safetensors` is written first, `state.json`, which names it and its digest, last: a process that is killed
between the two leaves the former checkpoint in place.
"""

import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignvl_cli.errors import DataError
from alignvl_cli.provenance import READ_BYTES, committed, read_json, write_json

FORMAT = "alignvl.checkpoint/1"
FOLDER = "checkpoint"
STATE = "state.json"


def write_checkpoint(run: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Replace the checkpoint of `run`; `state` is any JSON object."""
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    name = f"{step:09d}.safetensors"
    with committed(folder / name) as scratch:
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, scratch)
    digest = _digest(folder / name)
    write_json(folder / STATE, {"format": FORMAT, "tensors": name, "xxh3_64": digest, "state": dict(state)})
    for path in folder.iterdir():
        if path.name not in (name, STATE):  # the former checkpoint, and what a killed process was writing
            path.unlink()


def has_checkpoint(run: Path) -> bool:
    """Whether there is anything to go on from; `read_checkpoint` says whether it is sound."""
    return (run / FOLDER / STATE).is_file()


def read_checkpoint(run: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors, on the CPU, and state; None when none was written. DataError for one that is damaged."""
    folder = run / FOLDER
    if not has_checkpoint(run):
        return None
    remedy = f"train the run again with `alignvl train --output {run} --overwrite`"
    record = read_json(folder / STATE, "checkpoint")
    if record.get("format") != FORMAT:
        raise DataError(
            f"{folder / STATE}: format {record.get('format')!r}, and this version continues {FORMAT}; {remedy}"
        )
    try:
        path = folder / record["tensors"]
        if _digest(path) != record["xxh3_64"]:
            raise DataError(f"{path}: this checkpoint is damaged, its digest is not the stated one; {remedy}")
        return load_file(path), record["state"]
    except (OSError, KeyError, TypeError, SafetensorError) as problem:
        raise DataError(f"{folder}: this checkpoint is damaged ({problem!r}); {remedy}") from problem


def remove_checkpoint(run: Path) -> None:
    """Of a complete run: nothing goes on from it any more."""
    with suppress(FileNotFoundError):
        shutil.rmtree(run / FOLDER)


def _digest(path: Path) -> str:
    digest = xxhash.xxh3_64()
    with open(path, "rb") as stream:
        while block := stream.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
