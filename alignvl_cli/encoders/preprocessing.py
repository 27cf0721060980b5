"""The model's own image processor: its settings for the record, and the same arithmetic as a light picklable object."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoImageProcessor, ConvNextImageProcessorPil, EfficientNetImageProcessorPil
from transformers.image_processing_backends import PilBackend

from alignvl_cli.artifacts import canonical_json, read_json
from alignvl_cli.encoders.folders import NO_TRUST, TORCHVISION, ModelFolder, is_own_code, reason_of
from alignvl_cli.encoders.pixels import Preprocess, ProcessorCall, ResizeCrop
from alignvl_cli.encoders.quiet import quiet
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.settings import Trust

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")

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
"""Processor settings that change no pixel."""

FORMAT = (
    *("image_processor_type", "transformers_version", "model_input_names", "image_seq_length", "num_channels"),
    *("use_fast", "backend", "do_reduce_labels", "reduce_labels"),
)
"""Keys of a processor's file that say what it is, and change no pixel either."""

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
    """The folder's image processor with the PIL backend, which needs no torchvision and is the same everywhere.

    DataError when it cannot be loaded, or its file has settings that it would pass over.
    """
    try:
        with quiet():
            processor = AutoImageProcessor.from_pretrained(
                found.path, backend="pil", trust_remote_code=trust.remote_code, local_files_only=True
            )
    except ImportError as problem:
        raise DataError(
            f"{found.spec}: its image processor needs a library that is not here, most likely torchvision; "
            f"{TORCHVISION}"
        ) from problem
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as problem:
        raise DataError(f"{found.spec}: its image processor cannot be loaded: {reason_of(problem)}") from problem
    _require_read(found, processor)
    return processor


def _require_read(found: ModelFolder, processor: Any) -> None:
    """DataError for a setting of the processor's file that its class does not read: the pixels would not be those that
    the file describes."""
    if is_own_code(processor) or not isinstance(processor, PilBackend):
        return
    file = next((one for one in PROCESSOR_FILES if (found.path / one).is_file()), PROCESSOR_FILES[0])
    stated = read_json(found.path / file, "image processor")
    stated = stated.get("image_processor", stated)
    read = {*processor.valid_kwargs.__annotations__, *HOUSEKEEPING, *FORMAT}
    passed_over = sorted(
        key
        for key, value in stated.items()
        if key not in read
        and not key.startswith("_")
        and not hasattr(type(processor), key)
        and value not in (None, False)
    )
    if passed_over:
        raise DataError(
            f"{found.spec}: {', '.join(passed_over)} in its {file} is nothing that its image processor "
            f"({type(processor).__name__}) reads, so pictures would not be prepared as the file says; name the right "
            "image_processor_type there, or take the setting out"
        )


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
    if not getattr(processor, "do_resize", None) or getattr(processor, "do_pad", None):
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
    made = ResizeCrop(size, crop, Image.Resampling(processor.resample), table.reshape(3, 256).astype(np.float32))
    return made if _is_same(made, processor) else None


def _is_same(made: ResizeCrop, processor: Any) -> bool:
    """Whether a picture of noise comes out the same: a setting that `made` knows nothing of would show."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
    value_3HW = np.stack([table[made(noise)[..., row]] for row, table in enumerate(made.value_C256)])
    return np.array_equal(value_3HW, ProcessorCall(processor)(noise))


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
