"""From an RGB picture to the array a vision tower takes: what transformers' image processor does, without its detours.

Objects here are sent to worker processes, so `ResizeCrop` needs Pillow and numpy alone.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image


class Preprocess(Protocol):
    """Picklable; RGB picture in, (3, H, W) float32 out, H and W the same for every picture."""

    def __call__(self, image: Image.Image) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class ResizeCrop:
    """Resize, centre crop, then one table look-up for each channel: a uint8 pixel has only 256 values.

    Equal to the image processor bit for bit (the table is what the processor itself makes of a ramp).
    """

    size: int | tuple[int, int]
    """Pixels of the shorter side, or (height, width)."""
    crop: tuple[int, int] | None
    """(height, width) of the centre crop, at most the resized size."""
    resample: Image.Resampling
    value_C256: np.ndarray
    """Float32 that each pixel value becomes, by channel."""

    def __call__(self, image: Image.Image) -> np.ndarray:
        height, width = self._resized(image)
        pixel_HWC = np.asarray(image.resize((width, height), self.resample))
        if self.crop is not None:
            top, left = (height - self.crop[0]) // 2, (width - self.crop[1]) // 2
            pixel_HWC = pixel_HWC[top : top + self.crop[0], left : left + self.crop[1]]
        value_CHW = np.empty((3, *pixel_HWC.shape[:2]), np.float32)
        for channel, value_256 in enumerate(self.value_C256):
            np.take(value_256, pixel_HWC[:, :, channel], out=value_CHW[channel], mode="clip")
        return value_CHW

    def _resized(self, image: Image.Image) -> tuple[int, int]:
        """(height, width) after the resize; the longer side is rounded down, as transformers does."""
        if isinstance(self.size, tuple):
            return self.size
        width, height = image.size
        if width <= height:
            return int(self.size * height / width), self.size
        return self.size, int(self.size * width / height)


@dataclass(frozen=True, eq=False)
class ProcessorCall:
    """An image processor with steps of its own, called as it is."""

    processor: Any

    def __call__(self, image: Image.Image) -> np.ndarray:
        pixels = self.processor(images=image, return_tensors="np")["pixel_values"][0]
        return np.ascontiguousarray(pixels, dtype=np.float32)
