"""Training against a loop written as the released FuseMix does it, and against what the data cost.

    python benchmarks/training.py [--quick] [--rows 2048] [--depth 4] [--steps 3]
        [--only ratio|pairs|budget|profile|processes]

1. At paper size (latents of 1536 and 1024, shared width 512, depth 4, 2,048 rows, mixing alone): pairs/s of both loops,
   as medians of steps taken in turn, their ratio, and the matrix products' FLOPs of our step over its time, as a share
   of the peak that a large product reaches here in the same precision.
2. Pairs/s on 10^4, 10^5 and 10^6 pairs. Latents of 128 and 96: per FLOP that is some thirty times the bytes of the
   paper's size, so gathering them weighs as much more.
3. The largest of those with `--memory-budget` an eighth of its latents, against all in memory: speed, taken in turn,
   and the peak memory of processes of their own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.fakes import make_store

from alignvl_cli.devices import choose_device, choose_precision
from alignvl_cli.recipes import resolve_train
from alignvl_cli.settings import Device, Precision
from alignvl_cli.store.reader import open_store
from alignvl_cli.training.ingredients import epoch_slices
from alignvl_cli.training.loop import take_step
from alignvl_cli.training.prepare import prepare
from alignvl_cli.training.state import Plan, TrainState
from alignvl_cli.training.throughput import matmul_peak, step_flops

PAPER = (1536, 1024, 512)
NARROW = (128, 96, 64)
NARROW_ROWS = 1024
NARROW_STEPS = 60
CAPTIONS = 5
MIXED = {"recipe": "fusemix", "device": "auto", "precision": "auto"}


def random_store(path: Path, pairs: int, widths: tuple[int, int]) -> Path:
    """`pairs` captions, five an image, and a few more to validate on."""
    draw = np.random.default_rng(0)
    images = pairs // CAPTIONS + 8
    captions = images * CAPTIONS
    return make_store(
        path,
        images=images,
        captions_per_image=(CAPTIONS,),
        splits=["train"] * (images - 8) + ["val"] * 8,
        image_latent=draw.standard_normal((images, widths[0]), dtype=np.float32),
        text_latent=draw.standard_normal((captions, widths[1]), dtype=np.float32),
        captions=[f"c{number}" for number in range(captions)],
    )


def prepared(store: Path, **asked: Any) -> tuple[Plan, TrainState]:
    opened = open_store(store)
    config = resolve_train(MIXED, {key.replace("_", "-"): value for key, value in asked.items()}, pairs=10**4)
    plan, state, _ = prepare([opened], opened, config, choose_device(Device.auto))
    return plan, state


def wait(state: TrainState) -> None:
    """For the device to be done."""
    state.adapters.temperature.item()


class LatentPairs(Dataset):
    """Latents in dicts by the string of their index, one sample at a time, as the release keeps them."""

    def __init__(self, pairs: int, widths: tuple[int, int]) -> None:
        draw = torch.Generator().manual_seed(0)
        self.latents = {
            side: {str(i): torch.randn(width, generator=draw) for i in range(pairs)}
            for side, width in zip(("image", "text"), widths, strict=True)
        }

    def __len__(self) -> int:
        return len(self.latents["image"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.latents["image"][str(index)], "text": self.latents["text"][str(index)], "index": index}


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.6), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


def as_released(rows: int, depth: int, steps: int, device: str) -> Iterator[None]:
    """A step of the released loop each time: twice the rows drawn, halved and mixed, dense loss, float32."""
    loader = DataLoader(LatentPairs(2 * rows * steps, PAPER[:2]), batch_size=2 * rows, shuffle=True, drop_last=True)
    towers = [
        nn.Sequential(*(Block(width) for _ in range(depth)), nn.LayerNorm(width), nn.Linear(width, PAPER[2])).to(device)
        for width in PAPER[:2]
    ]
    tau = nn.Parameter(torch.tensor(0.07, device=device))
    optimiser = torch.optim.AdamW([*towers[0].parameters(), *towers[1].parameters(), tau], lr=1e-3, weight_decay=0.1)
    for batch in loader:
        lam = float(np.random.default_rng(0).beta(1.0, 1.0))
        halves = [batch[side].to(device).chunk(2) for side in ("image", "text")]
        image, text = (
            F.normalize(tower(lam * one + (1 - lam) * other), dim=1)
            for tower, (one, other) in zip(towers, halves, strict=True)
        )
        with torch.no_grad():
            tau.clamp_(0.001, 0.5)
        by_image, by_text = image @ text.T / tau, text @ image.T / tau
        target = torch.zeros_like(by_image).fill_diagonal_(1)
        loss = -sum((F.log_softmax(sim, dim=1) * target).sum(dim=1).mean() for sim in (by_image, by_text)) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()
        yield


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def profile(folder: Path, rows: int, depth: int) -> None:
    """Where the time of one of our steps goes at paper size, after two that allocate."""
    store = random_store(folder / "paper.h5", 6 * rows, PAPER[:2])
    plan, state = prepared(store, size="released", adapter_depth=depth, batch_size=rows)
    slices = epoch_slices(plan.gather.data.epoch_order(torch.Generator().manual_seed(0)), rows)
    seconds = [timed(lambda: (take_step(plan, state, next(slices)), wait(state))) for _ in range(3)]
    with torch.profiler.profile() as profiled:
        take_step(plan, state, next(slices))
        wait(state)
    print(f"{rows:,} rows, depth {depth}: a step took {seconds[-1]:.2f} s")
    print(profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=12))


def processes(folder: Path, rows: int, depth: int) -> None:
    """Pairs/s at paper size, twice: one process of one thread, two of one thread each, one of two threads."""
    store = random_store(folder / "paper.h5", 8 * rows, PAPER[:2])
    asked = ["--recipe", "fusemix", "--size", "released", "--adapter-depth", str(depth), "--batch-size", str(rows)]
    alone, together = [], ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    for _ in range(2):
        for count, threads, launcher in ((1, 1, alone), (2, 1, together), (1, 2, alone)):
            run = folder / "run"
            words = [*launcher, "alignvl_cli", "train", str(store), "-o", str(run), "--overwrite", "--quiet"]
            subprocess.run(
                [sys.executable, "-m", *words, *asked, "--epochs", "1"],
                check=True,
                stdout=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            )
            rate = json.loads((run / "result.json").read_text())["pairs_per_s"]
            print(f"{count} process(es) of {threads} thread(s): {rate:,.0f} pairs/s")


def ratio(folder: Path, rows: int, depth: int, steps: int, peak_size: int) -> None:
    pairs = -(-2 * rows * (steps + 1) // CAPTIONS) * CAPTIONS
    store = random_store(folder / "paper.h5", pairs, PAPER[:2])
    plan, state = prepared(store, size="released", adapter_depth=depth, batch_size=rows)
    slices = epoch_slices(plan.gather.data.epoch_order(torch.Generator().manual_seed(0)), rows)
    released = as_released(rows, depth, steps + 1, plan.gather.device)

    def ours() -> None:
        take_step(plan, state, next(slices))
        wait(state)

    next(released)
    ours()  # the first steps allocate
    times = [(timed(lambda: next(released)), timed(ours)) for _ in range(steps)]
    theirs_s, ours_s = (statistics.median(column) for column in zip(*times, strict=True))
    precision = choose_precision(Precision.auto, plan.gather.device)
    peak = matmul_peak(plan.gather.device, precision, peak_size, tried_s=2.0)
    reached = step_flops(state.adapters, rows) / ours_s
    print(
        f"{PAPER[0]}/{PAPER[1]} -> {PAPER[2]}, depth {depth}, {rows:,} rows, {steps} steps: as released "
        f"{rows / theirs_s:,.0f} pairs/s (fp32), ours {rows / ours_s:,.0f} ({precision.value}): "
        f"{theirs_s / ours_s:.2f} times as fast; {reached / 1e9:,.0f} of {peak / 1e9:,.0f} GFLOP/s "
        f"({precision.value} matmul): {reached / peak:.0%} of the peak"
    )


def narrow_rate(store: Path, steps: int, **asked: Any) -> tuple[float, Callable[[], float]]:
    """Seconds of shuffling an epoch; and a function that takes `steps` steps and returns pairs/s, their share of the
    shuffling included."""
    plan, state = prepared(store, embed_dim=NARROW[2], adapter_depth=1, adapter_expansion=4, **asked)
    rows, stream = plan.config.batch_size, torch.Generator().manual_seed(0)
    began = time.perf_counter()
    order_P = plan.gather.data.epoch_order(stream)
    shuffling = time.perf_counter() - began
    slices = iter(())

    def measure() -> float:
        nonlocal slices
        began = time.perf_counter()
        for _ in range(steps):
            step = next(slices, None)
            if step is None:
                slices = epoch_slices(order_P, rows)
                step = next(slices)
            take_step(plan, state, step)
        wait(state)
        return steps * rows / (time.perf_counter() - began + shuffling * steps / plan.steps_per_epoch)

    measure()
    return shuffling, measure


def by_pairs(stores: dict[int, Path], rows: int, steps: int, repeats: int) -> None:
    measures = {pairs: narrow_rate(store, steps, batch_size=rows)[1] for pairs, store in stores.items()}
    rates: dict[int, list[float]] = {pairs: [] for pairs in stores}
    for _ in range(repeats):
        for pairs, measure in measures.items():
            rates[pairs].append(measure())
    medians = {pairs: statistics.median(found) for pairs, found in rates.items()}
    first, *_, last = medians.values()
    told = ", ".join(f"{pairs:,} pairs {rate:,.0f} pairs/s" for pairs, rate in medians.items())
    print(f"{NARROW[0]}/{NARROW[1]} -> {NARROW[2]}, {rows:,} rows: {told}: {last / first - 1:+.1%}")


def child(store: Path, rows: int, steps: int, budget: str) -> None:
    """Train a little in a process of its own, and print the most memory that it had."""
    _, measure = narrow_rate(store, steps, batch_size=rows, memory_budget=budget)
    measure()
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")))


def peak_bytes(store: Path, rows: int, steps: int, budget: str) -> int:
    words = [str(store), str(rows), str(steps), budget]
    done = subprocess.run([sys.executable, __file__, "--child", *words], stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout)


def budgeted(store: Path, pairs: int, rows: int, steps: int, repeats: int) -> None:
    size = 4 * (pairs // CAPTIONS * NARROW[0] + pairs * NARROW[1])
    budgets = {"resident": "none", "bounded": f"{size / 8e3:.0f}kB"}
    peak = {name: peak_bytes(store, rows, steps, budget) for name, budget in budgets.items()}
    measures = {
        name: narrow_rate(store, steps, batch_size=rows, memory_budget=budget)[1] for name, budget in budgets.items()
    }
    found = [{name: measure() for name, measure in measures.items()} for _ in range(repeats)]
    rate = {name: statistics.median(one[name] for one in found) for name in budgets}
    print(
        f"{size / 1e6:,.0f} MB of latents, --memory-budget {size / 8e6:,.0f}MB: {rate['bounded']:,.0f} pairs/s, "
        f"{rate['bounded'] / rate['resident']:.0%} of the {rate['resident']:,.0f} with all in memory; "
        f"peak memory {peak['bounded'] / 1e6:,.0f} MB instead of {peak['resident'] / 1e6:,.0f}"
    )
    if size > 2**28:  # below that the libraries' own ups and downs are as large
        assert peak["resident"] - peak["bounded"] > 0.75 * size, "the budget is not held"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all")
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", choices=["ratio", "pairs", "budget", "profile", "processes"])
    parser.add_argument("--child", nargs=4, metavar=("STORE", "ROWS", "STEPS", "BUDGET"), help="internal")
    given = parser.parse_args()
    if given.child:
        child(Path(given.child[0]), *map(int, given.child[1:3]), given.child[3])
        return
    rows, depth, peak_size = (64, 1, 512) if given.quick else (given.rows, given.depth, 4096)
    sizes = (10**3, 10**4) if given.quick else (10**4, 10**5, 10**6)
    narrow_rows, narrow_steps, repeats = (64, 5, 1) if given.quick else (NARROW_ROWS, NARROW_STEPS, 5)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.only in ("profile", "processes"):  # only when asked for
            {"profile": profile, "processes": processes}[given.only](folder, rows, depth)
        if given.only in (None, "ratio"):
            ratio(folder, rows, depth, given.steps, peak_size)
        if given.only in (None, "pairs", "budget"):
            stores = {pairs: random_store(folder / f"{pairs}.h5", pairs, NARROW[:2]) for pairs in sizes}
            if given.only != "budget":
                by_pairs(stores, narrow_rows, narrow_steps, repeats)
            if given.only != "pairs":
                budgeted(stores[sizes[-1]], sizes[-1], narrow_rows, narrow_steps, repeats)


if __name__ == "__main__":
    main()
