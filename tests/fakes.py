"""Fakes with a known answer: a latent is a function of the pair's id, so perfect recall is what must come out."""

import hashlib
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from alignvl_cli.config import StoreDtype
from alignvl_cli.provenance import fingerprint, made_by
from alignvl_cli.store.schema import Rejected
from alignvl_cli.store.writer import StoreAbout, StoreRows, write_store

SPLITS = {"train": 0.6, "val": 0.2, "test": 0.2}


def concept(name: str, dim: int) -> np.ndarray:
    """The latent (dim,) float32 of a name: standard normal, the same on every machine, near-orthogonal to others'."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(dim).astype(np.float32)


def make_store(
    path: Path,
    *,
    images: int = 60,
    captions_per_image: Sequence[int] = (1, 2, 3, 4, 5, 6, 7),
    dim: int = 32,
    text_dim: int | None = None,
    seed: int = 0,
    splits: dict[str, float] | Sequence[str] = SPLITS,
    noise: float = 0.05,
    encoders: str = "fake",
    dtype: StoreDtype = StoreDtype.float32,
    image_latent: np.ndarray | None = None,
    text_latent: np.ndarray | None = None,
    captions: Sequence[str] | None = None,
    rejected: Sequence[Rejected] = (),
    counter: int = 0,
) -> Path:
    """Write a real store in which every pair is found again; returns `path`.

    The image latent of item i is `concept(id)`, each of its captions' the same plus `noise` times a
    standard normal of the caption: with equal widths even untrained, identical projections recall
    everything. With another `text_dim` the text latent is the concept, cut or continued by a fixed map.

    `captions_per_image` is walked in a cycle (0 is an image without captions). `splits` maps names to
    shares, or names each image's split. `seed` changes all ids; `encoders` changes the encoder hash.
    `image_latent`, `text_latent` and `captions` replace what would be made.
    """
    ids = [f"s{seed}-item{i:05d}" for i in range(images)]
    counts = list(islice(cycle(captions_per_image), images))
    text_image = np.repeat(np.arange(images), counts)
    if captions is None:
        captions = [f"caption {n} of {ids[i]}" for i in range(images) for n in range(counts[i])]
    if image_latent is None:
        image_latent = np.stack([concept(name, dim) for name in ids])
    if text_latent is None:
        through = np.eye(dim, dtype=np.float32) if text_dim in (None, dim) else _fixed_map(dim, text_dim or dim)
        clean = np.stack([concept(name, dim) for name in ids])[text_image] @ through
        text_latent = clean + noise * np.stack([concept(caption, clean.shape[1]) for caption in captions])
    split_names, image_split = _split_codes(splits, images)
    vision = {"record": {"model": f"{encoders}-vision", "width": image_latent.shape[1]}, "about": {"id": encoders}}
    text = {"record": {"model": f"{encoders}-text", "width": text_latent.shape[1]}, "about": {"id": encoders}}
    write_store(
        path,
        StoreRows(
            image_id=ids,
            image_uri=[f"{name}.png" for name in ids],
            image_label=[f"label {i % 5}" for i in range(images)],
            image_sha256=np.stack([np.frombuffer(hashlib.sha256(name.encode()).digest(), np.uint8) for name in ids]),
            image_split=image_split,
            split_names=split_names,
            text_image=text_image,
            text_caption=captions,
            rejected=rejected,
        ),
        StoreAbout(
            vision=vision,
            text=text,
            encoder_hash=fingerprint([vision["record"], text["record"]]),
            dataset={"format": "fake", "seed": seed},
            made_by={**_made_by(), "counter": counter},
        ),
        [image_latent],
        [text_latent],
        dtype=dtype,
    )
    return path


def _made_by() -> dict[str, Any]:
    return made_by("extract", {})


def _fixed_map(dim: int, text_dim: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((dim, text_dim)).astype(np.float32) / np.sqrt(np.float32(dim))


def _split_codes(splits: dict[str, float] | Sequence[str], images: int) -> tuple[list[str], list[int]]:
    """Names and codes: the shares in order of the rows, the last split taking what is left."""
    if not isinstance(splits, dict):
        names = list(dict.fromkeys([*SPLITS, *splits]))
        return names, [names.index(name) for name in splits]
    names = list(dict.fromkeys([*SPLITS, *splits]))
    borders = np.cumsum([round(share * images) for share in splits.values()][:-1])
    which = np.searchsorted(borders, np.arange(images), side="right")
    return names, [names.index(list(splits)[part]) for part in which]
