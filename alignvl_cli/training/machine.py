"""What a run records about the machine it ran on."""

import platform
import sys

import torch


def device_name(device: str) -> str:
    """The accelerator's own name, else the processor's architecture and what of it torch uses."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{device} ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"


def peak_memory_bytes(device: str) -> int | None:
    """The most memory in use so far: the device's when it has its own, else the process's; None if nobody counts."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
