"""From an RGB picture to what a vision tower's values are made of: transformers' image processor without its detours.

Objects here are sent to worker processes, so `ResizeCrop` needs Pillow and numpy alone.

The model's own image processor: its settings for the record, and the same arithmetic as a light picklable object.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image
from transformers import AutoImageProcessor, ConvNextImageProcessorPil, EfficientNetImageProcessorPil
from transformers.image_processing_backends import PilBackend

from alignvl_cli.artifacts import canonical_json
from alignvl_cli.encoders.decoding import UnreadableImage
from alignvl_cli.encoders.folders import NO_TRUST, ModelFolder, reason_of
from alignvl_cli.encoders.quiet import quiet
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.settings import Trust

MOST_RESIZED = 1 << 24
"""Pixels (48 MiB) of a resized picture; beyond, only what the centre crop keeps of it is made. A 1 x 3,000 strip would
become one of 224 x 672,000."""
WIDEST_FILTER = 3
"""Pixels that a resampling filter (Lanczos) reaches to each side, of the source or of the result, the coarser."""
LONGEST_RATIO = 200
"""Image processors of other makes resize as they like: a strip of 1 x 80,000,000 could take gigabytes there."""


class Preprocess(Protocol):
    """Picklable; RGB picture in, (H, W, 3) uint8 out, or (3, H, W) float32 where the processor has steps of its own; H
    and W the same for every picture. UnreadableImage for one that those steps cannot take."""

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
        pixels = self.processor(images=image, return_tensors="np")["pixel_values"][0]
        return np.ascontiguousarray(pixels, dtype=np.float32)


HOUSEKEEPING = {
    "processor_class",
    "feature_extractor_type",
    "auto_map",
    "data_format",
    "input_data_format",
    "return_tensors",
    "disable_grouping",
    "device",
    "do_convert_rgb",  # always RGB already
    "default_to_square",  # already spent on `size`
}
"""Processor attributes that change no pixel."""

SWITCHED = {
    "do_resize": ("size", "resample"),
    "do_center_crop": ("crop_size",),
    "do_rescale": ("rescale_factor",),
    "do_normalize": ("image_mean", "image_std"),
    "do_pad": ("pad_size",),
}
"""Settings that mean nothing while their switch is off."""

UNTOUCHED = ("preprocess", "process_image", "center_crop", "_prepare_image_like_inputs")
"""Steps that are transformers' plain ones in every processor which is known to be a resize and a crop."""
PROBES = (Image.new("RGB", (96, 64), "white"), Image.new("RGB", (64, 96), "white"))
"""A wide and a tall picture: what they are turned into must not differ in shape."""


def load_processor(found: ModelFolder, trust: Trust = NO_TRUST) -> Any:
    """The folder's image processor with the PIL backend, which needs no torchvision and is the same everywhere."""
    try:
        with quiet():
            return AutoImageProcessor.from_pretrained(
                found.path, backend="pil", trust_remote_code=trust.remote_code, local_files_only=True
            )
    except ImportError as problem:
        raise DataError(
            f"{found.spec}: its image processor needs a library that is not here, most likely torchvision; "
            "run: pip install torchvision"
        ) from problem
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as problem:
        raise DataError(f"{found.spec}: its image processor cannot be loaded: {reason_of(problem)}") from problem


def processor_record(processor: Any) -> dict[str, Any]:
    """The settings that decide a pixel, under the class name that the processor's file states."""
    settings = {key: value for key, value in processor.to_dict().items() if value is not None}
    off = {key for switch, keys in SWITCHED.items() if not settings.get(switch) for key in (switch, *keys)}
    kept = {key: value for key, value in settings.items() if key not in HOUSEKEEPING | off and not key.startswith("_")}
    return json.loads(canonical_json(kept))  # tuples become lists, as they will be once stored


def preprocess_of(processor: Any, spec: str) -> Preprocess:
    """What worker processes run on each picture: plain Pillow and a table where that is exactly the same.

    UsageError when the model takes something else than one (3, H, W) array of a fixed size, DataError when the
    settings of its folder cannot be carried out.
    """
    try:
        with quiet():
            preprocess = _resize_crop(processor) or ProcessorCall(processor)
            shapes = {preprocess(probe).shape for probe in PROBES}
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError) as problem:
        raise DataError(
            f"{spec}: its image processor ({type(processor).__name__}) cannot prepare a picture: {reason_of(problem)}; "
            "put its preprocessor_config.json right, or fetch the model again"
        ) from problem
    colours = 0 if preprocess.value_C256 is None else -1
    if len(shapes) > 1 or len(shape := shapes.pop()) != 3 or shape[colours] != 3:
        raise UsageError(
            f"{spec}: its image processor ({type(processor).__name__}) does not give one (3, H, W) array of a fixed "
            "size for each picture, which alignvl needs; choose another vision model"
        )
    return preprocess


def _resize_crop(processor: Any) -> ResizeCrop | None:
    """The processor as a ResizeCrop, or None when it does anything besides."""
    if not processor.do_resize or getattr(processor, "do_pad", None):
        return None
    size, crop = _geometry(processor)
    if size is None or isinstance(crop, int):
        return None
    shorter = (size, size) if isinstance(size, int) else size
    if crop is not None and (crop[0] > shorter[0] or crop[1] > shorter[1]):
        return None  # the processor pads
    ramp_16x16 = np.arange(256, dtype=np.uint8).reshape(16, 16)
    ramp = Image.fromarray(np.stack([ramp_16x16] * 3, axis=-1))
    table = processor(images=ramp, do_resize=False, do_center_crop=False, return_tensors="np")["pixel_values"][0]
    return ResizeCrop(size, crop, Image.Resampling(processor.resample), table.reshape(3, 256).astype(np.float32))


def _geometry(processor: Any) -> tuple[int | tuple[int, int] | None, int | tuple[int, int] | None]:
    """Size and crop as ResizeCrop has them; the size is None for a processor with steps of its own."""
    kind = type(processor)

    def has(steps: Sequence[str], makers: Sequence[type]) -> bool:
        return any(all(getattr(kind, step) is getattr(maker, step) for step in steps) for maker in makers)

    if not issubclass(kind, PilBackend) or not has(UNTOUCHED, [PilBackend]):
        return None, None
    size = _fixed_size(processor.size)
    crop = _fixed_size(processor.crop_size) if processor.do_center_crop else None
    if has(["resize"], [PilBackend]) and has(["_preprocess"], [PilBackend, EfficientNetImageProcessorPil]):
        return size, crop
    if has(["resize", "_preprocess"], [ConvNextImageProcessorPil]) and isinstance(size, int) and crop is None:
        # Of the crop's side; from 384 on the picture is squeezed into the square.
        return (int(size / processor.crop_pct), (size, size)) if size < 384 else ((size, size), None)
    return None, None


def _fixed_size(size: Any) -> int | tuple[int, int] | None:
    """(height, width), or the shorter side; None for sizes with an upper limit besides."""
    given = {key: int(value) for key, value in dict(size).items() if value}
    if given.keys() == {"height", "width"}:
        return given["height"], given["width"]
    return given["shortest_edge"] if given.keys() == {"shortest_edge"} else None
