"""What a recipe, a size and silence stand for: the settings that they fill in where no flag or file says otherwise."""

import math
from dataclasses import dataclass
from typing import Any

from alignvl_cli.config import (
    AdapterKind,
    CorruptKind,
    Device,
    EsSchedule,
    EsTarget,
    Init,
    LatentNorm,
    Loss,
    Method,
    MixCoefficient,
    NoiseKind,
    NoiseMatch,
    NoisePosition,
    NoiseUnits,
    Precision,
    Recipe,
)

INGREDIENTS: dict[Recipe, dict[str, Any]] = {
    Recipe.alignvl: {"mix": True, "rp": True, "es": True},
    Recipe.fusemix: {"mix": True, "rp": False, "es": False},
    Recipe.clip: {"mix": False, "rp": False, "es": False},
    Recipe.sail: {"mix": False, "rp": False, "es": False},
    Recipe.best: {"mix": True, "rp": False, "es": False},
}
RECIPE_DETAILS: dict[Recipe, dict[str, Any]] = {
    Recipe.sail: {"adapter": AdapterKind.glu, "loss": Loss.sigmoid},
    Recipe.best: {"mask-duplicates": True},
}
"""What a recipe has besides, where that is not the default."""
SWITCHED_BY = {
    "mix": ("mix-alpha", "mix-coefficient"),
    "rp": ("noise", "noise-std", "noise-units", "noise-match", "noise-position"),
    "es": ("smoothing", "es-target", "es-schedule"),
}
"""Setting a detail of an ingredient switches the ingredient on."""

DETAIL_DEFAULTS: dict[str, Any] = {
    "method": Method.contrastive,
    "corrupt-captions": 0.0,
    "corrupt-kind": CorruptKind.shuffle,
    "subset": "all",
    "mix-alpha": 1.0,
    "mix-coefficient": MixCoefficient.batch,
    "noise": NoiseKind.gaussian,
    "noise-std": 0.01,
    "noise-units": NoiseUnits.absolute,
    "noise-match": NoiseMatch.variance,
    "noise-position": NoisePosition.input,
    "smoothing": 0.1,
    "es-target": EsTarget.uniform,
    "es-schedule": EsSchedule.constant,
    "mask-duplicates": False,
    "latent-norm": LatentNorm.none,
    "loss": Loss.infonce,
    "adapter": AdapterKind.fusemix,
    "temperature": "learned",
    "loss-tile": "auto",
    "ema": 0.0,
    "patience": 0,
    "memory-budget": "none",
    "seed": 0,
    "device": Device.auto,
    "precision": Precision.auto,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What `--size` decides."""

    latent_width: int
    """Wider latents are reduced to so many principal components of the training split; 0: never."""
    init: Init
    adapter_depth: int
    adapter_expansion: int
    embed_dim: int
    dropout: float
    epochs: int
    batch_size: int
    lr: float


RELEASED_SHAPE = Shape(
    latent_width=0,
    init=Init.random,
    adapter_depth=4,
    adapter_expansion=4,
    embed_dim=512,
    dropout=0.6,
    epochs=250,
    batch_size=20_480,
    lr=1e-3,
)
"""FuseMix release (Vouitsis et al., CVPR 2024): 40,960 drawn pairs for 500 epochs are 20,480 rows for 250 of ours."""

SMALL_DATA = 20_000
"""Pairs. Below it a drawn start takes a narrow block and a narrow space as well."""

CAN_START_AT_CCA = (AdapterKind.fusemix, AdapterKind.linear)
"""Adapters that are one linear map when their residual branches give nothing."""


def auto_shape(pairs: int, init: Init = Init.cca) -> Shape:
    """Adapter and schedule for `pairs` training pairs: one block, batches of about a seventh of the pairs up to 4,096.

    From a start at CCA one narrow block and ten short epochs for any number: chosen on the demo's training and
    validation splits, at about 3,700 pairs, and on synthetic pairs, 3,000 to 100,000 (`benchmarks/sizes.py`,
    docs/LOG.md). From a drawn start, `init` random, the size for many pairs is a guess.
    """
    seventh = 1 << round(math.log2(max(pairs, 8) / 7))
    starts_at_cca = init is Init.cca
    is_narrow = starts_at_cca or pairs < SMALL_DATA
    return Shape(
        latent_width=512 if is_narrow else 0,
        init=init,
        adapter_depth=1,
        adapter_expansion=1 if is_narrow else 4,
        embed_dim=256 if is_narrow else 512,
        dropout=0.6,
        epochs=10 if is_narrow else 20,
        batch_size=max(2, min(4096, pairs // 2, seventh)),
        lr=2e-4 if starts_at_cca else 3e-3 if is_narrow else 1e-3,
    )
