"""The tiled loss against a dense one in plain torch: time and peak extra memory, as ratios from one run.

    python benchmarks/loss.py [--rows 4096] [--large-rows 20480] [--width 512] [--repeats 5] [--threads 2]

Time is forward and backward at `--rows`, medians of alternating repetitions. Memory is the most that either adds to a
process of its own, gradients included, at `--large-rows`; the dense one is estimated there from `--rows`, for it needs
memory with the square of the rows. Last, the time of one of four processes that share a batch, without what they
exchange.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from alignvl_cli.align.losses import contrastive
from alignvl_cli.align.smoothing import HARD, Smoothing
from alignvl_cli.align.tiles import ALONE, ProcessGroup
from alignvl_cli.devices import CPU_TILE, automatic_tile, choose_device
from alignvl_cli.settings import Device, Loss

ALPHA = 0.1
PROCESSES = 4


def inputs(rows: int, width: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    pair = [torch.randn(rows, width, generator=draw) for _ in range(2)]
    return [tensor.requires_grad_() for tensor in (*pair, torch.tensor(14.0))]


def dense(img: torch.Tensor, txt: torch.Tensor, scale: torch.Tensor, alpha: float) -> torch.Tensor:
    """Symmetric InfoNCE as it is usually written, with torch's own label smoothing."""
    logits = scale * F.normalize(img, dim=1) @ F.normalize(txt, dim=1).T
    own = torch.arange(len(logits))
    return (
        F.cross_entropy(logits, own, label_smoothing=alpha) + F.cross_entropy(logits.T, own, label_smoothing=alpha)
    ) / 2


def tiled(
    img: torch.Tensor, txt: torch.Tensor, scale: torch.Tensor, alpha: float, tile: int, group: ProcessGroup = ALONE
) -> torch.Tensor:
    smoothing = Smoothing(alpha) if alpha else HARD
    return contrastive(Loss.infonce, img, txt, scale, None, smoothing, tile=tile, group=group).loss


def step(kind: str, leaves: list[torch.Tensor], alpha: float, tile: int) -> torch.Tensor:
    for leaf in leaves:
        leaf.grad = None
    if kind == "dense":
        loss = dense(*leaves, alpha)
    else:  # `ProcessGroup` of its own exchanges nothing: what is left is the work of one
        loss = tiled(*leaves, alpha, tile, ProcessGroup(0, PROCESSES) if kind == "share" else ALONE)
    loss.backward()
    return loss.detach()


def peak_bytes() -> int:
    """Linux's own count: getrusage's would begin with the parent's peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def extra_memory(kind: str, rows: int, width: int, tile: int) -> int:
    """Peak bytes that one step adds to a fresh process beyond its inputs."""
    words = [sys.executable, __file__, "--memory-of", kind, "--rows", str(rows), "--width", str(width)]
    done = subprocess.run([*words, "--tile", str(tile)], capture_output=True, text=True, check=True)
    return int(done.stdout)


def measure_memory(kind: str, rows: int, width: int, tile: int) -> None:
    step(kind, inputs(64, width), ALPHA, 32)  # whatever the first call brings into memory
    leaves = inputs(rows, width)
    before = peak_bytes()
    step(kind, leaves, ALPHA, tile)
    print(peak_bytes() - before)


def times(rows: int, width: int, repeats: int, alpha: float, tile: int, kinds: tuple[str, ...]) -> dict[str, float]:
    leaves = inputs(rows, width)
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    values = {kind: step(kind, leaves, alpha, tile) for kind in kinds}  # warms up
    if "dense" in values:
        assert abs(values["dense"] - values["tiled"]) < 1e-4 * values["dense"], values
    for _ in range(repeats):
        for kind, seconds in found.items():
            began = time.perf_counter()
            step(kind, leaves, alpha, tile)
            seconds.append(time.perf_counter() - began)
    return {kind: statistics.median(seconds) for kind, seconds in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--large-rows", type=int, default=20_480)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tile", type=int, help="default: as --loss-tile auto would choose")
    parser.add_argument("--memory-of", choices=("dense", "tiled"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    choose_device(Device.cpu)  # as training does: freed memory is kept
    if asked.memory_of:
        measure_memory(asked.memory_of, asked.rows, asked.width, asked.tile)
        return
    tiles = {"as --loss-tile auto": asked.tile or automatic_tile(asked.rows, "cpu"), "in tiles": CPU_TILE}
    for alpha in (0.0, ALPHA):
        for name, tile in tiles.items():
            seconds = times(asked.rows, asked.width, asked.repeats, alpha, tile, ("dense", "tiled"))
            print(
                f"time, {asked.rows:,} rows x {asked.width}, alpha {alpha:g}, {name} ({tile:,}): "
                f"tiled {seconds['tiled']:.3f} s, dense {seconds['dense']:.3f} s, "
                f"ratio {seconds['tiled'] / seconds['dense']:.2f}"
            )
    tile = tiles["as --loss-tile auto"]
    seconds = times(asked.rows, asked.width, asked.repeats, ALPHA, tile, ("tiled", "share"))
    print(
        f"time, {asked.rows:,} rows x {asked.width}, alpha {ALPHA:g}, one of {PROCESSES} processes: "
        f"{seconds['share']:.3f} s, one alone {seconds['tiled']:.3f} s, ratio {seconds['share'] / seconds['tiled']:.2f}"
    )
    tile = automatic_tile(asked.large_rows, "cpu")
    extra = extra_memory("tiled", asked.large_rows, asked.width, tile)
    small = extra_memory("dense", asked.rows, asked.width, tile)
    dense_extra = small * (asked.large_rows / asked.rows) ** 2
    print(
        f"peak extra memory, {asked.large_rows:,} rows x {asked.width}: tiled ({tile:,}) {extra / 1e6:,.0f} MB, "
        f"dense about {dense_extra / 1e6:,.0f} MB, ratio {extra / dense_extra:.3f}"
    )


if __name__ == "__main__":
    main()
