"""What a run records about the machine it ran on, and how much of its memory a step may take."""

import os
import platform

import torch
from torch import Tensor

from alignvl_cli.devices import peak_resident_bytes

ASSUMED_BYTES = 8 * 2**30
WHOLE_SHARE, WHOLE_BYTES_CPU = 1 / 16, 512 * 2**20
BYTES_AN_ENTRY = 20
"""The logits of a tile, its gradient, the target and what is made on the way, in float32."""
CPU_TILE, ACCELERATOR_TILE = 1024, 8192


def device_name(device: str) -> str:
    """The accelerator's own name, else the processor's architecture and what of it torch uses."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{device} ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"


def peak_memory_bytes(device: str) -> int | None:
    """The most memory in use so far: the device's when it has its own, else the process's; None if nobody counts."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return peak_resident_bytes()


def memory_bytes(device: str) -> int:
    """What the device has in all: unlike what is free just now, the same in every run on one machine."""
    if device == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return ASSUMED_BYTES


def automatic_tile(rows: int, device: str) -> int:
    """Side of the loss's tiles for a batch of `rows`: all of it while that takes little memory (a tile that is kept is
    not computed twice), else what keeps a processor busy. A CPU's memory is shared with other work, so that little is
    little there however much the machine has."""
    little = memory_bytes(device) * WHOLE_SHARE
    if rows**2 * BYTES_AN_ENTRY <= (min(little, WHOLE_BYTES_CPU) if device == "cpu" else little):
        return rows
    return CPU_TILE if device == "cpu" else ACCELERATOR_TILE


def fits_on(device: str, size: int) -> bool:
    """Whether `size` bytes leave half of the device's free memory to the training itself."""
    return device != "cuda" or size < torch.cuda.mem_get_info()[0] / 2


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """`tensor` on `device`. To a GPU it goes from pinned memory, behind the work that waits there: the host goes on."""
    device = torch.device(device)
    if tensor.device.type == device.type:
        return tensor
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
