"""How fast a training is, against what its device can do: the matrix products of a step over those that it could do."""

import time
from collections.abc import Callable
from functools import cache

import torch

from alignvl_cli.align.adapters import AdapterPair
from alignvl_cli.config import AdapterKind, Precision

CPU_SIDE, ACCELERATOR_SIDE = 2048, 4096
"""Of the square product that is timed: large enough to reach the peak, small enough to take a moment."""
TRIED_S = 0.3
DTYPE = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16}


def step_flops(adapters: AdapterPair, rows: int) -> int:
    """Of the matrix products of one step: forward, and twice that backward, or once in a `linear` adapter, before which
    nothing is trained. What a tiled loss computes again is not counted, nor is the `similarity` target."""
    weights = sum(parameter.numel() for parameter in adapters.parameters() if parameter.ndim == 2)
    an_entry = 4 if adapters.shape.kind is AdapterKind.linear else 6
    return an_entry * rows * weights + 6 * rows**2 * adapters.shape.embed_dim


def matmul_peak(device: str, precision: Precision, side: int) -> float:
    """FLOP/s of the best of the square products that fit into a moment, after a first one."""
    one, other = (torch.ones(side, side, device=device, dtype=DTYPE[precision]) for _ in range(2))
    seconds = [_seconds(lambda: (one @ other)[0, 0].item()) for _ in range(2)][1:]
    while sum(seconds) < TRIED_S:
        seconds.append(_seconds(lambda: (one @ other)[0, 0].item()))
    return 2 * side**3 / min(seconds)


@cache
def peak_of(device: str, precision: Precision, threads: int) -> float:
    """`matmul_peak` of this process with so many threads, which it has; measured once."""
    return matmul_peak(device, precision, CPU_SIDE if device == "cpu" else ACCELERATOR_SIDE)


def share_of_peak(adapters: AdapterPair, rows: int, pairs_per_s: float, peak: float) -> float | None:
    """What part of `peak` FLOP/s the matrix products of so many rows a second make; None when they make more: then
    the device was busy with other work when the peak was measured."""
    share = step_flops(adapters, rows) * pairs_per_s / rows / peak
    return share if share <= 1 else None


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
