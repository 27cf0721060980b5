"""Preprocessing of an RGB picture for a vision encoder (resize, crop), as worker processes do it.

A plain resize and crop needs Pillow and numpy alone, so that workers start in a fraction of a second.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps

from alignvl_cli.encoders.decoding import UnreadableImage

MOST_RESIZED = 1 << 24
"""Pixels (48 MiB) of a resized picture; beyond, only what the centre crop keeps of it is made. A 1 x 3,000 strip would
become one of 224 x 672,000."""
WIDEST_FILTER = 3
"""Pixels that a resampling filter (Lanczos) reaches to each side, of the source or of the result, the coarser."""
LONGEST_RATIO = 200
"""Image processors of other makes resize as they like: a strip of 1 x 80,000,000 could take gigabytes there."""


TENSORS_ALONE = ("TimmWrapperImageProcessor",)
"""Image processors that give torch tensors and nothing else."""


class Preprocess(Protocol):
    """Picklable; RGB picture in, (H, W, 3) uint8 out, or (3, H, W) float32 where the processor has steps of its own; H
    and W the same for every picture. Several views of a picture are stacked, (V, ...). UnreadableImage for a picture
    that those steps cannot take."""

    @property
    def value_C256(self) -> np.ndarray | None:
        """Float32 that each pixel value of a uint8 picture stands for, by channel; None where pictures are values."""
        ...

    def __call__(self, image: Image.Image) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class ResizeCrop:
    """Resize and centre crop. The rest is a look-up for each channel, done for whole batches where the model computes:
    a uint8 pixel has only 256 values, and a quarter of the bytes.

    Equal to the image processor bit for bit (the table is what the processor itself makes of a ramp); for a picture so
    long that the resized one would not fit in `MOST_RESIZED`, up to the rounding of the filter's positions.
    """

    size: int | tuple[int, int]
    """Pixels of the shorter side, or (height, width)."""
    crop: tuple[int, int] | None
    """(height, width) of the centre crop, at most the resized size."""
    resample: Image.Resampling
    value_C256: np.ndarray

    def __call__(self, image: Image.Image) -> np.ndarray:
        height, width = self._resized(image)
        if self.crop is None:
            return np.asarray(image.resize((width, height), self.resample))
        top, left = (height - self.crop[0]) // 2, (width - self.crop[1]) // 2
        window = (left, top, left + self.crop[1], top + self.crop[0])
        resized = resized_window if height * width > MOST_RESIZED else _resized_whole
        return np.asarray(resized(image, (width, height), self.resample, window))

    def _resized(self, image: Image.Image) -> tuple[int, int]:
        """(height, width) after the resize; the longer side is rounded down, as transformers does."""
        if isinstance(self.size, tuple):
            return self.size
        width, height = image.size
        if width <= height:
            return int(self.size * height / width), self.size
        return self.size, int(self.size * width / height)


def _resized_whole(
    image: Image.Image, size: tuple[int, int], resample: Image.Resampling, window: tuple[int, int, int, int]
) -> Image.Image:
    return image.resize(size, resample).crop(window)


def resized_window(
    image: Image.Image, size: tuple[int, int], resample: Image.Resampling, window: tuple[int, int, int, int]
) -> Image.Image:
    """What `window` (left, upper, right, lower) shows of `image` resized to `size` (width, height), without the rest.

    Cut out first is the stretch of the source that the window's pixels are made of, the filter's reach included, so
    every pixel is the same sum; memory follows the window, however long the picture is.
    """
    cut, box = [], []  # first and last source pixel, and where the window lies in them; by axis
    for axis in (0, 1):
        scale = image.size[axis] / size[axis]
        reach = WIDEST_FILTER * math.ceil(max(scale, 1))
        first = max(0, math.floor(window[axis] * scale) - reach)
        last = min(image.size[axis], math.ceil(window[axis + 2] * scale) + reach)
        cut.append((first, last))
        box.append((window[axis] * scale - first, min(window[axis + 2] * scale - first, last - first)))
    part = image.crop((cut[0][0], cut[1][0], cut[0][1], cut[1][1]))
    shown = window[2] - window[0], window[3] - window[1]
    return part.resize(shown, resample, box=(box[0][0], box[1][0], box[0][1], box[1][1]))


@dataclass(frozen=True, eq=False)
class ProcessorCall:
    """An image processor with steps of its own, called as it is."""

    processor: Any
    value_C256: None = None

    def __call__(self, image: Image.Image) -> np.ndarray:
        if max(image.size) > LONGEST_RATIO * min(image.size):
            raise UnreadableImage(
                f"{image.width} x {image.height} pixels: more than {LONGEST_RATIO} times as long as wide, which is not"
                " given to this model's image processor"
            )
        kind = "pt" if type(self.processor).__name__ in TENSORS_ALONE else "np"
        try:
            pixels = self.processor(images=image, return_tensors=kind)["pixel_values"][0]
        except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as problem:
            said = " ".join(str(problem).split())[:SHOWN]
            raise UnreadableImage(f"this model's image processor fails on it: {said}") from problem
        return np.ascontiguousarray(pixels, dtype=np.float32)


def _inner(image: Image.Image) -> Image.Image:
    """Without the outer 12 % at each side, rounded down, so that something of a picture of one pixel is left."""
    left, top = image.width * 12 // 100, image.height * 12 // 100
    return image.crop((left, top, image.width - left, image.height - top))


def _on_white(image: Image.Image) -> Image.Image:
    """In the middle of a ground 1.3 times as wide and as high, rounded up."""
    ground = Image.new("RGB", (-(-image.width * 13 // 10), -(-image.height * 13 // 10)), "white")
    ground.paste(image, ((ground.width - image.width) // 2, (ground.height - image.height) // 2))
    return ground


VIEWS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as it is": lambda image: image,
    "mirrored": ImageOps.mirror,
    "inner 76 %": _inner,
    "on white, 1.3 times as large": _on_white,
}
"""Name in an encoder's record -> the view; N views are the first N. A view that changes gets another name."""


SHOWN = 200
"""Letters of what a processor said."""


@dataclass(frozen=True, eq=False)
class Views:
    """The first `count` views of a picture, each prepared as the encoder prepares a picture: (V, ...)."""

    preprocess: Preprocess
    count: int

    @property
    def value_C256(self) -> np.ndarray | None:
        return self.preprocess.value_C256

    def __call__(self, image: Image.Image) -> np.ndarray:
        return np.stack([self.preprocess(view(image)) for view in [*VIEWS.values()][: self.count]])


def views_record(count: int) -> dict[str, list[str]]:
    """What the encoder's record says of `count` views; nothing where a picture is seen as it is."""
    return {"views": [*VIEWS][:count]} if count > 1 else {}


def views_on_record(record: Mapping[str, Any]) -> int:
    """How many views of a picture the latents of a recorded encoder are the mean of."""
    return len(record.get("views", [""]))
