"""Exact ranks against the bare matrix products that they need: python benchmarks/evaluation.py [IMAGES CAPTIONS WIDTH]

Prints medians of runs taken in turn, their ratio, and the memory that each takes on top of the embeddings (the peak of
a process of its own). Default: the sizes of COCO's 5K test split, 5,000 images, 25,000 captions, 512 wide.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from alignvl_cli.align.ranks import BLOCK_ELEMENTS, image_to_text_ranks, text_to_image_ranks
from alignvl_cli.retrieval.nearest import agreement, flat_index

RUNS = 5


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


def bare_products(img_IE: Tensor, txt_TE: Tensor, _owner_T: Tensor) -> None:
    """Every score, both ways, in the blocks that the ranks use; nothing is done with them."""
    for query_QE, gallery_GE in ((img_IE, txt_TE), (txt_TE, img_IE)):
        size = max(1, BLOCK_ELEMENTS // len(gallery_GE))
        for start in range(0, len(query_QE), size):
            query_QE[start : start + size] @ gallery_GE.T


def exact_ranks(img_IE: Tensor, txt_TE: Tensor, owner_T: Tensor) -> None:
    """Ranks and average precisions of every query, both ways."""
    image_to_text_ranks(img_IE, txt_TE, owner_T)
    text_to_image_ranks(img_IE, txt_TE, owner_T)


def faiss_agreement(img_IE: Tensor, txt_TE: Tensor, _owner_T: Tensor) -> None:
    """What `eval` adds: a FAISS index of each gallery, held to exact search by 1,000 queries."""
    image, text = img_IE.numpy(), txt_TE.numpy()
    agreement(flat_index(text), image, text)
    agreement(flat_index(image), text, image)


WORK: dict[str, Callable[[Tensor, Tensor, Tensor], None]] = {
    "bare products": bare_products,
    "exact ranks": exact_ranks,
    "FAISS agreement": faiss_agreement,
}


def resident(kind: str) -> int:
    """KiB of memory that this process holds (`VmRSS`), or held at most (`VmHWM`); Linux alone tells."""
    return int(Path("/proc/self/status").read_text().partition(f"{kind}:")[2].split()[0])


def extra_memory(name: str, sizes: list[int]) -> float:
    """MiB that one run takes above what the process held before it, in a process of its own."""
    arguments = [sys.executable, __file__, *map(str, sizes), name]
    return float(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)


def measure(sizes: list[int]) -> None:
    inputs = embeddings(*sizes)
    times: dict[str, list[float]] = {name: [] for name in WORK}
    runs = RUNS if sizes[0] * sizes[1] < 10**9 else 1
    for _ in range(runs):  # in turn, so that a busy moment of the machine hits all of them
        for name, work in WORK.items():
            began = time.perf_counter()
            work(*inputs)
            times[name].append(time.perf_counter() - began)
    images, captions, width = sizes
    print(f"{images:,} images x {captions:,} captions x {width}, both ways, {torch.get_num_threads()} threads")
    bare = statistics.median(times["bare products"])
    for name, taken in times.items():
        median = statistics.median(taken)
        print(
            f"{name:<16} median {median:7.3f} s ({min(taken):.3f} to {max(taken):.3f}), {median / bare:5.2f} x bare, "
            f"{extra_memory(name, sizes):6.0f} MiB on top"
        )


def main() -> None:
    sizes = [int(word) for word in sys.argv[1:4]] or [5000, 25_000, 512]
    if len(sys.argv) <= 4:
        measure(sizes)
        return
    inputs = embeddings(*sizes)
    flat_index(inputs[0][:2].numpy())  # FAISS is loaded, and the products' own buffers are there, before the count
    inputs[0][:64] @ inputs[1][:64].T
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew from here
    before = resident("VmRSS")
    WORK[sys.argv[4]](*inputs)
    print((resident("VmHWM") - before) / 1024)


if __name__ == "__main__":
    main()
