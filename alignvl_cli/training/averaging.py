"""Weight averaging (`--ema`): an exponential moving average of the weights, validated and kept in their place."""

import torch

from alignvl_cli.align.adapters import AdapterPair


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
