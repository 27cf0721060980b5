"""How near a training comes to the matrix products that its device can do."""

import time
from collections.abc import Callable
from functools import cache

import torch

from alignvl_cli.align.adapters import AdapterPair
from alignvl_cli.devices import is_out_of_memory
from alignvl_cli.settings import AdapterKind, Precision

SMALLEST_SIDE, CPU_SIDE, ACCELERATOR_SIDE = 256, 2048, 4096
"""Of the square products that are timed: the largest reach the peak, where they take a moment."""
TRIED_S = 0.3
DTYPE = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16}


def step_flops(adapters: AdapterPair, rows: int) -> int:
    """Of the matrix products of one step: forward, and twice that backward, or once in a `linear` adapter, before which
    nothing is trained. What a tiled loss computes again is not counted, nor is the `similarity` target."""
    weights = sum(parameter.numel() for parameter in adapters.parameters() if parameter.ndim == 2)
    an_entry = 4 if adapters.shape.kind is AdapterKind.linear else 6
    return an_entry * rows * weights + 6 * rows**2 * adapters.shape.embed_dim


def matmul_peak(device: str, precision: Precision, largest: int, tried_s: float = TRIED_S) -> float:
    """FLOP/s of the best of the square products that fit into `tried_s`: of growing sides, up to `largest` where there
    is time for it. A processor that has bf16 by emulation alone would take minutes for one."""
    side, peak, left = min(SMALLEST_SIDE, largest), 0.0, tried_s
    multiply = _square_product(device, precision, side)
    multiply()  # the first one loads what it needs
    while left > 0:
        seconds = max(_seconds(multiply), tried_s / 1000)  # an end, whatever the clock does
        peak, left = max(peak, 2 * side**3 / seconds), left - seconds
        if 2 * side <= largest and 8 * seconds < left:
            side *= 2
            multiply = _square_product(device, precision, side)
    return peak


@cache
def peak_of(device: str, precision: Precision, threads: int) -> float | None:
    """`matmul_peak` of this process with so many threads, which it has; measured once. None where there is no room for
    it: a device may be full of other work."""
    try:
        return matmul_peak(device, precision, CPU_SIDE if device == "cpu" else ACCELERATOR_SIDE)
    except (RuntimeError, MemoryError) as problem:
        if not is_out_of_memory(problem):
            raise
        return None


def share_of_peak(adapters: AdapterPair, rows: int, pairs_per_s: float, peak: float | None) -> float | None:
    """What part of `peak` FLOP/s the matrix products of so many rows a second make; None when they make more: then
    the device was busy with other work when the peak was measured. None without a peak."""
    if peak is None:
        return None
    share = step_flops(adapters, rows) * pairs_per_s / rows / peak
    return share if share <= 1 else None


def _square_product(device: str, precision: Precision, side: int) -> Callable[[], float]:
    # Of numbers that differ: on equal ones a GPU draws less power, and is faster than on any training's.
    draw = torch.Generator(device).manual_seed(0)
    one, other = (torch.randn(side, side, generator=draw, device=device).to(DTYPE[precision]) for _ in range(2))
    return lambda: (one @ other)[0, 0].item()


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
