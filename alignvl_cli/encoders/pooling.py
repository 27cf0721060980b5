"""Which vector of an encoder is the latent: the ways to pool, and which one a model family is meant to be read with."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from alignvl_cli.encoders.folders import Side
from alignvl_cli.errors import UsageError
from alignvl_cli.settings import Pooling

# B items, L tokens, D width, S pixels of a feature map. Everything here is float32 in and out.

DEFAULTS: dict[str, Pooling] = {
    # Trained by the class token; DINOv2's pooler is that token again, ViT's and DeiT's a head that files often lack.
    "dinov2": Pooling.cls,
    "dinov2_with_registers": Pooling.cls,
    "dinov3_vit": Pooling.cls,
    "vit": Pooling.cls,
    "deit": Pooling.cls,
    # Two-tower models: the tower's own vector, after its last norm. The projection is a linear map of it, which an
    # adapter can learn, while nothing undoes it. SigLIP has no projection: its pooler is the trained vector.
    "clip_vision_model": Pooling.pooler,
    "clip_text_model": Pooling.pooler,
    "metaclip_2_vision_model": Pooling.pooler,
    "metaclip_2_text_model": Pooling.pooler,
    "siglip_vision_model": Pooling.pooler,
    "siglip_text_model": Pooling.pooler,
    "siglip2_text_model": Pooling.pooler,
    # Without a class token: the average over places that their classifiers were trained on.
    "efficientnet": Pooling.pooler,
    "convnext": Pooling.pooler,
    "convnextv2": Pooling.pooler,
    "resnet": Pooling.pooler,
    "regnet": Pooling.pooler,
    "swin": Pooling.pooler,
    "swinv2": Pooling.pooler,
}
"""By `model_type`. BERT and its like are not here: BGE wants cls, MiniLM and E5 want mean, and only their files say."""

FLAGS = {Side.vision: "--image-pooling", Side.text: "--text-pooling"}


def choose_pooling(
    side: Side,
    spec: str,
    *,
    asked: Pooling | None,
    stated: Pooling | None,
    why_not_stated: str,
    model_type: str,
    able: Collection[Pooling],
) -> tuple[Pooling, str]:
    """The pooling and where it comes from: `asked` for, `stated` by the model's files, or the table.

    UsageError when none of them says, or the model cannot give it; `able` is what it can give.
    """
    candidates = {"asked": asked, "modules": stated, "table": None if why_not_stated else DEFAULTS.get(model_type)}
    choices = ", ".join(pooling.value for pooling in Pooling if pooling in able)
    for source, pooling in candidates.items():
        if pooling is None:
            continue
        if pooling not in able:
            raise UsageError(f"{spec} cannot give {FLAGS[side]} {pooling.value}; it can give: {choices}")
        return pooling, source
    why = why_not_stated or f"nothing says how to read its vectors (model type {model_type})"
    raise UsageError(f"{spec}: {why}; say which with {FLAGS[side]}; it can give: {choices}")


# Pictures: the tokens of a transformer, a class token and registers first, or the feature map of a convolutional net.


def _patches(output: Any, prefix: int) -> Tensor:
    """Mean over places, without class token and registers. (B, D)"""
    hidden = output.last_hidden_state.float()
    return hidden.flatten(2).mean(dim=2) if hidden.ndim == 4 else hidden[:, prefix:].mean(dim=1)


def _class_token(output: Any, prefix: int) -> Tensor:
    return output.last_hidden_state[:, 0].float()


IMAGE_VECTORS: dict[Pooling, Callable[[Any, int], Tensor]] = {
    Pooling.cls: _class_token,
    Pooling.mean: _patches,
    Pooling.cls_mean: lambda output, prefix: torch.cat([_class_token(output, prefix), _patches(output, prefix)], dim=1),
    Pooling.pooler: lambda output, prefix: output.pooler_output.float().flatten(1),
    Pooling.projection: lambda output, prefix: output.image_embeds.float(),
}
"""From a vision model's output and the number of tokens before the patches to (B, D)."""


# Captions: padded on the right, so the mask is ones and then zeros.


def _mean(output: Any, mask_BL: Tensor) -> Tensor:
    """Mean over the caption's tokens, special ones included, as sentence-transformers has it. (B, D)"""
    weight_BL1 = mask_BL.unsqueeze(-1).float()
    return (output.last_hidden_state.float() * weight_BL1).sum(dim=1) / weight_BL1.sum(dim=1)


def _first(output: Any, mask_BL: Tensor) -> Tensor:
    return output.last_hidden_state[:, 0].float()


def _last(output: Any, mask_BL: Tensor) -> Tensor:
    rows_B = torch.arange(len(mask_BL), device=mask_BL.device)
    return output.last_hidden_state[rows_B, mask_BL.sum(dim=1) - 1].float()


def inner_pooling(side: Side, pooling: Pooling, model_type: str, prefix: int | None) -> Pooling | None:
    """How the layers below an encoder are pooled that is itself pooled so: heads belong to the last layer, and under
    them lies a token or a mean. `prefix` as `IMAGE_VECTORS` takes it. None where nothing tells."""
    if pooling not in (Pooling.pooler, Pooling.projection):
        return pooling
    if side is Side.text:
        return Pooling.last if model_type in DEFAULTS else Pooling.cls
    return None if prefix is None else Pooling.cls if prefix else Pooling.mean


OF_ONE_TOKEN = (Pooling.cls, Pooling.last)
"""Poolings that read one token, the same in every input until a layer has looked around."""

TEXT_VECTORS: dict[Pooling, Callable[[Any, Tensor], Tensor]] = {
    Pooling.cls: _first,
    Pooling.mean: _mean,
    Pooling.last: _last,
    Pooling.cls_mean: lambda output, mask_BL: torch.cat([_first(output, mask_BL), _mean(output, mask_BL)], dim=1),
    Pooling.pooler: lambda output, mask_BL: output.pooler_output.float(),
    Pooling.projection: lambda output, mask_BL: output.text_embeds.float(),
}
"""From a text model's output and its attention mask (B, L) to (B, D)."""
