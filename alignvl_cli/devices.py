"""The machine: which device and number format a stage uses, its cores, memory and name.

Importing this loads no torch; most functions do.
"""

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from alignvl_cli.errors import UsageError
from alignvl_cli.settings import Device, Precision

if TYPE_CHECKING:
    import torch
    from torch import Tensor

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""As malloc.h numbers them."""
KEPT_BYTES = 2**30


def choose_device(asked: Device) -> str:
    """The torch device for `asked`: CUDA, else Apple's MPS, else the CPU for `auto`; exit 2 if it is not there."""
    import torch

    present = {
        Device.cuda: torch.cuda.is_available(),
        Device.mps: torch.backends.mps.is_available(),
        Device.cpu: True,
    }
    used = next(device for device, there in present.items() if there) if asked is Device.auto else asked
    if not present[used]:
        there = ", ".join(device.value for device, is_there in present.items() if is_there)
        raise UsageError(f"--device {used.value}: this machine has no such device for torch (it has: {there})")
    if used is Device.cpu:
        _keep_freed_memory()
    return used.value


def _keep_freed_memory() -> None:
    """Have glibc keep the large blocks that torch frees: given back, each costs a page fault every 4 KiB when it is
    taken again, a quarter of an encoder's time. Threads share one arena, as those of their own always give back what
    is large. Elsewhere nothing is done."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    mallopt(M_ARENA_MAX, 1)


def bf16_pays(device: str) -> bool:
    """Whether bf16 matrix products beat fp32 here: CUDA from Ampere on, CPUs with AMX or AVX512-BF16."""
    import torch

    if device == "cuda":
        return torch.cuda.get_device_capability()[0] >= 8
    if device == "cpu":
        return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return False


def choose_precision(asked: Precision, device: str) -> Precision:
    """`fp32` or `bf16`: as asked, or for `auto` bf16 where the hardware computes in it."""
    if asked is not Precision.auto:
        return asked
    return Precision.bf16 if bf16_pays(device) else Precision.fp32


def usable_cores() -> int:
    """Cores that this process may run on: a scheduler may give it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """CUDA devices that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    import torch

    named = [part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part]
    return named or [str(number) for number in range(torch.cuda.device_count())]


@contextmanager
def computing_with(threads: int) -> Iterator[None]:
    """torch computes with so many threads in this thread and in those that it starts; then with as many as before.
    Training differs in its last bits between one thread and two."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether torch or numpy failed for want of memory; on CPUs and MPS torch says so in words alone."""
    import torch

    words = ("out of memory", "can't allocate memory")
    return isinstance(problem, torch.OutOfMemoryError | MemoryError) or (
        isinstance(problem, RuntimeError) and any(one in str(problem) for one in words)
    )


def peak_resident_bytes() -> int | None:
    """The most memory that this process has held; None where nobody counts."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: what getrusage says there begins at the peak of the process that started this one
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


ASSUMED_BYTES = 8 * 2**30
WHOLE_SHARE, WHOLE_BYTES_CPU = 1 / 16, 512 * 2**20
BYTES_AN_ENTRY = 20
"""The logits of a tile, its gradient, the target and what is made on the way, in float32."""
CPU_TILE, ACCELERATOR_TILE = 1024, 8192


def device_name(device: str) -> str:
    """The accelerator's own name, else the processor's architecture and what of it torch uses."""
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{device} ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"


def peak_memory_bytes(device: str) -> int | None:
    """The most memory in use so far: the device's when it has its own, else the process's; None if nobody counts."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return peak_resident_bytes()


def memory_bytes(device: str) -> int:
    """What the device has in all: unlike what is free just now, the same in every run on one machine."""
    if device == "cuda":
        import torch

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
    import torch

    return device != "cuda" or size < torch.cuda.mem_get_info()[0] / 2


def sent(tensor: "Tensor", device: "torch.device | str") -> "Tensor":
    """`tensor` on `device`. To a GPU it goes from pinned memory, behind the work that waits there: the host goes on."""
    import torch

    device = torch.device(device)
    if tensor.device.type == device.type:
        return tensor
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
