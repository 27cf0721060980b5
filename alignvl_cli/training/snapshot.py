"""The whole of a training state as named tensors and JSON, and back; and when it is worth writing.

Taken between two steps, right after a log line or a validation, so that nothing is half done.
"""

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from alignvl_cli.align.streams import Stream
from alignvl_cli.runs.writer import RunWriter
from alignvl_cli.training.records import Record, Step, Validated
from alignvl_cli.training.state import Best, Plan, TrainState

CHECKPOINT_SECONDS = 30.0
"""A checkpoint is written at the first log line or validation this long after the last one, ..."""
CHECKPOINT_SHARE = 20
"""... and not before this many times what writing that one took: a twentieth of the time at most."""


class Checkpoints:
    """Writes the state of a run now and then."""

    def __init__(self, writer: RunWriter, every_s: float, wall_s: float) -> None:
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
        began = time.perf_counter()
        tensors, values = take(plan, state)
        self._writer.save_checkpoint(state.step, tensors, {**values, "wall_s": self.wall_s})
        self._last = time.perf_counter()
        self._pause = max(self._every_s, CHECKPOINT_SHARE * (self._last - began))


def is_resting_point(record: Record, plan: Plan) -> bool:
    """Whether a run can go on from right after `record`: a validation, or a log line that none follows."""
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
    best = state.best and {"step": state.best.step, "epoch": state.best.epoch, "metrics": state.best.metrics}
    return tensors, {
        "step": state.step,
        "best": best,
        "validations_since_best": state.validations_since_best,
        "warned": sorted(state.warned),
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
    state.validations_since_best = values["validations_since_best"]
    state.warned = set(values["warned"])


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _own(tensor: Tensor, device: torch.device) -> Tensor:
    return torch.empty_like(tensor, device=device).copy_(tensor)
