"""Two layers that sentence-transformers lacks. A copy of this file travels in the exported folder, and is loaded from
there with `trust_remote_code=True`; it needs torch, safetensors and sentence-transformers alone.

Letters: N texts, D width of a latent, H hidden width, E shared width.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

try:
    from sentence_transformers.sentence_transformer.modules import Module
except ImportError:  # before 6.0
    from sentence_transformers.models import Module  # type: ignore[no-redef]


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
