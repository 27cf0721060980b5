"""What stays the same while a run trains, its plan, and what changes, its state."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from alignvl_cli.align.adapters import AdapterPair
from alignvl_cli.align.streams import Streams
from alignvl_cli.config import Precision, TrainConfig
from alignvl_cli.training.averaging import Average
from alignvl_cli.training.data import SplitLatents
from alignvl_cli.training.health import Skips
from alignvl_cli.training.ingredients import Gather, Transform
from alignvl_cli.training.team import Team
from alignvl_cli.training.validation import is_validation_epoch

LOGGED_STEPS = 200
"""A run logs about this often, and at each validation."""


@dataclass
class Best:
    """The weights that the run will keep, copied when they were validated."""

    weights: dict[str, Tensor]
    step: int
    epoch: int
    metrics: dict[str, Any]


def copied(adapters: AdapterPair) -> dict[str, Tensor]:
    """The weights as they are now."""
    return {name: tensor.detach().clone() for name, tensor in adapters.state_dict().items()}


@dataclass
class TrainState:
    """All that changes while training goes on: what a checkpoint holds."""

    adapters: AdapterPair
    optimiser: torch.optim.AdamW
    streams: Streams
    average: Average | None
    """Of the weights, with `--ema`: what is validated and kept then."""
    skips: Skips
    step: int = 0
    best: Best | None = None
    validations_since_best: int = 0
    epoch_began: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    """State of the permutation's stream before it drew the order of the present epoch."""
    warned: set[str] = field(default_factory=set)
    """Causes that were warned about: each is said once."""

    @property
    def judged(self) -> AdapterPair:
        """The adapters that are validated and kept."""
        return self.adapters if self.average is None else self.average.adapters


@dataclass(frozen=True)
class Plan:
    """All that stays: data, settings and the ingredients, collected once."""

    config: TrainConfig
    gather: Gather
    inputs: Sequence[Transform]
    outputs: Sequence[Transform]
    val: SplitLatents
    steps_per_epoch: int
    precision: Precision
    team: Team
    loss_tile: int
    """Side of the tiles that the loss is computed in."""
    loss_rounds: bool = False
    """Whether the loss takes its products in fewer digits, as the adapters do."""
    corrupted_P: Tensor | None = None
    """Which training pairs were corrupted; None without `--corrupt-captions`."""

    @property
    def total_steps(self) -> int:
        return self.config.epochs * self.steps_per_epoch

    @property
    def log_every(self) -> int:
        return max(1, self.total_steps // LOGGED_STEPS)

    def validates_after(self, step: int) -> bool:
        """Whether a validation follows step `step`, counted from 1."""
        epoch, into = divmod(step, self.steps_per_epoch)
        return into == 0 and epoch > 0 and is_validation_epoch(epoch, self.config.epochs)
