"""Load one frozen tower of any transformers model, and refuse one whose weights are not all there."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING, MODEL_MAPPING

from alignvl_cli.encoders.folders import NO_TRUST, ModelFolder, Side, is_own_code, reason_of, require_code_here
from alignvl_cli.encoders.quiet import quiet
from alignvl_cli.encoders.records import computation_record, weights_sha256
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.settings import Pooling, Precision, Trust

SUB_CONFIG = {Side.vision: "vision_config", Side.text: "text_config"}
"""Where a two-tower model keeps each tower's configuration."""

MAIN_INPUT = {Side.vision: "pixel_values", Side.text: "input_ids"}

TOWERS: dict[str, str] = {
    "siglip_text_model": "SiglipTextModel",
    "siglip2_text_model": "Siglip2TextModel",
    "metaclip_2_vision_model": "MetaClip2VisionModel",
    "metaclip_2_text_model": "MetaClip2TextModel",
}
"""Towers that transformers' automatic classes do not know, by their `model_type`."""

PROJECTED: dict[str, str] = {
    "clip_vision_model": "CLIPVisionModelWithProjection",
    "clip_text_model": "CLIPTextModelWithProjection",
    "metaclip_2_vision_model": "MetaClip2VisionModelWithProjection",
    "metaclip_2_text_model": "MetaClip2TextModelWithProjection",
}
"""Towers that come with their map into the shared space."""

LOADING = (
    OSError,
    ValueError,
    TypeError,
    RuntimeError,
    ImportError,
    LookupError,
    AttributeError,
    EOFError,
    SafetensorError,
    StrictDataclassError,
    UnpicklingError,
)
"""What transformers raises on files that do not fit together."""

DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16}


@dataclass(frozen=True, eq=False, slots=True)
class Tower:
    """A loaded model in float32 on the CPU, in evaluation mode, with what its record says of it."""

    model: nn.Module
    config: Any
    has_pooler: bool
    """Whether a pooler's weights, if the model has any, came from the files."""
    weights: str

    @property
    def model_type(self) -> str:
        return self.config.model_type

    @property
    def record(self) -> dict[str, Any]:
        return {
            "class": type(self.model).__name__,
            "weights": self.weights,
            "config": computation_record(self.config),
        }


def load_tower(found: ModelFolder, side: Side, asked: Pooling | None, trust: Trust = NO_TRUST) -> Tower:
    """The tower for `side`: of a two-tower model that tower alone, with its projection if that is asked for.

    Unless trusted, weights are read from safetensors alone and no code of the model's own is run. DataError when they
    cannot be loaded or tensors are missing; UsageError when this is a model of the other side.
    """
    config = tower_config(found, side, trust)
    try:
        with quiet(), torch.random.fork_rng(devices=[]):  # transformers draws numbers for heads it does not find
            model, info = _model_class(found, config, side, asked).from_pretrained(
                found.path,
                config=config,
                dtype=torch.float32,
                use_safetensors=None if trust.pickle else True,
                weights_only=True,
                trust_remote_code=trust.remote_code,
                local_files_only=True,
                output_loading_info=True,
            )
    except LOADING as problem:
        raise DataError(f"{found.spec}: transformers cannot load it: {reason_of(problem)}") from problem
    if getattr(model, "main_input_name", None) != MAIN_INPUT[side]:
        raise UsageError(f"{found.spec} ({type(model).__name__}) is not a {side.value} model")
    missing = set(info["missing_keys"])
    lost = sorted(name for name in missing if "pooler" not in name.split("."))
    if lost:
        raise DataError(
            f"{found.spec}: its weights lack {len(lost)} tensors of {type(model).__name__} ({lost[0]}, ...); "
            "they would be random numbers; fetch the model again"
        )
    model.eval().requires_grad_(False)
    return Tower(model, config, has_pooler=not missing, weights=weights_sha256(model, unused=missing))


CANNOT_RUN = (ValueError, RuntimeError, TypeError, LookupError, AttributeError)
"""What a model raises on input, or on an argument, that is not for it."""


@contextmanager
def probed(found: ModelFolder, tower: Tower) -> Iterator[None]:
    """Around the first forward pass: a model that cannot take its own input is the user's to replace (DataError)."""
    try:
        with torch.inference_mode(), quiet():
            yield
    except CANNOT_RUN as problem:
        raise DataError(
            f"{found.spec}: {type(tower.model).__name__} does not take what its own folder prepares for it: "
            f"{reason_of(problem)}"
        ) from problem


def require_steady(found: ModelFolder, tower: Tower, hidden: Tensor) -> None:
    """Refuse a model that gives equal inputs (the first two rows of `hidden`) different vectors, as ViT-MAE does, or
    vectors of numbers that are none."""
    if not torch.isfinite(hidden).all():
        raise DataError(
            f"{found.spec}: {type(tower.model).__name__} gives NaN or infinity: its weights or the settings of its "
            "folder are damaged; fetch the model again"
        )
    if not torch.allclose(hidden[0], hidden[1], rtol=1e-3, atol=1e-3):
        raise UsageError(f"{found.spec}: {type(tower.model).__name__} draws random numbers; choose another model")


def tower_config(found: ModelFolder, side: Side, trust: Trust = NO_TRUST) -> Any:
    """The resolved configuration of the tower for `side`. DataError when there is none that can be read."""
    if trust.remote_code:
        require_code_here(found)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(found.path, trust_remote_code=trust.remote_code, local_files_only=True)
    except LOADING as problem:
        raise DataError(f"{found.spec}: transformers cannot load it: {reason_of(problem)}") from problem
    tower = getattr(config, SUB_CONFIG[side], None)
    if tower is None:
        return config
    if hasattr(config, "projection_dim"):
        tower.projection_dim = config.projection_dim  # the towers' own copy is a default in older files
    return tower


def _model_class(found: ModelFolder, config: Any, side: Side, asked: Pooling | None) -> Any:
    kind = config.model_type
    if is_own_code(config):
        return AutoModel
    if asked is Pooling.projection and kind in PROJECTED:  # elsewhere `choose_pooling` refuses, naming what there is
        return getattr(transformers, PROJECTED[kind])
    if kind in TOWERS:
        return getattr(transformers, TOWERS[kind])
    if side is Side.text and type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING:
        return MODEL_FOR_TEXT_ENCODING_MAPPING[type(config)]  # of T5 and its like the encoder alone
    if getattr(config, "is_encoder_decoder", False):
        raise UsageError(f"{found.spec}: model type {kind} has a decoder that needs input of its own; choose another")
    if type(config) not in MODEL_MAPPING:
        raise UsageError(f"{found.spec}: transformers has no plain encoder for model type {kind}; choose another model")
    return AutoModel
