"""Which pairs a step sees. Anchors and partners of one step are disjoint, and every arm takes equally many steps.

Letters: P pairs, N rows of a batch.
"""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from alignvl_cli.errors import UsageError


class Slices(NamedTuple):
    """Two slices of one permutation: the step's anchors, and the next step's, from which partners come."""

    anchor_N: Tensor
    next_N: Tensor


def steps_per_epoch(pairs: int, batch_size: int) -> int:
    """`floor(pairs / batch_size)`; UsageError when fewer than two batches fit, whether or not the arm mixes."""
    if batch_size > pairs // 2:
        raise UsageError(
            f"--batch-size {batch_size}: with {pairs} training pairs it may be at most {pairs // 2}, in every arm, "
            "so that a pair is never mixed with one of its own batch"
        )
    return pairs // batch_size


def epoch_slices(order_P: Tensor, batch_size: int) -> Iterator[Slices]:
    """One epoch: a permutation of all pairs cut into whole slices; the last one's next is the first."""
    slices = order_P.split(batch_size)[: len(order_P) // batch_size]
    for number, anchor_N in enumerate(slices):
        yield Slices(anchor_N, slices[(number + 1) % len(slices)])
