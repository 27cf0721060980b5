"""The vision encoder, from a model's folder to latents: preprocessed pictures become pixel values on the device, and go
through the model (batch norms folded into convolutions where that changes nothing) and its pooling."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers.models.efficientnet.modeling_efficientnet import EfficientNetSqueezeExciteLayer

from alignvl_cli.devices import choose_precision
from alignvl_cli.encoders.folders import NO_TRUST, Side, code_record, find_model, spec_of
from alignvl_cli.encoders.layers import Hidden, Layers, Pool, choose_layers, layers_on_record, run_probe
from alignvl_cli.encoders.pixels import Preprocess, Views, views_on_record, views_record
from alignvl_cli.encoders.pooling import IMAGE_VECTORS, OF_ONE_TOKEN, choose_pooling, inner_pooling
from alignvl_cli.encoders.preprocessing import PROBES, load_processor, preprocess_of, processor_record
from alignvl_cli.encoders.records import about, require_known, require_same
from alignvl_cli.encoders.towers import DTYPES, PROJECTED, Tower, load_tower, probed, require_steady
from alignvl_cli.settings import LAST_LAYER, Pooling, Precision, Trust

Values = Callable[[np.ndarray], Tensor]


def values_of(
    preprocess: Preprocess,
    device: torch.device | str,
    dtype: torch.dtype,
    layout: torch.memory_format = torch.contiguous_format,
) -> Values:
    """What turns a stack of prepared pictures into (B, 3, H, W) of `dtype` on `device`, in memory as `layout` says.

    uint8 (B, H, W, 3) travels as it is and is looked up there in the table, of which each entry is rounded to `dtype`
    once; float32 (B, 3, H, W) is values already.
    """
    table = None
    if preprocess.value_C256 is not None:
        table = torch.from_numpy(preprocess.value_C256).flatten().to(device, dtype)
    first_C = torch.arange(0, 768, 256, dtype=torch.int32, device=device)

    def values(pictures_B: np.ndarray) -> Tensor:
        owned_B = torch.from_numpy(np.require(pictures_B, requirements=["C", "W"]))  # torch warns of read-only memory
        if owned_B.dtype != torch.uint8:
            return owned_B.to(device, dtype).contiguous(memory_format=layout)
        assert table is not None
        pixel_BHWC = owned_B.to(device)
        entry = (pixel_BHWC.int() + first_C).flatten()
        value_BHWC = table.index_select(0, entry).view(pixel_BHWC.shape)
        return value_BHWC.permute(0, 3, 1, 2).contiguous(memory_format=layout)

    return values


SAME = 1e-4
"""Largest difference, as a share of the largest entry, that rounding may make."""


def folded(model: nn.Module, pixels_BCHW: Tensor) -> nn.Module:
    """`model` with each batch norm folded into the convolution before it, gates that are always open left out, and
    channels last: a third of the time on a CPU.

    Which convolution comes before is taken from the order of the modules, so the result is held to the
    original's output on `pixels_BCHW`; where that is another, or nothing can be folded, the original is returned.
    """
    fast = deepcopy(model)
    pairs = [
        (parent, one, other)
        for parent in fast.modules()
        for (one, convolution), (other, norm) in pairwise(parent.named_children())
        if isinstance(convolution, nn.Conv2d)
        and isinstance(norm, nn.BatchNorm2d)
        and convolution.out_channels == norm.num_features
    ]
    if not pairs:
        return model
    for parent, one, other in pairs:
        setattr(parent, one, fuse_conv_bn_eval(getattr(parent, one), getattr(parent, other)))
        setattr(parent, other, nn.Identity())
    for parent in fast.modules():
        for name, child in parent.named_children():
            if _is_open_gate(child):
                setattr(parent, name, nn.Identity())
    fast = fast.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.inference_mode():
        before, after = (net(pixel_values=pixels_BCHW).last_hidden_state for net in (model, fast))
    is_same = before.shape == after.shape and bool((before - after).abs().max() <= SAME * before.abs().max())
    return fast if is_same else model


def _is_open_gate(module: nn.Module) -> bool:
    """Whether `module` is a squeeze-excite layer that multiplies by one whatever it reads, as in EfficientNet-Lite."""
    if not isinstance(module, EfficientNetSqueezeExciteLayer):
        return False
    gate = module.expand
    return not gate.weight.any() and gate.bias is not None and bool((torch.sigmoid(gate.bias) == 1).all())


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
    layers: Layers
    """The parts of a latent."""
    pool: Pool
    """How a layer below the last is read."""
    views: int
    """Views of a picture that its latent is the mean of."""

    def prepare(self, image: Image.Image) -> np.ndarray:
        """An RGB picture as `encode` takes it: (H, W, 3) uint8, or (3, H, W) float32 for a model whose image processor
        has steps of its own; H and W the same for every picture. Several views are stacked: (V, ...)."""
        return self.preprocess(image)

    @torch.inference_mode()
    def encode(self, pictures_B: np.ndarray) -> np.ndarray:
        """Latents (B, D) float32 of prepared pictures, or of (B, 3, H, W) float32 values; raw, unless of several parts
        or views: each part is then of unit length. They do not depend on the rest of the batch beyond rounding (in
        float32 about 1e-6 of their length).

        Of several views, (B, V, ...), each goes through the model by itself: a forward has B pictures in any case.
        """
        if self.views == 1:
            return self._vectors(pictures_B).cpu().numpy()
        return self.layers.mean(torch.stack([*map(self._vectors, pictures_B.swapaxes(0, 1))])).cpu().numpy()

    def _vectors(self, pictures_B: np.ndarray) -> Tensor:
        """Latents (B, D) of one view of each picture."""
        output = self.model(pixel_values=self.values(pictures_B), **self.layers.arguments)
        last_BP = IMAGE_VECTORS[self.pooling](output, self.prefix)
        return self.layers.vectors(output, last_BP, self.pool)


def load_vision(
    model_id: str,
    *,
    pooling: Pooling | None,
    layers: str = LAST_LAYER,
    views: int = 1,
    device: str,
    precision: Precision,
    trust: Trust = NO_TRUST,
) -> VisionEncoder:
    """The vision tower of a Hub id, `id@revision`, local folder or bundled name, on a torch device.

    Without `pooling` the table by model type decides; `layers` as `--image-layers` has them, `views` as `--views`.
    UsageError, DataError: see `find_model`, `load_tower`, `preprocess_of`, `choose_pooling` and `choose_layers`.
    """
    found = find_model(model_id, Side.vision, trust)
    tower = load_tower(found, Side.vision, pooling, trust)
    processor = load_processor(found, trust)
    preprocess = preprocess_of(processor, found.spec)
    pixels_2CHW = values_of(preprocess, "cpu", torch.float32)(np.stack([preprocess(PROBES[0])] * 2))
    with probed(found, tower):
        output = run_probe(partial(tower.model, pixel_values=pixels_2CHW), layers)
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
    last_2P = IMAGE_VECTORS[chosen](output, prefix or 0)
    inner = inner_pooling(Side.vision, chosen, tower.model_type, prefix)
    pool = partial(_pooled, inner or chosen, prefix or 0)
    parts = choose_layers(
        Side.vision,
        found.spec,
        layers,
        output,
        last_2P,
        None if inner is None else pool,
        of_one_token=inner in OF_ONE_TOKEN,
    )
    precision = choose_precision(precision, device)
    model = folded(tower.model, pixels_2CHW)
    layout = torch.contiguous_format if model is tower.model else torch.channels_last
    return VisionEncoder(
        record=tower.record
        | code_record(found, tower.model, processor)
        | {"processor": processor_record(processor), "pooling": chosen.value}
        | parts.record
        | views_record(views),
        about=about(found.id, found.commit, precision.value, device, source, trust),
        width=sum(parts.widths) or last_2P.shape[1],
        device=device,
        precision=precision,
        preprocess=preprocess if views == 1 else Views(preprocess, views),
        model=model.to(device, DTYPES[precision]),
        pooling=chosen,
        prefix=prefix or 0,
        values=values_of(preprocess, device, DTYPES[precision], layout),
        layers=parts,
        pool=pool,
        views=views,
    )


def reload_vision(
    record: Mapping[str, Any], about: Mapping[str, Any], device: str, precision: Precision, trust: Trust = NO_TRUST
) -> VisionEncoder:
    """The encoder that a store's `record` and `about` describe; MismatchError if it has changed since, or if
    the latents were imported. What the record trusts is not trusted again: `trust` is asked anew."""
    require_known(record, about)
    spec = spec_of(about["id"], about["commit"])
    encoder = load_vision(
        spec,
        pooling=Pooling(record["pooling"]),
        layers=layers_on_record(record),
        views=views_on_record(record),
        device=device,
        precision=precision,
        trust=trust,
    )
    require_same(spec, record, encoder.record)
    return encoder


def _pooled(pooling: Pooling, prefix: int, state: Tensor) -> Tensor:
    """A layer's hidden state as vectors (B, P)."""
    return IMAGE_VECTORS[pooling](Hidden(state), prefix)


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
