"""`checkpoint/` in a run folder: what an unfinished run is resumed from, as tensors and JSON, whole or absent.

`STEP.safetensors` is written first, `state.json`, which names it and its digest, last: a process that is killed
between the two leaves the former checkpoint in place. A checkpoint is taken between two steps, right after a log line
or a validation, so that nothing is half done.
"""

import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignvl_cli.align.adapters import AdapterShape
from alignvl_cli.align.streams import Stream
from alignvl_cli.artifacts import READ_BYTES, committed, read_json, write_json
from alignvl_cli.errors import DataError
from alignvl_cli.training.state import Best, Plan, Record, Step, Trained, TrainState, Validated

if TYPE_CHECKING:
    from alignvl_cli.training.run_folder import RunWriter


FORMAT = "alignvl.checkpoint/1"
FOLDER = "checkpoint"
STATE = "state.json"


def write_checkpoint(run: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Replace the checkpoint of `run`; `state` is any JSON object."""
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    names = (f"{step:09d}{f'-{again}' if again else ''}.safetensors" for again in count())
    name = next(one for one in names if not (folder / one).exists())  # the former stands until the record names this
    with committed(folder / name) as scratch:
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, scratch)
    digest = _digest(folder / name)
    write_json(folder / STATE, {"format": FORMAT, "tensors": name, "xxh3_64": digest, "state": dict(state)})
    for path in folder.iterdir():
        if path.name not in (name, STATE):  # the former checkpoint, and what a killed process was writing
            path.unlink()


def has_checkpoint(run: Path) -> bool:
    """Whether there is anything to resume from; `read_checkpoint` says whether it is sound."""
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
    """Of a complete run: nothing is resumed from it any more."""
    with suppress(FileNotFoundError):
        shutil.rmtree(run / FOLDER)


def _digest(path: Path) -> str:
    digest = xxhash.xxh3_64()
    with open(path, "rb") as stream:
        while block := stream.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


CHECKPOINT_SECONDS = 30.0
"""A checkpoint is written at the first log line or validation this long after the last one, ..."""
CHECKPOINT_SHARE = 20
"""... and not before this many times what writing that one took: a twentieth of the time at most."""


class Checkpoints:
    """Writes the state of a run now and then."""

    def __init__(self, writer: "RunWriter", every_s: float, wall_s: float) -> None:
        """`wall_s` is what the run has taken up to now, in other processes too."""
        self._writer = writer
        self._pause = self._every_s = every_s
        self._last = time.perf_counter()
        self._began = self._last - wall_s

    @property
    def wall_s(self) -> float:
        return time.perf_counter() - self._began

    def consider(self, record: Record, plan: Plan, state: TrainState) -> None:
        """Write one if it is time and `record`, just logged, leaves nothing half done."""
        if time.perf_counter() - self._last < self._pause or not is_resting_point(record, plan):
            return
        self.write(plan, state)

    def write(self, plan: Plan, state: TrainState) -> None:
        """Write one now; `state` must be at a resting point."""
        began = time.perf_counter()
        tensors, values = take(plan, state)
        self._writer.save_checkpoint(state.step, tensors, {**values, "wall_s": self.wall_s})
        self._last = time.perf_counter()
        self._pause = max(self._every_s, CHECKPOINT_SHARE * (self._last - began))


def is_resting_point(record: Record, plan: Plan) -> bool:
    """Whether a run can be resumed from right after `record`: a validation, or a log line that none follows."""
    return isinstance(record, Validated) or (isinstance(record, Step) and not plan.validates_after(record.step))


def take(plan: Plan, state: TrainState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (not copied) and JSON that `restore` takes back."""
    tensors = {"skips": state.skips.counts}
    tensors |= {f"adapters/{name}": tensor for name, tensor in state.adapters.state_dict().items()}
    for name, parameter in state.adapters.named_parameters():
        moments = state.optimiser.state.get(parameter, {})
        tensors |= {f"optimiser/{name}/{key}": tensor for key, tensor in moments.items()}
    if state.average is not None:
        tensors |= {f"average/{name}": tensor for name, tensor in state.average.adapters.state_dict().items()}
    if state.best is not None:
        tensors |= {f"best/{name}": tensor for name, tensor in state.best.weights.items()}
    streams = state.streams.states()
    if state.step % plan.steps_per_epoch:
        streams[Stream.permutation.value] = state.epoch_began  # the epoch's order is drawn again, and gone through
    tensors |= {f"streams/{name}": tensor for name, tensor in streams.items()}
    for number, trained in enumerate(state.done):
        tensors |= {f"done/{number}/{name}": tensor for name, tensor in trained.best.weights.items()}
    best = state.best and {"step": state.best.step, "epoch": state.best.epoch, "metrics": state.best.metrics}
    return tensors, {
        "step": state.step,
        "best": best,
        "highest": state.highest,
        "validations_since_best": state.validations_since_best,
        "warned": sorted(state.warned),
        "done": [
            {
                "shape": trained.shape.to_json(),
                "step": trained.best.step,
                "epoch": trained.best.epoch,
                "metrics": trained.best.metrics,
                "steps": trained.steps,
                "total_steps": trained.total_steps,
                "skipped": trained.skipped,
            }
            for trained in state.done
        ],
    }


def restore(state: TrainState, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Bring a freshly prepared `state` to where `take` saw it. KeyError or RuntimeError when it is of another run."""
    state.adapters.load_state_dict(_below(tensors, "adapters/"))
    for name, parameter in state.adapters.named_parameters():
        moments = _below(tensors, f"optimiser/{name}/")
        # Copied into memory of torch's own: a view of the file may lie aligned otherwise, and then round otherwise.
        state.optimiser.state[parameter] = {key: _own(tensor, parameter.device) for key, tensor in moments.items()}
    if state.average is not None:
        state.average.adapters.load_state_dict(_below(tensors, "average/"))
    device = state.adapters.temperature.device
    state.skips.counts = _own(tensors["skips"], device)
    state.streams.restore(_below(tensors, "streams/"))
    state.step = values["step"]
    if values["best"] is not None:
        weights = {name: _own(tensor, device) for name, tensor in _below(tensors, "best/").items()}
        state.best = Best(weights=weights, **values["best"])
    state.highest = values.get("highest", values["best"] and values["best"]["metrics"])  # earlier: the same
    state.validations_since_best = values["validations_since_best"]
    state.warned = set(values["warned"])
    for number, trained in enumerate(values.get("done", ())):
        kept = {name: _own(tensor, torch.device("cpu")) for name, tensor in _below(tensors, f"done/{number}/").items()}
        best = Best(weights=kept, step=trained["step"], epoch=trained["epoch"], metrics=trained["metrics"])
        counts = {name: trained.get(name, 0) for name in ("steps", "total_steps", "skipped")}
        state.done.append(Trained(AdapterShape.from_json(trained["shape"]), best, **counts))


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _own(tensor: Tensor, device: torch.device) -> Tensor:
    return torch.empty_like(tensor, device=device).copy_(tensor)
