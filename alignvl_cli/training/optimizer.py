"""AdamW and its schedule, as the FuseMix release sets them, Lion as SAIL's, and the moving average of the weights
(`--ema`)."""

import math
from typing import Any

import torch
from torch import Tensor

from alignvl_cli.align.adapters import AdapterPair
from alignvl_cli.settings import OptimizerKind

BETAS = (0.9, 0.999)
WEIGHT_DECAY = 0.1
"""On matrices only: none on biases, norms and the temperature."""
LION_BETAS = (0.9, 0.99)
LION_WEIGHT_DECAY = 1e-4
"""SAIL's; on matrices only, as above."""
FLOOR_LR = 1e-6
"""Where the warm-up begins and the cosine ends."""
WARMUP_STEPS = 100
WARMUP_SHARE = 0.1
"""A short run warms up for a tenth of its steps."""


def optimiser_of(kind: OptimizerKind, adapters: AdapterPair) -> torch.optim.Optimizer:
    """For all that is trained of `adapters`; the learning rate is set with each step (`step_unless`)."""
    if kind is OptimizerKind.lion:
        return Lion(_groups(adapters, LION_WEIGHT_DECAY))
    return adamw(adapters)


def adamw(adapters: AdapterPair) -> torch.optim.AdamW:
    """AdamW, fused."""
    return torch.optim.AdamW(_groups(adapters, WEIGHT_DECAY), lr=FLOOR_LR, betas=BETAS, fused=True)


def _groups(adapters: AdapterPair, weight_decay: float) -> list[dict[str, Any]]:
    trained = [parameter for parameter in adapters.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]


class Lion(torch.optim.Optimizer):
    """Each weight moves by the learning rate against the sign of `b1 m + (1 - b1) g`, after decay, and the moment
    becomes `b2 m + (1 - b2) g` (Chen et al., *Symbolic Discovery of Optimization Algorithms*, NeurIPS 2023, algorithm
    2)."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": FLOOR_LR, "betas": LION_BETAS})
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """With `found_inf` 1.0 nothing changes, and the host does not wait to know."""
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if "exp_avg" not in self.state[parameter]:
                    self.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
                moment = self.state[parameter]["exp_avg"]
                grad, taken = parameter.grad, torch.ones((), device=parameter.device)
                if self.found_inf is not None:
                    taken = 1 - self.found_inf
                    grad = torch.where(taken.bool(), grad, 0.0)
                direction = (moment * first + grad * (1 - first)).sign_()
                rate = group["lr"] * taken
                parameter.mul_(1 - rate * group["weight_decay"]).sub_(direction * rate)
                moment.add_((grad - moment) * (taken * (1 - second)))


def learning_rate(step: int, total_steps: int, peak: float) -> float:
    """The rate of step `step`, counted from 0: linear from the floor to `peak`, then cosine back to the floor."""
    floor = min(FLOOR_LR, peak)
    warmup = min(WARMUP_STEPS, int(total_steps * WARMUP_SHARE))
    if step < warmup:
        return floor + (peak - floor) * step / warmup
    progress = (step - warmup) / max(1, total_steps - 1 - warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def gradients(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    """The gradients of every parameter that has one."""
    parameters = (parameter for group in optimiser.param_groups for parameter in group["params"])
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def step_unless(optimiser: torch.optim.Optimizer, skipped: Tensor, rate: float) -> None:
    """One step at learning rate `rate`; with `skipped` 1.0 nothing changes, not even the count of steps.

    `skipped` lies on the parameters' device, where the fused kernel reads it: the host does not wait for it, but for
    MPS's.
    """
    if skipped.device.type == "mps" and skipped.item():  # its fused kernel does not look at `found_inf`
        return
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.found_inf = skipped  # type: ignore[attr-defined]  # as torch's GradScaler tells a fused optimiser
    optimiser.step()


class Average:
    """`average = d * average + (1 - d) * weights` after each step, with `d = min(decay, (1 + step) / (10 + step))`:
    early on the average is of few steps, and the initial weights are soon forgotten."""

    def __init__(self, adapters: AdapterPair, decay: float) -> None:
        """Begin as a copy of `adapters`, on their device."""
        self.adapters = AdapterPair(adapters.shape).to_empty(device=adapters.temperature.device)
        self.adapters.load_state_dict(adapters.state_dict())
        self.adapters.requires_grad_(False)
        self._decay = decay
        self._averaged = [parameter.data for parameter in self.adapters.parameters()]
        self._trained = [parameter.data for parameter in adapters.parameters()]

    def update(self, step: int) -> None:
        """Take in the weights after step `step`, counted from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averaged, self._trained, 1 - decay)
