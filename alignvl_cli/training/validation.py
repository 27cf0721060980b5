"""Recall on the validation split, from which the epoch is selected."""

from typing import Any

import torch
import torch.nn.functional as F

from alignvl_cli.align.adapters import Adapter, AdapterPair
from alignvl_cli.align.ranks import image_to_text_ranks, recalls, text_to_image_ranks
from alignvl_cli.training.data import SplitLatents, blocks
from alignvl_cli.training.health import mean_squared_cosine

VALIDATIONS = 20
"""A run validates at most this often, and at least half as often if it has the epochs."""


def is_validation_epoch(epoch: int, epochs: int) -> bool:
    """Whether the run validates after this epoch (from 1): every ceil(epochs / 20) epochs, and after the last."""
    return epoch % -(-epochs // VALIDATIONS) == 0 or epoch == epochs


@torch.inference_mode()
def validate(adapters: AdapterPair, latents: SplitLatents) -> dict[str, Any]:
    """R@1, R@5, R@10 both ways, their sum (`rsum`) and mean (`mean_recall`), in percent, ties losing; and by modality
    the `mean_squared_cosine` of two embeddings.

    `latents` are prepared already (`--latent-norm`, `--latent-width`). Puts the adapters into training mode again.
    """
    adapters.eval()
    img_IE = _unit_rows(adapters.image, latents.image_ID)
    txt_TE = _unit_rows(adapters.text, latents.text_TC)
    adapters.train()
    by_direction = {
        "image_to_text": recalls(image_to_text_ranks(img_IE, txt_TE, latents.text_image_T).rank_Q),
        "text_to_image": recalls(text_to_image_ranks(img_IE, txt_TE, latents.text_image_T).rank_Q),
    }
    every = [recall for recalls_at in by_direction.values() for recall in recalls_at.values()]
    spread = {"image": mean_squared_cosine(img_IE), "text": mean_squared_cosine(txt_TE)}
    return {
        **by_direction,
        "rsum": sum(every),
        "mean_recall": sum(every) / len(every),
        "mean_squared_cosine": spread,
    }


def _unit_rows(adapter: Adapter, latent_ND: torch.Tensor) -> torch.Tensor:
    return torch.cat([F.normalize(adapter.body(block_BD), dim=1) for block_BD in blocks(latent_ND)])
