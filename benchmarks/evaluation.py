"""Exact ranks against the bare matrix products that they need: python benchmarks/evaluation.py [IMAGES CAPTIONS WIDTH]

Prints medians of runs taken in turn, their ratio, and the memory that each takes on top of the embeddings (the peak of
a process of its own). Default: the sizes of COCO's 5K test split, 5,000 images, 25,000 captions, 512 wide. With --large
100,000 images, 500,000 captions, 64 wide: every score at once would be 186 GiB. That takes long, so each runs once;
--every 25 asks every 25th query only, of whole galleries, which takes a 25th of the time and as much memory.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from alignvl_cli.align.ranks import BLOCK_ELEMENTS, Relevant, captions_of_images, images_of_captions, rank_queries
from alignvl_cli.retrieval.nearest import agreement, flat_index

RUNS = 5
COCO_5K = (5000, 25_000, 512)
LARGE = (100_000, 500_000, 64)
ONCE_FROM = 10**9
"""Scores from which a run is not repeated."""


def embeddings(images: int, captions: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Captions near their images, so that ranks are as a trained model's: most matches near the top."""
    draw = torch.Generator().manual_seed(0)
    owner_T = torch.arange(captions) * images // captions
    img_IE = F.normalize(torch.randn(images, width, generator=draw), dim=1)
    txt_TE = torch.randn(captions, width, generator=draw)
    for start in range(0, captions, 1 << 16):
        part = slice(start, start + (1 << 16))
        txt_TE[part] = F.normalize(0.2 * width**0.5 * img_IE[owner_T[part]] + txt_TE[part], dim=1)
    return img_IE, txt_TE, owner_T


def bare_products(img_IE: Tensor, txt_TE: Tensor, _owner_T: Tensor, every: int) -> None:
    """Every score, both ways, in the blocks that the ranks use; nothing is done with them."""
    for query_QE, gallery_GE in ((img_IE[::every], txt_TE), (txt_TE[::every], img_IE)):
        size = max(1, BLOCK_ELEMENTS // len(gallery_GE))
        for start in range(0, len(query_QE), size):
            query_QE[start : start + size] @ gallery_GE.T


def exact_ranks(img_IE: Tensor, txt_TE: Tensor, owner_T: Tensor, every: int) -> None:
    """Ranks and average precisions of the queries, both ways."""
    rank_queries(img_IE, txt_TE, asked(captions_of_images(owner_T, len(img_IE)), every))
    rank_queries(txt_TE, img_IE, asked(images_of_captions(owner_T), every))


def asked(relevant: Relevant, every: int) -> Relevant:
    """The same with answers to every n-th query alone: the others are not asked."""
    is_asked_Q = torch.arange(len(relevant.count_Q)) % every == 0
    return Relevant(relevant.row_M[is_asked_Q.repeat_interleave(relevant.count_Q)], relevant.count_Q * is_asked_Q)


def faiss_agreement(img_IE: Tensor, txt_TE: Tensor, _owner_T: Tensor, _every: int) -> None:
    """What `eval` adds: a FAISS index of each gallery, held to exact search by 1,000 queries."""
    image, text = img_IE.numpy(), txt_TE.numpy()
    agreement(flat_index(text), image, text)
    agreement(flat_index(image), text, image)


WORK: dict[str, Callable[[Tensor, Tensor, Tensor, int], None]] = {
    "bare products": bare_products,
    "exact ranks": exact_ranks,
    "FAISS agreement": faiss_agreement,
}


def resident(kind: str) -> int:
    """KiB of memory that this process holds (`VmRSS`), or held at most (`VmHWM`); Linux alone tells."""
    return int(Path("/proc/self/status").read_text().partition(f"{kind}:")[2].split()[0])


def alone(name: str, sizes: Sequence[int], every: int) -> tuple[float, float]:
    """Seconds that one run takes in a process of its own, and MiB above what the process held before it."""
    arguments = [sys.executable, __file__, *map(str, sizes), "--every", str(every), "--alone", name]
    seconds, extra = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.split()
    return float(seconds), float(extra)


def run_alone(name: str, sizes: Sequence[int], every: int) -> None:
    """Print what `alone` reads."""
    inputs = embeddings(*sizes)
    flat_index(inputs[0][:2].numpy())  # FAISS is loaded, and the products' own buffers are there, before the count
    inputs[0][:64] @ inputs[1][:64].T
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew from here
    before, began = resident("VmRSS"), time.perf_counter()
    WORK[name](*inputs, every)
    print(time.perf_counter() - began, (resident("VmHWM") - before) / 1024)


def in_turn(sizes: Sequence[int]) -> dict[str, list[float]]:
    """Seconds of every run, taken in turn so that a busy moment of the machine hits all of them."""
    inputs = embeddings(*sizes)
    times: dict[str, list[float]] = {name: [] for name in WORK}
    for _ in range(RUNS):
        for name, work in WORK.items():
            began = time.perf_counter()
            work(*inputs, 1)
            times[name].append(time.perf_counter() - began)
    return times


def measure(sizes: Sequence[int], every: int) -> None:
    images, captions, width = sizes
    queries = "every query" if every == 1 else f"every {every}th query"
    print(f"{images:,} images x {captions:,} captions x {width}, {queries}, {torch.get_num_threads()} threads")
    times = in_turn(sizes) if images * captions < ONCE_FROM and every == 1 else {}
    bare = 0.0
    for name in WORK:
        seconds, extra = alone(name, sizes, every)
        taken = times.get(name, [seconds])
        median = statistics.median(taken)
        bare = bare or median
        print(
            f"{name:<16} median {median:7.3f} s ({min(taken):.3f} to {max(taken):.3f}), {median / bare:5.2f} x bare, "
            f"{extra:6.0f} MiB on top",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, metavar="N", help="IMAGES CAPTIONS WIDTH")
    parser.add_argument("--large", action="store_true", help="100,000 images and 500,000 captions: minutes")
    parser.add_argument("--every", type=int, default=1, help="ask every n-th query only; the galleries stay whole")
    parser.add_argument("--alone", choices=WORK, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if len(arguments.sizes) not in (0, 3):
        parser.error("wanted three sizes, IMAGES CAPTIONS WIDTH, or none")
    sizes = arguments.sizes or (LARGE if arguments.large else COCO_5K)
    if arguments.alone:
        run_alone(arguments.alone, sizes, arguments.every)
    else:
        measure(sizes, arguments.every)


if __name__ == "__main__":
    main()
