"""The vision tower: pictures to latents."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from alignvl_cli.config import Pooling, Precision, Trust
from alignvl_cli.devices import choose_precision
from alignvl_cli.encoders.folders import NO_TRUST, Side, find_model, spec_of
from alignvl_cli.encoders.folding import folded
from alignvl_cli.encoders.pixels import Preprocess
from alignvl_cli.encoders.pooling import IMAGE_VECTORS, choose_pooling
from alignvl_cli.encoders.processors import PROBES, load_processor, preprocess_of, processor_record
from alignvl_cli.encoders.records import about, require_known, require_same
from alignvl_cli.encoders.towers import DTYPES, PROJECTED, Tower, load_tower, probed, require_steady
from alignvl_cli.encoders.trust import code_record
from alignvl_cli.encoders.values import Values, values_of


@dataclass(frozen=True, eq=False, slots=True)
class VisionEncoder:
    """A frozen vision model, its preprocessing and the vector that is read from it."""

    record: dict[str, Any]
    """What decides a latent."""
    about: dict[str, Any]
    """Recorded beside it, only warned about."""
    width: int
    device: str
    precision: Precision
    preprocess: Preprocess
    """Picklable, for worker processes: what `prepare` runs."""
    model: nn.Module
    pooling: Pooling
    prefix: int
    """Tokens before the patches: class token and registers."""
    values: Values
    """Prepared pictures to what the model reads."""

    def prepare(self, image: Image.Image) -> np.ndarray:
        """An RGB picture as `encode` takes it: (H, W, 3) uint8, or (3, H, W) float32 for a model whose image processor
        has steps of its own; H and W the same for every picture."""
        return self.preprocess(image)

    @torch.inference_mode()
    def encode(self, pictures_B: np.ndarray) -> np.ndarray:
        """Latents (B, D) float32 of prepared pictures, or of (B, 3, H, W) float32 values; raw: no norm is taken. They
        do not depend on the rest of the batch beyond rounding (in float32 about 1e-6 of their length)."""
        output = self.model(pixel_values=self.values(pictures_B))
        return IMAGE_VECTORS[self.pooling](output, self.prefix).cpu().numpy()


def load_vision(
    model_id: str, *, pooling: Pooling | None, device: str, precision: Precision, trust: Trust = NO_TRUST
) -> VisionEncoder:
    """The vision tower of a Hub id, `id@revision`, local folder or bundled name, on a torch device.

    Without `pooling` the table by model type decides. UsageError, DataError: see `find_model`, `load_tower`,
    `preprocess_of` and `choose_pooling`.
    """
    found = find_model(model_id, Side.vision, trust)
    tower = load_tower(found, Side.vision, pooling, trust)
    processor = load_processor(found, trust)
    preprocess = preprocess_of(processor, found.spec)
    pixels_2CHW = values_of(preprocess, "cpu", torch.float32)(np.stack([preprocess(PROBES[0])] * 2))
    with probed(found, tower):
        output = tower.model(pixel_values=pixels_2CHW)
        hidden = output.last_hidden_state
    require_steady(found, tower, hidden)
    prefix = _prefix_tokens(hidden, _patches(tower, pixels_2CHW))
    chosen, source = choose_pooling(
        Side.vision,
        found.spec,
        asked=pooling,
        stated=None,
        why_not_stated="",
        model_type=tower.model_type,
        able=_able(output, tower, prefix),
    )
    width = IMAGE_VECTORS[chosen](output, prefix or 0).shape[1]
    precision = choose_precision(precision, device)
    model = folded(tower.model, pixels_2CHW)
    layout = torch.contiguous_format if model is tower.model else torch.channels_last
    return VisionEncoder(
        record=tower.record
        | code_record(found, tower.model, processor)
        | {"processor": processor_record(processor), "pooling": chosen.value},
        about=about(found.id, found.commit, precision.value, device, source, trust),
        width=width,
        device=device,
        precision=precision,
        preprocess=preprocess,
        model=model.to(device, DTYPES[precision]),
        pooling=chosen,
        prefix=prefix or 0,
        values=values_of(preprocess, device, DTYPES[precision], layout),
    )


def reload_vision(
    record: Mapping[str, Any], about: Mapping[str, Any], device: str, precision: Precision, trust: Trust = NO_TRUST
) -> VisionEncoder:
    """The encoder that a store's `record` and `about` describe; MismatchError if it has changed since, or if
    the latents were imported. What the record trusts is not trusted again: `trust` is asked anew."""
    require_known(record, about)
    spec = spec_of(about["id"], about["commit"])
    encoder = load_vision(spec, pooling=Pooling(record["pooling"]), device=device, precision=precision, trust=trust)
    require_same(spec, record, encoder.record)
    return encoder


def _patches(tower: Tower, pixels_BCHW: Tensor) -> int | None:
    """Patches that a vision transformer cuts the picture into; None for other models."""
    patch = getattr(tower.config, "patch_size", None)
    height, width = pixels_BCHW.shape[2:]
    return (height // patch) * (width // patch) if isinstance(patch, int) else None


def _prefix_tokens(hidden: Tensor, patches: int | None) -> int | None:
    """Tokens before the patches; 0 for feature maps and for models that merge patches; None where nothing tells."""
    if hidden.ndim == 4:
        return 0
    return None if patches is None else max(hidden.shape[1] - patches, 0)


def _able(output: Any, tower: Tower, prefix: int | None) -> set[Pooling]:
    able = set()
    if prefix is not None:
        able.add(Pooling.mean)
    if prefix:
        able |= {Pooling.cls, Pooling.cls_mean}
    if getattr(output, "pooler_output", None) is not None and tower.has_pooler:
        able.add(Pooling.pooler)
    if tower.model_type in PROJECTED:
        able.add(Pooling.projection)
    return able
