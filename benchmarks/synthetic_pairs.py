"""A store of synthetic pairs with known structure: python benchmarks/synthetic_pairs.py STORE [--pairs 100000]

No real data: what `sizes.py` studies the automatic size on where no built-in data are large enough. What it shares with
real latents:

- A concept of 192 dimensions, whose standard deviations fall as a power, is seen through another nonlinear map in each
  modality (a random network with one hidden layer), so that no linear map, CCA's included, can align both perfectly.
- Concepts lie in 1,500 clusters of Zipf sizes; every tenth image is a near duplicate of one before it in its split.
- One to five captions an image. Each mentions a part of the concept (every dimension with probability 0.7) and adds
  noise of its own; a tenth of the training captions are of another image. Validation and test pairs are right.
- Each modality has private factors, as large as what it shares, through a nonlinear map as well.
- Spectra are anisotropic: variances fall from axis to axis, as 1 / k and faster, and the mean is not zero. Image
  latents are 768 wide and raw, text latents 384 wide and of unit length.

Training sets of other sizes are nested; validation and test, 2,000 images each, are the same in all.

Letters: I images, T captions, K dimensions of the concept, U private ones, H hidden ones, W width of a latent.
"""

import argparse
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.fakes import make_store

IMAGE_WIDTH, TEXT_WIDTH = 768, 384
CONCEPT, PRIVATE, HIDDEN = 192, 96, 256
DECAY_K = np.arange(1, CONCEPT + 1) ** -0.7
"""Standard deviations of a concept's dimensions."""
GAIN = 3.0
"""Of the networks' hidden units: the larger, the less of a map is linear."""
CLUSTERS, ZIPF, CLUSTER_SHARE = 1500, 1.0, 0.5
"""Share of a concept's variance that is its cluster's."""
NEAR_DUPLICATES, DUPLICATE_NOISE = 0.1, 0.15
CAPTIONS = (1, 2, 3, 4, 5)
MENTIONED, CAPTION_NOISE, MISMATCHED = 0.7, 0.5, 0.1
PRIVATE_SHARE = 0.5
"""Of a latent's variance."""
HELD_OUT = 2000
"""Images of `val`, and of `test`."""
BLOCK = 8192

Draw = np.random.Generator
Map = Callable[[np.ndarray], np.ndarray]


def stream(seed: int, name: str) -> Draw:
    """One a purpose, so that a larger training set begins with a smaller one."""
    return np.random.default_rng([seed, *hashlib.sha256(name.encode()).digest()[:8]])


def concepts(draw: Draw, centre_CK: np.ndarray, images: int) -> np.ndarray:
    """(I, K): a cluster's centre and what is the image's own; some nearly those of an image before."""
    weight_C = np.arange(1, CLUSTERS + 1) ** -ZIPF
    found_IK = np.empty((images, CONCEPT), np.float32)
    for start in range(0, images, BLOCK):
        count = min(BLOCK, images - start)
        cluster = draw.choice(CLUSTERS, size=BLOCK, p=weight_C / weight_C.sum())[:count]
        own = draw.standard_normal((BLOCK, CONCEPT))[:count]
        found_IK[start : start + count] = (
            CLUSTER_SHARE**0.5 * centre_CK[cluster] + (1 - CLUSTER_SHARE) ** 0.5 * own
        ) * DECAY_K
        is_copy = draw.random(BLOCK)[:count] < NEAR_DUPLICATES
        of = (draw.random(BLOCK)[:count] * np.arange(start, start + count)).astype(int)
        changed = draw.standard_normal((BLOCK, CONCEPT))[:count] * DECAY_K
        for row in np.flatnonzero(is_copy):  # one after the other: a copy may be copied
            found_IK[start + row] = found_IK[of[row]] + DUPLICATE_NOISE * changed[row]
    return found_IK


def network(draw: Draw, std_K: np.ndarray, outputs: int) -> Map:
    """A random network with one hidden layer, whose units saturate at places of their own, for inputs of `std_K`."""
    into_HK = draw.standard_normal((HIDDEN, len(std_K))) / np.sqrt((std_K**2).sum())
    out_WH = draw.standard_normal((outputs, HIDDEN)) / HIDDEN**0.5
    offset_H = draw.standard_normal(HIDDEN)
    return lambda rows_NK: np.tanh(GAIN * (rows_NK @ into_HK.T + offset_H)) @ out_WH.T


def spectrum(draw: Draw, width: int) -> np.ndarray:
    """(W, W): a rotation whose k-th axis is scaled by `k ** -0.5`."""
    axes, _ = np.linalg.qr(draw.standard_normal((width, width)))
    return (axes * np.arange(1, width + 1) ** -0.5).astype(np.float32)


def modality(seed: int, name: str, width: int) -> Callable[[np.ndarray, Draw], np.ndarray]:
    """The encoder of `name`: concepts (N, K) and a stream for what is private -> latents (N, W)."""
    draw = stream(seed, f"{name} encoder")
    shared, private = network(draw, DECAY_K, width), network(draw, np.ones(PRIVATE), width)
    scaled = spectrum(draw, width)
    mean = scaled @ draw.standard_normal(width).astype(np.float32)

    def encode(concept_NK: np.ndarray, own: Draw) -> np.ndarray:
        private_NU = own.standard_normal((len(concept_NK), PRIVATE), dtype=np.float32)
        whole = (1 - PRIVATE_SHARE) ** 0.5 * shared(concept_NK) + PRIVATE_SHARE**0.5 * private(private_NU)
        return whole @ scaled.T + mean

    return encode


def captions(draw: Draw, concept_IK: np.ndarray, counts_I: np.ndarray, mismatched: float) -> np.ndarray:
    """(T, K): what each caption says, which is not all, and not only what there is to see."""
    image_T = np.repeat(np.arange(len(concept_IK)), counts_I)
    found_TK = np.empty((len(image_T), CONCEPT), np.float32)
    for start in range(0, len(image_T), BLOCK):
        shown = image_T[start : start + BLOCK]
        is_wrong, where = (draw.random(BLOCK)[: len(shown)] for _ in range(2))
        shown = np.where(is_wrong < mismatched, (where * shown).astype(int), shown)
        is_mentioned = draw.random((BLOCK, CONCEPT))[: len(shown)] < MENTIONED
        noise = draw.standard_normal((BLOCK, CONCEPT))[: len(shown)] * DECAY_K
        found_TK[start : start + BLOCK] = concept_IK[shown] * is_mentioned + CAPTION_NOISE * noise
    return found_TK


def synthetic_store(path: Path, pairs: int, seed: int = 0) -> Path:
    """Write a store with `pairs` training captions; the same images and captions lead every larger one of that seed."""
    counts_I = stream(seed, "captions of images").choice(CAPTIONS, size=pairs)
    images = int(np.searchsorted(np.cumsum(counts_I), pairs)) + 1
    counts_I = counts_I[:images].copy()
    counts_I[-1] -= counts_I.sum() - pairs
    centre_CK = stream(seed, "clusters").standard_normal((CLUSTERS, CONCEPT))
    image, text = modality(seed, "image", IMAGE_WIDTH), modality(seed, "text", TEXT_WIDTH)
    split, count, image_latents, text_latents = [], [], [], []
    for name, counts, mismatched in (
        ("train", counts_I, MISMATCHED),
        *((name, stream(seed, f"{name} counts").choice(CAPTIONS, size=HELD_OUT), 0.0) for name in ("val", "test")),
    ):
        concept_IK = concepts(stream(seed, f"{name} concepts"), centre_CK, len(counts))
        said_TK = captions(stream(seed, f"{name} captions"), concept_IK, counts, mismatched)
        image_latents.append(image(concept_IK, stream(seed, f"{name} images")))
        text_latent = text(said_TK, stream(seed, f"{name} texts"))
        text_latents.append(text_latent / np.linalg.norm(text_latent, axis=1, keepdims=True))
        split += [name] * len(counts)
        count += counts.tolist()
    return make_store(
        path,
        images=len(split),
        captions_per_image=count,
        splits=split,
        image_latent=np.concatenate(image_latents).astype(np.float32),
        text_latent=np.concatenate(text_latents).astype(np.float32),
        encoders="synthetic",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--pairs", type=int, default=100_000, help="captions of the training split")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(synthetic_store(given.store, given.pairs, given.seed))


if __name__ == "__main__":
    main()
