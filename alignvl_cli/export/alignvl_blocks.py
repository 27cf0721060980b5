"""What sentence-transformers lacks: pooling of several layers, two kinds of block, and ensembles. A copy of this file
travels in the exported folder, and is loaded from there with `trust_remote_code=True`; it needs torch, safetensors
and sentence-transformers alone.

Letters: N texts, L tokens, D width of a latent, P of a part of it, H hidden width, E shared width.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

try:
    from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm, Module, Normalize
except ImportError:  # before 6.0
    from sentence_transformers.models import Dense, LayerNorm, Module, Normalize  # type: ignore[no-redef]


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


class _Weighted(Module):
    """With its settings in `config.json` and its weights in `model.safetensors`."""

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **_: Any) -> None:
        self.save_config(output_path)
        _bring_this_file(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **hub: Any) -> "_Weighted":  # type: ignore[override]
        hub = {key: hub[key] for key in ("token", "cache_folder", "revision", "local_files_only") if key in hub}
        config = cls.load_config(model_name_or_path, subfolder=subfolder, **hub)
        return cls.load_torch_weights(model_name_or_path, subfolder=subfolder, model=cls(**config), **hub)


class _Block(_Weighted):
    """A map of the sentence embedding."""

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


class Canonical(_Weighted):
    """Text rows of unit length, each coordinate times the root of its weight, and what then lacks in length in a
    coordinate that images have not (CSA)."""

    config_keys = ["width", "out"]  # noqa: RUF012  (as the base class has it)

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.width, self.out = width, out
        self.register_buffer("root_K", torch.ones(width))

    def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        scaled_NK = F.normalize(features["sentence_embedding"], dim=1) * self.root_K
        left_N1 = (1 - scaled_NK.square().sum(dim=1, keepdim=True)).clamp(min=0).sqrt()
        features["sentence_embedding"] = torch.cat([scaled_NK, torch.zeros_like(left_N1), left_N1], dim=1)
        return features

    def get_embedding_dimension(self) -> int:
        return self.out

    get_sentence_embedding_dimension = get_embedding_dimension


STEPS = {kind.__name__: kind for kind in (Dense, LayerNorm, Normalize, InvertedBottleneck, GatedUnit)}
ACTIVATIONS = {f"{kind.__module__}.{kind.__name__}": kind for kind in (nn.Identity, nn.GELU)}


def _step(kind: str, **settings: Any) -> nn.Module:
    if "activation_function" in settings:
        settings["activation_function"] = ACTIVATIONS[settings["activation_function"]]()
    return STEPS[kind](**settings)


class Members(_Weighted):
    """An ensemble: the sentence embedding goes through each chain of steps, and what comes out stands side by side."""

    config_keys = ["chains"]  # noqa: RUF012  (as the base class has it)

    def __init__(self, chains: list[list[dict[str, Any]]]) -> None:
        super().__init__()
        self.chains = chains
        self.members = nn.ModuleList(nn.Sequential(*(_step(**step) for step in steps)) for steps in chains)

    def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        latent_ND = features["sentence_embedding"]
        rows_NE = [member({"sentence_embedding": latent_ND})["sentence_embedding"] for member in self.members]
        features["sentence_embedding"] = torch.cat(rows_NE, dim=1)
        return features
