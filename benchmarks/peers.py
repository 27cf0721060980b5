"""The same job by other libraries: python benchmarks/peers.py [--rows N] [--images N] [--captions N] [--repeats N]

Medians of runs taken in turn, as ratios to ours; each pair of results is compared first, and must be equal.

- The loss, forward and backward on `--rows` pairs: pytorch-metric-learning's NTXentLoss, once a direction. It
  holds a row of all N x N comparisons for each of N pairs, so that a few hundred pairs are what it can be asked for.
- R@10 both ways of `--images` images and `--captions` captions: ranx on the first ten of torch's own top-k, and
  torchmetrics' RetrievalHitRate, which takes every score and so is asked for at most 200 queries of a direction: its
  time is multiplied up.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import NTXentLoss
from ranx import Qrels, Run, evaluate
from torchmetrics.retrieval import RetrievalHitRate

from alignvl_cli.align.losses import contrastive
from alignvl_cli.align.ranks import image_to_text_ranks, recalls, text_to_image_ranks
from alignvl_cli.devices import automatic_tile, choose_device
from alignvl_cli.settings import Device, Loss

WIDTH, TAU, K, MOST_ASKED = 256, 0.07, 10, 200


def draws(rows: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed)), dim=1)


def in_turn(work: dict[str, Callable[[], float]], repeats: int) -> dict[str, tuple[float, float]]:
    """Name -> median seconds, and the result."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    results = {name: call() for name, call in work.items()}  # and warm
    for _ in range(repeats):
        for name, call in work.items():
            began = time.perf_counter()
            results[name] = call()
            taken[name].append(time.perf_counter() - began)
    return {name: (statistics.median(times), results[name]) for name, times in taken.items()}


def show(what: str, found: dict[str, tuple[float, float]], scaled: dict[str, float], tolerance: float) -> None:
    ours, wanted = next(iter(found.values()))
    for name, (seconds, result) in found.items():
        if name not in scaled and abs(result - wanted) > tolerance:
            raise SystemExit(f"{what}: {name} gives {result}, ours {wanted}: not the same job")
        times = seconds * scaled.get(name, 1.0)
        print(f"{what}, {name:<24} {times:8.3f} s, {times / ours:6.2f} times ours")


def losses(rows: int, repeats: int) -> None:
    img, txt = draws(rows, 0).requires_grad_(), draws(rows, 1).requires_grad_()
    own, other = torch.arange(rows), torch.arange(rows)  # one tensor twice would mean one set of embeddings
    tile, peer = automatic_tile(rows, "cpu"), NTXentLoss(temperature=TAU)

    def stepped(loss: torch.Tensor) -> float:
        img.grad = txt.grad = None
        loss.backward()
        return loss.item()

    found = in_turn(
        {
            "alignvl": lambda: stepped(contrastive(Loss.infonce, img, txt, torch.tensor(1 / TAU), tile=tile).loss),
            "pytorch-metric-learning": lambda: stepped(
                (peer(img, own, ref_emb=txt, ref_labels=other) + peer(txt, own, ref_emb=img, ref_labels=other)) / 2
            ),
        },
        repeats,
    )
    show(f"loss of {rows:,} pairs", found, {}, 1e-4)


def metrics(images: int, captions: int, repeats: int) -> None:
    img, txt = draws(images, 2), draws(captions, 3)
    owner = torch.arange(captions) % images
    txt = F.normalize(txt + 0.15 * WIDTH**0.5 * img[owner] / 2, dim=1)

    def ours() -> float:
        ways = (image_to_text_ranks(img, txt, owner), text_to_image_ranks(img, txt, owner))
        return sum(recalls(ranks.rank_Q, [K])[f"R@{K}"] for ranks in ways)

    def by_ranx() -> float:
        total = 0.0
        for query, gallery, match in ((img, txt, lambda q, g: owner[g] == q), (txt, img, lambda q, g: g == owner[q])):
            top = (query @ gallery.T).topk(K, dim=1)
            run = {
                str(q): {str(g): s for g, s in zip(rows, scores, strict=True)}
                for q, (rows, scores) in enumerate(zip(top.indices.tolist(), top.values.tolist(), strict=True))
            }
            every = torch.arange(len(gallery))
            qrels = {str(q): {str(g): 1 for g in every[match(q, every)].tolist()} for q in range(len(query))}
            total += 100 * float(evaluate(Qrels(qrels), Run(run), f"hit_rate@{K}"))
        return total

    asked = {"image": min(images, MOST_ASKED), "text": min(captions, MOST_ASKED)}

    def by_torchmetrics() -> float:
        total = 0.0
        for query, gallery, count in ((img, txt, asked["image"]), (txt, img, asked["text"])):
            score = query[:count] @ gallery.T
            row = torch.arange(count)[:, None]
            target = owner[None] == row if gallery is txt else torch.arange(images)[None] == owner[:count, None]
            metric = RetrievalHitRate(top_k=K)
            metric.update(score.flatten(), target.flatten(), row.expand_as(score).flatten())
            total += 100 * float(metric.compute())
        return total

    times = (images + captions) / (asked["image"] + asked["text"])
    found = in_turn({"alignvl": ours, "ranx": by_ranx, "torchmetrics": by_torchmetrics}, repeats)
    scaled = {"torchmetrics": times} if times > 1 else {}
    show(f"R@{K} of {images:,} images, {captions:,} captions", found, scaled, 0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--captions", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")  # of numba's first compilation
    choose_device(Device.cpu)
    losses(asked.rows, asked.repeats)
    metrics(asked.images, asked.captions, asked.repeats)


if __name__ == "__main__":
    main()
