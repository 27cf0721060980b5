"""Fakes with a known answer: a latent is a function of the pair's id, so perfect recall is what must come out."""

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from alignvl_cli.artifacts import fingerprint, made_by
from alignvl_cli.datasets.dataset import Dataset, ImageSource, Item
from alignvl_cli.settings import StoreDtype
from alignvl_cli.store.reader import Store
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
    image_parts: Mapping[str, int] | None = None,
    text_parts: Mapping[str, int] | None = None,
) -> Path:
    """Write a real store in which every pair is found again; returns `path`.

    The image latent of item i is `concept(id)`, each of its captions' the same plus `noise` times a
    standard normal of the caption: with equal widths even untrained, identical projections recall
    everything. With another `text_dim` the text latent is the concept, cut or continued by a fixed map.

    `captions_per_image` is walked in a cycle (0 is an image without captions). `splits` maps names to
    shares, or names each image's split. `seed` changes all ids; `encoders` changes the encoder hash.
    `image_latent`, `text_latent` and `captions` replace what would be made; parts name its columns, by width.
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
    for encoder, parts in ((vision, image_parts), (text, text_parts)):
        if parts is not None:
            encoder["record"]["parts"] = [{"name": name, "width": width} for name, width in parts.items()]
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


def write_part(store: Store, path: Path, row_N: np.ndarray, *, ids: Sequence[str] | None = None) -> Path:
    """Write the images at `row_N` of a store, with their captions, as a store of its own, under other ids if wanted;
    returns `path`."""
    texts = [np.flatnonzero(store.text_image == row) for row in row_N]
    row_T = np.concatenate(texts)
    write_store(
        path,
        StoreRows(
            image_id=list(ids or [store.image_id[row] for row in row_N]),
            image_uri=[store.image_uri[row] for row in row_N],
            image_label=[store.image_label[row] for row in row_N],
            image_sha256=store.image_sha256[row_N],
            image_split=store.image_split[row_N],
            split_names=store.split_names,
            text_image=np.repeat(np.arange(len(row_N)), [len(mine) for mine in texts]),
            text_caption=[store.text_caption[row] for row in row_T],
            rejected=(),
        ),
        StoreAbout(
            vision=store.vision,
            text=store.text,
            encoder_hash=store.encoder_hash,
            dataset=store.dataset,
            made_by={**_made_by(), "counter": 0},
        ),
        [store.image_latent[row_N]],
        [store.text_latent[row_T]],
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


def make_dataset(
    folder: Path,
    *,
    images: int = 40,
    captions_per_image: Sequence[int] = (1, 2, 3),
    splits: Sequence[str] | None = None,
    repeat_image_every: int | None = None,
    repeat_caption_every: int | None = None,
) -> Dataset:
    """Real picture files, each of one colour, whose captions begin with that colour: the fake encoders' concept.

    With `repeat_image_every` n, every n-th item has the bytes of the first; with `repeat_caption_every` n,
    every n-th item's first caption is the first item's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for i, count in enumerate(islice(cycle(captions_per_image), images)):
        look = 0 if repeat_image_every and i % repeat_image_every == 0 else i
        colour = (look % 256, look // 256, 77)
        path = folder / f"{i:05d}.png"
        scratch = path.with_suffix(f".{os.getpid()}.tmp")  # another process may be making, or reading, the same
        Image.new("RGB", (12, 10), colour).save(scratch, "PNG")
        scratch.replace(path)
        name = "-".join(map(str, colour))
        captions = [f"{name} caption {n} of item {i}{' and more' * (i % 7)}" for n in range(count)]
        if captions and items and repeat_caption_every and i % repeat_caption_every == 0:
            captions[0] = items[0].captions[0]
        items.append(
            Item(
                id=f"item{i}",
                uri=path.name,
                captions=tuple(captions),
                split=splits[i] if splits else None,
                label="",
                source=ImageSource(path),
            )
        )
    return Dataset(name="fake", record={"format": "fake", "images": images}, items=items)


@dataclass(frozen=True)
class CornerColour:
    """Picklable preprocessing: a 2 x 2 picture, as a worker process gets it."""

    def __call__(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image.resize((2, 2), Image.Resampling.NEAREST), dtype=np.float32).transpose(2, 0, 1)


@dataclass
class FakeVision:
    """Encodes a picture of one colour as the concept of "r-g-b", plus a trace of its batch.

    The trace (1e-4 of the batch's mean colour) makes latents depend on which pictures share a batch, as
    rounding does in real encoders: equal bits then mean equal batches.
    """

    dim: int = 16
    name: str = "fake-vision"
    delay: float = 0.0
    """Seconds a batch."""
    poison: str | None = None
    """The concept whose latent comes out as NaN."""
    journal: Path | None = None
    """Gets a line a picture encoded."""
    batches: list[int] = field(default_factory=list)
    """Size of each batch encoded."""
    preprocess: CornerColour = field(default_factory=CornerColour)

    def __post_init__(self) -> None:
        self.record = {"model": self.name, "dim": self.dim}
        self.about = {"id": self.name, "precision": "fp32", "device": "cpu"}
        self.width = self.dim

    def prepare(self, image: Image.Image) -> np.ndarray:
        return self.preprocess(image)

    def encode(self, pixels_BCHW: np.ndarray) -> np.ndarray:
        time.sleep(self.delay)
        names = ["-".join(str(int(value)) for value in pixels[:, 0, 0]) for pixels in pixels_BCHW]
        self.batches.append(len(names))
        return _encode(names, self.dim, pixels_BCHW.mean(), self.poison, self.journal)


@dataclass
class FakeText:
    """Encodes a caption as the concept of its first word, plus a trace of its batch."""

    dim: int = 16
    name: str = "fake-text"
    max_length: int = 12
    delay: float = 0.0
    poison: str | None = None
    journal: Path | None = None
    batches: list[list[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.record = {"model": self.name, "dim": self.dim}
        self.about = {"id": self.name, "precision": "fp32", "device": "cpu"}
        self.width = self.dim

    def lengths(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        time.sleep(self.delay)
        self.batches.append(list(texts))
        trace = np.mean([len(text) for text in texts])
        return _encode([text.split()[0] for text in texts], self.dim, trace, self.poison, self.journal)


def _encode(names: list[str], dim: int, trace: float, poison: str | None, journal: Path | None) -> np.ndarray:
    if journal is not None:
        with open(journal, "a") as stream:
            stream.writelines(f"{name}\n" for name in names)
    latents = np.stack([concept(name, dim) for name in names]) + np.float32(1e-4 * trace)
    if poison in names:
        latents[names.index(poison)] = np.nan
    return latents
