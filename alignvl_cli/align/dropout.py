"""Dropout whose masks come from the run's own generator, cheaply.

Letters: N rows, H hidden width.
"""

import torch
from torch import Tensor, nn

LEVELS = 256
WORD = (torch.int64, -(2**63), None)
MPS_WORD = (torch.int32, -(2**31), 2**31 - 1)
"""What one draw is: type, lowest value, and that beyond the highest (None: of the type). MPS draws 32 bits at most."""


class StreamDropout(nn.Module):
    """Inverted dropout: in training an entry is zero with probability `round(256 p) / 256`, else scaled by one over the
    share in fact kept, so that its expectation is the entry; bfloat16 rounds that factor, by 0.4 % at most.

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
        dtype, lowest, beyond = MPS_WORD if like_NH.device.type == "mps" else WORD
        words = -(-size * self.parts // dtype.itemsize)
        bits = torch.empty(words, dtype=dtype, device=like_NH.device).random_(lowest, beyond, generator=generator)
        return bits.view(torch.int8)[self.part * size : (self.part + 1) * size].view(like_NH.shape)
