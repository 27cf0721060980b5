"""Dropout whose masks come from the run's own generator, cheaply.

Letters: N rows, H hidden width.
"""

import torch
from torch import Tensor, nn

LEVELS = 256


class StreamDropout(nn.Module):
    """Inverted dropout: in training an entry is zero with probability `round(256 p) / 256`, else scaled by one over the
    share in fact kept, so that its expectation is the entry.

    One 64-bit draw decides eight entries, a byte each: on a CPU a tenth of what torch's own dropout costs.
    With p = 0.6 the probability is 154 / 256 = 0.6016. `generator` must be set, on the module's device, before
    training. Where a batch is shared out among processes, masks are drawn for all `parts` of it, and `part` is used.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None
        self.part, self.parts = 0, 1
        self._dropped = min(round(p * LEVELS), LEVELS - 1)

    def forward(self, x_NH: Tensor) -> Tensor:
        if not self.training or self._dropped == 0:
            return x_NH
        if self.generator is None:
            raise ValueError("StreamDropout needs its generator before training")
        # Compared straight into the dtype of x: a mask of booleans costs two more passes over it.
        kept_NH = torch.empty_like(x_NH, requires_grad=False)
        torch.ge(self._random_bytes(x_NH, self.generator), self._dropped - LEVELS // 2, out=kept_NH)
        return x_NH * kept_NH.mul_(LEVELS / (LEVELS - self._dropped))

    def extra_repr(self) -> str:
        return f"p={self.p}"

    def _random_bytes(self, like_NH: Tensor, generator: torch.Generator) -> Tensor:
        """Uniform int8 of the shape of `like_NH`."""
        size = like_NH.numel()
        words = -(-size * self.parts // 8)
        bits = torch.empty(words, dtype=torch.int64, device=like_NH.device).random_(-(2**63), None, generator=generator)
        return bits.view(torch.int8)[self.part * size : (self.part + 1) * size].view(like_NH.shape)
