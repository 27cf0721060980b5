"""An adapter as a chain of sentence-transformers modules: one table line a kind of layer.

Letters: D width in, K width kept.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from alignvl_cli.align.adapters import Adapter, GatedUnit, InvertedBottleneck
from alignvl_cli.align.dropout import StreamDropout
from alignvl_cli.align.latent_norm import AsStored, PrincipalComponents, Standardize, UnitLength

THEIRS = "sentence_transformers.models."
"""The names that model folders have used since sentence-transformers 0.3, and every version since reads."""
OURS = "alignvl_blocks."
IDENTITY, GELU = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.GELU"


@dataclass(frozen=True)
class Module:
    """A line of `modules.json`, and what its folder holds."""

    type: str
    config: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)

    @property
    def needs_code(self) -> bool:
        return self.type.startswith(OURS)


def chain(adapter: Adapter) -> list[Module]:
    """The modules that turn a pooled latent into a unit embedding."""
    layers = [adapter.norm, adapter.reduce, *_body(adapter.body)]
    found: list[Module] = []
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        found += MODULES[type(layer)](layer, following)
    return [*found, Module(f"{THEIRS}Normalize")]


def _body(body: nn.Module) -> Iterator[nn.Module]:
    yield from body if isinstance(body, nn.Sequential) else [body]


def _dense(weight_KD: Tensor, bias_K: Tensor, activation: str = IDENTITY) -> Module:
    sizes = {"in_features": weight_KD.shape[1], "out_features": weight_KD.shape[0], "bias": True}
    return Module(
        f"{THEIRS}Dense",
        {**sizes, "activation_function": activation},
        {"linear.weight": weight_KD, "linear.bias": bias_K},
    )


def _standardize(layer: Standardize, following: nn.Module | None) -> list[Module]:
    """(x - mean) / scale, as one diagonal map; in float64 until the last step."""
    scale_D = layer.scale_D.double().reciprocal()
    return [_dense(torch.diag(scale_D).float(), (-layer.mean_D.double() * scale_D).float())]


def _principal(layer: PrincipalComponents, following: nn.Module | None) -> list[Module]:
    weight_KD = layer.basis_DK.double().T
    return [_dense(weight_KD.float(), (-weight_KD @ layer.mean_D.double()).float())]


def _linear(layer: nn.Linear, following: nn.Module | None) -> list[Module]:
    return [_dense(layer.weight, layer.bias, GELU if isinstance(following, nn.GELU) else IDENTITY)]


def _layer_norm(layer: nn.LayerNorm, following: nn.Module | None) -> list[Module]:
    weights = {f"norm.{name}": tensor for name, tensor in layer.state_dict().items()}
    return [Module(f"{THEIRS}LayerNorm", {"dimension": layer.normalized_shape[0]}, weights)]


def _bottleneck(layer: InvertedBottleneck, following: nn.Module | None) -> list[Module]:
    width, hidden = layer.widen.in_features, layer.widen.out_features
    return [
        Module(f"{OURS}InvertedBottleneck", {"width": width, "hidden": hidden, "out": width}, dict(layer.state_dict()))
    ]


def _gated(layer: GatedUnit, following: nn.Module | None) -> list[Module]:
    sizes = {"width": layer.gate.in_features, "hidden": layer.gate.out_features, "out": layer.out.out_features}
    weights = {
        f"out_map{name.removeprefix('out')}" if name.startswith("out.") else name: tensor
        for name, tensor in layer.state_dict().items()
    }
    return [Module(f"{OURS}GatedUnit", sizes, weights)]


def _nothing(layer: nn.Module, following: nn.Module | None) -> list[Module]:
    """The identity once training is over, or done by the layer before."""
    return []


MODULES: dict[type[nn.Module], Callable[[Any, nn.Module | None], list[Module]]] = {
    AsStored: _nothing,
    UnitLength: lambda layer, following: [Module(f"{THEIRS}Normalize")],
    Standardize: _standardize,
    PrincipalComponents: _principal,
    nn.Linear: _linear,
    nn.GELU: _nothing,
    nn.LayerNorm: _layer_norm,
    StreamDropout: _nothing,
    InvertedBottleneck: _bottleneck,
    GatedUnit: _gated,
}
"""Layer -> (the layer, the one after it) -> modules; a new adapter made of other layers adds its line."""
