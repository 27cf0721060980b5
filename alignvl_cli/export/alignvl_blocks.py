"""What sentence-transformers lacks: pooling of several layers, and two kinds of block. A copy of this file travels in
the exported folder, and is loaded from there with `trust_remote_code=True`; it needs torch, safetensors and
sentence-transformers alone.

Letters: N texts, L tokens, D width of a latent, P of a part of it, H hidden width, E shared width.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

try:
    from sentence_transformers.sentence_transformer.modules import Module
except ImportError:  # before 6.0
    from sentence_transformers.models import Module  # type: ignore[no-redef]


def _bring_this_file(module_folder: str) -> None:
    """A model that is saved again, be it after training, keeps its code: the library leaves it behind."""
    shutil.copyfile(__file__, Path(module_folder).parent / "alignvl_blocks.py")


class LayerPooling(Module):
    """Some layers of the transformer, each pooled; several are each brought to unit length and stand side by side.

    Wants `output_hidden_states` in the transformer's configuration, and padding on the right.
    """

    config_keys = ["layers", "modes", "width"]  # noqa: RUF012  (as the base class has it)

    def __init__(self, layers: list[str], modes: list[str], width: int) -> None:
        super().__init__()
        self.layers, self.modes, self.width = layers, modes, width

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        states = {str(layer): state_NLP for layer, state_NLP in enumerate(features["all_layer_embeddings"])}
        states["last"] = features["token_embeddings"]
        part_NP = [self._pooled(states[layer], features["attention_mask"]) for layer in self.layers]
        if len(part_NP) > 1:
            part_NP = [F.normalize(one, dim=1) for one in part_NP]
        features["sentence_embedding"] = torch.cat(part_NP, dim=1)
        return features

    def _pooled(self, state_NLP: Tensor, mask_NL: Tensor) -> Tensor:
        weight_NL1 = mask_NL.unsqueeze(-1).to(state_NLP.dtype)
        count_N = mask_NL.sum(dim=1)
        vectors = {
            "cls": lambda: state_NLP[:, 0],
            "mean": lambda: (state_NLP * weight_NL1).sum(dim=1) / weight_NL1.sum(dim=1).clamp(min=1),
            "lasttoken": lambda: state_NLP[torch.arange(len(count_N), device=count_N.device), count_N - 1],
        }
        return torch.cat([vectors[mode]() for mode in self.modes], dim=1)

    def get_embedding_dimension(self) -> int:
        return self.width

    get_sentence_embedding_dimension = get_embedding_dimension

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **_: Any) -> None:
        self.save_config(output_path)
        _bring_this_file(output_path)


class _Block(Module):
    """A map of the sentence embedding, with its widths in `config.json` and its weights in `model.safetensors`."""

    config_keys = ["width", "hidden", "out"]  # noqa: RUF012  (as the base class has it)

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.width, self.hidden, self.out = width, hidden, out
        self.norm = nn.LayerNorm(width)

    def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        features["sentence_embedding"] = self.apply_to(features["sentence_embedding"])
        return features

    def get_embedding_dimension(self) -> int:
        return self.out

    get_sentence_embedding_dimension = get_embedding_dimension

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **_: Any) -> None:
        self.save_config(output_path)
        _bring_this_file(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **hub: Any) -> "_Block":  # type: ignore[override]
        hub = {key: hub[key] for key in ("token", "cache_folder", "revision", "local_files_only") if key in hub}
        config = cls.load_config(model_name_or_path, subfolder=subfolder, **hub)
        return cls.load_torch_weights(model_name_or_path, subfolder=subfolder, model=cls(**config), **hub)


class InvertedBottleneck(_Block):
    """FuseMix's block: `x + Linear(GELU(Linear(LN(x))))`."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__(width, hidden, out)
        self.widen, self.narrow = nn.Linear(width, hidden), nn.Linear(hidden, out)

    def apply_to(self, x_ND: Tensor) -> Tensor:
        return x_ND + self.narrow(F.gelu(self.widen(self.norm(x_ND))))


class GatedUnit(_Block):
    """SAIL's `W3(ReLU6(W1 LN(x)) * (W2 LN(x)))`."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__(width, hidden, out)
        self.gate, self.value, self.out_map = (
            nn.Linear(width, hidden),
            nn.Linear(width, hidden),
            nn.Linear(hidden, out),
        )

    def apply_to(self, x_ND: Tensor) -> Tensor:
        x_ND = self.norm(x_ND)
        return self.out_map(F.relu6(self.gate(x_ND)) * self.value(x_ND))


class _Member(nn.Module):
    """A chain of layers of a member: the pooled latent in, its unit embedding out."""

    def __init__(self, layers: list[dict[str, Any]]) -> None:
        super().__init__()
        self.kinds = [layer["kind"] for layer in layers]
        made: dict[str, Any] = {
            "Dense": _dense,
            "LayerNorm": lambda dimension: nn.LayerNorm(dimension),
            "Normalize": nn.Identity,
        }
        made |= {"InvertedBottleneck": InvertedBottleneck, "GatedUnit": GatedUnit}
        self.layers = nn.ModuleList(
            made[layer["kind"]](**{key: value for key, value in layer.items() if key != "kind"}) for layer in layers
        )

    def forward(self, x_ND: Tensor) -> Tensor:
        for kind, layer in zip(self.kinds, self.layers, strict=True):
            if kind == "Normalize":
                x_ND = F.normalize(x_ND, dim=1)
            else:
                x_ND = layer.apply_to(x_ND) if isinstance(layer, _Block) else layer(x_ND)
        return x_ND


def _dense(in_features: int, out_features: int, bias: bool, activation_function: str) -> nn.Module:
    linear = nn.Linear(in_features, out_features, bias)
    return nn.Sequential(linear, nn.GELU()) if activation_function.endswith("GELU") else nn.Sequential(linear)


class Joined(_Block):
    """An ensemble: members' unit embeddings, each times the root of its weight, side by side, then a linear map."""

    config_keys = ["width", "hidden", "out", "members", "roots"]  # noqa: RUF012

    def __init__(
        self, width: int, hidden: int, out: int, members: list[list[dict[str, Any]]], roots: list[float]
    ) -> None:
        super().__init__(width, hidden, out)
        del self.norm
        self.members, self.roots = members, roots
        self.chains = nn.ModuleList(_Member(layers) for layers in members)
        self.reduce = nn.Linear(hidden, out, bias=False)

    def apply_to(self, x_ND: Tensor) -> Tensor:
        unit = [root * chain(x_ND) for root, chain in zip(self.roots, self.chains, strict=True)]
        return self.reduce(torch.cat(unit, dim=1))
