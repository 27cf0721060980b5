"""A store against its encoders: a sample of its images and captions is encoded again and compared.

The gap of a row is 1 - cos(stored, fresh), from 0 (the same direction) to 2.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from alignvl_cli.datasets.formats import INSIDE_ARROW, picture_bytes
from alignvl_cli.encoders.decoding import UnreadableImage, decode_image
from alignvl_cli.settings import MAX_PIXELS, Precision, StoreDtype
from alignvl_cli.store.reader import Store

if TYPE_CHECKING:
    from alignvl_cli.encoders.text import TextEncoder
    from alignvl_cli.encoders.vision import VisionEncoder

BATCH = 32
TOLERANCE = {Precision.fp32: 1e-5, Precision.bf16: 2e-2}
"""The gap that rounding explains, by the precision of the forward pass: relative errors e make a gap of about e^2 / 2,
so 0.4 % in float32 (other batches, devices and library versions) and 20 % in bf16
(on the demo, bf16 against float32 leaves gaps up to 3e-3)."""
FLOAT16_TOLERANCE = 1e-5
"""Added for latents that are kept in float16."""
WIDEST = 2.0


@dataclass(frozen=True, slots=True)
class Gap:
    """The rows of one modality that were compared."""

    compared: int
    largest: float | None
    """None when nothing was compared."""
    worst: str | None
    """Id or caption of the row with the largest gap."""
    tolerance: float

    @property
    def is_within(self) -> bool:
        return self.largest is None or self.largest <= self.tolerance


@dataclass(frozen=True, slots=True)
class Verification:
    images: Gap
    captions: Gap
    gone: list[str]
    """Ids of sampled images whose uri leads to no picture."""
    inside_arrow: list[str]
    """Ids of sampled images in an Arrow file: those are a cache, and not looked into."""
    changed: list[str]
    """Ids of sampled images whose file has other bytes than those that were extracted."""
    unreadable: list[str]
    """Ids of sampled images whose file is the same and cannot be decoded here."""

    @property
    def is_within(self) -> bool:
        return self.images.is_within and self.captions.is_within


def verify_store(
    store: Store, vision: "VisionEncoder", text: "TextEncoder", sample: int, *, seed: int = 0
) -> Verification:
    """Encode `sample` images and as many captions (at most all there are), drawn by `seed`, with the store's encoders.

    Images that cannot be encoded again are named and have no part in the gap. DataError when the store is damaged.
    """
    rng = np.random.default_rng(seed)
    image_rows = _draw(rng, len(store.image_id), sample)
    text_rows = _draw(rng, len(store.text_image), sample)
    pictures = _Pictures(store, vision)
    image_gap = _compare(image_rows, pictures.latents, store.image_block)
    text_gap = _compare(
        text_rows, lambda rows: (rows, text.encode([store.text_caption[row] for row in rows])), store.text_block
    )
    return Verification(
        images=_gap(*image_gap, store.image_id, tolerance(vision.precision, store.image_latent.dtype)),
        captions=_gap(*text_gap, store.text_caption, tolerance(text.precision, store.text_latent.dtype)),
        gone=pictures.gone,
        inside_arrow=pictures.inside_arrow,
        changed=pictures.changed,
        unreadable=pictures.unreadable,
    )


def tolerance(precision: Precision, stored: np.dtype) -> float:
    """The largest gap that rounding explains."""
    return TOLERANCE[precision] + (FLOAT16_TOLERANCE if stored == StoreDtype.float16 else 0.0)


def cosine_gap(stored_ND: np.ndarray, fresh_ND: np.ndarray) -> np.ndarray:
    """1 - cos of each row, (N,) float64 in [0, 2]; 0 where both rows are zero, 2 where the cosine is not defined."""
    stored_ND, fresh_ND = stored_ND.astype(np.float64), fresh_ND.astype(np.float64)
    length_N = np.linalg.norm(stored_ND, axis=1) * np.linalg.norm(fresh_ND, axis=1)
    dot_N = np.einsum("nd,nd->n", stored_ND, fresh_ND)
    is_defined_N = np.isfinite(dot_N) & np.isfinite(length_N) & (length_N > 0)
    cosine_N = np.divide(dot_N, length_N, out=np.full(len(dot_N), 1 - WIDEST), where=is_defined_N)
    cosine_N[~stored_ND.any(axis=1) & ~fresh_ND.any(axis=1)] = 1
    return np.clip(1 - cosine_N, 0, WIDEST)


@dataclass
class _Pictures:
    """Encodes the pictures of rows, and remembers those that cannot be."""

    store: Store
    vision: "VisionEncoder"
    gone: list[str] = field(default_factory=list)
    inside_arrow: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def latents(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows whose pictures are as they were (n,), and their latents (n, D)."""
        prepared = [(row, self._pixels(row)) for row in rows.tolist()]
        kept = [(row, pixels) for row, pixels in prepared if pixels is not None]
        if not kept:
            return rows[:0], np.empty((0, self.vision.width), np.float32)
        return np.array([row for row, _ in kept]), self.vision.encode(np.stack([pixels for _, pixels in kept]))

    def _pixels(self, row: int) -> np.ndarray | None:
        identity = self.store.image_id[row]
        uri = self.store.image_uri[row]
        data = picture_bytes(uri)
        if data is None:
            (self.inside_arrow if INSIDE_ARROW.search(uri) else self.gone).append(identity)
            return None
        if hashlib.sha256(data).digest() != self.store.image_sha256[row].tobytes():
            self.changed.append(identity)
            return None
        try:
            settings = self.store.made_by.get("settings", {})
            return self.vision.prepare(decode_image(data, settings.get("max_pixels", MAX_PIXELS)))
        except UnreadableImage:
            self.unreadable.append(identity)
            return None


def _draw(rng: np.random.Generator, total: int, sample: int) -> np.ndarray:
    return np.sort(rng.choice(total, size=min(sample, total), replace=False))


def _compare(
    rows: np.ndarray,
    encode: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    stored: Callable[[np.ndarray], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """The rows that could be encoded and the gap of each; memory holds a batch at a time."""
    compared, gaps = [rows[:0]], [np.empty(0)]
    for start in range(0, len(rows), BATCH):
        kept, fresh_ND = encode(rows[start : start + BATCH])
        compared.append(kept)
        gaps.append(cosine_gap(stored(kept), fresh_ND))
    return np.concatenate(compared), np.concatenate(gaps)


def _gap(rows: np.ndarray, gaps: np.ndarray, names: Sequence[str], allowed: float) -> Gap:
    if not len(rows):
        return Gap(0, None, None, allowed)
    worst = int(np.argmax(gaps))
    return Gap(len(rows), float(gaps[worst]), names[int(rows[worst])], allowed)
