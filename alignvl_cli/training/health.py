"""When training goes wrong: steps that are not finite, a temperature at its bound, embeddings that collapse.

Letters: N rows, E shared width.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from alignvl_cli.align.adapters import TAU_RANGE
from alignvl_cli.align.losses import LossParts

SKIPPED_IN_A_ROW = 10
"""Steps; after so many without a finite loss and gradient the weights are beyond help, and training stops."""
COLLAPSED = 0.9
"""Mean squared cosine of two validation embeddings above which they are said to have collapsed."""


class Skips:
    """Counts skipped steps on the device: nothing waits for it until `read`."""

    def __init__(self, device: str) -> None:
        self.counts = torch.zeros(3, device=device)
        """In all, in a row up to now, and the most in a row."""

    def judge(self, loss: LossParts, gradients: list[Tensor]) -> Tensor:
        """1.0 if the loss or the norm of all gradients together is not finite, else 0.0, on their device; counted."""
        norm = torch.nn.utils.get_total_norm(gradients)
        skipped = (~torch.isfinite(loss.loss.detach() + norm)).float()
        total, row, most = self.counts.unbind()
        row = (row + skipped) * skipped
        self.counts = torch.stack([total + skipped, row, torch.maximum(most, row)])
        return skipped


def mean_squared_cosine(unit_NE: Tensor) -> float:
    """Of all pairs of two different rows, which have unit length; 1 if all lie on one line, so also on one point.

    It is the squared Frobenius norm of the rows' second moment (E, E), less what each row adds with itself.
    """
    rows = len(unit_NE)
    if rows < 2:
        return 0.0
    moment_EE = unit_NE.T @ unit_NE
    return (moment_EE.square().sum().item() - rows) / (rows * (rows - 1))


def skip_warnings(skipped: int, step: int) -> Iterator[tuple[str, str]]:
    """(cause, sentence), when a step was skipped."""
    if skipped:
        yield (
            "skipped",
            f"a loss or gradient was not finite by step {step}, and its step was skipped, as such steps are; training "
            f"stops after {SKIPPED_IN_A_ROW} in a row. A smaller --lr or --precision fp32 may help",
        )


def tau_warnings(tau: float) -> Iterator[tuple[str, str]]:
    """(cause, sentence), when a learned temperature stands at a bound of its range."""
    lowest, highest = TAU_RANGE
    if tau <= lowest * 1.001:
        yield (
            "tau low",
            f"tau has reached its lower bound, {lowest:g}: the similarities cannot be sharpened further, which a "
            "smaller --lr or --temperature fixed:0.05 avoids",
        )
    if tau >= highest * 0.999:
        yield (
            "tau high",
            f"tau has reached its upper bound, {highest:g}: the adapters hardly tell the pairs apart, which a "
            "smaller --lr, less noise or --temperature fixed:0.05 may change",
        )


def collapse_warnings(squared_cosine: dict[str, float]) -> Iterator[tuple[str, str]]:
    """(cause, sentence) for each modality whose validation embeddings have collapsed."""
    for side, value in squared_cosine.items():
        if value > COLLAPSED:
            yield (
                f"collapsed {side}",
                f"the {side} embeddings have collapsed: on validation the squared cosine of two of them is {value:.3f} "
                "on average, where 1 means that all are one vector; try a smaller --lr or --latent-norm standardize",
            )
