"""How a training is going: recall on the validation split, from which the epoch is selected, and what is warned of:
steps that are not finite, a temperature at its bound, embeddings that collapse.

Letters: I images, T captions, N rows, E shared width.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alignvl_cli.align.adapters import TAU_RANGE, Adapter, AdapterPair
from alignvl_cli.align.losses import LossParts
from alignvl_cli.align.ranks import image_to_text_ranks, recalls, text_to_image_ranks
from alignvl_cli.training.data import SplitLatents, blocks

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
    return measured(img_IE, txt_TE, latents.text_image_T)


def measured(img_IE: Tensor, txt_TE: Tensor, text_image_T: Tensor) -> dict[str, Any]:
    """What `validate` gives, of unit embeddings."""
    by_direction = {
        "image_to_text": recalls(image_to_text_ranks(img_IE, txt_TE, text_image_T).rank_Q),
        "text_to_image": recalls(text_to_image_ranks(img_IE, txt_TE, text_image_T).rank_Q),
    }
    every = [recall for recalls_at in by_direction.values() for recall in recalls_at.values()]
    spread = {"image": mean_squared_cosine(img_IE), "text": mean_squared_cosine(txt_TE)}
    return {
        **by_direction,
        "rsum": sum(every),
        "mean_recall": sum(every) / len(every),
        "mean_squared_cosine": spread,
    }


def standard_error(metrics: dict[str, Any], latents: SplitLatents) -> float:
    """Of the mean recall, in points, as if its queries were drawn at random: binomial by direction; the recalls of one
    direction are of the same queries, and rise and fall together."""
    queries = {"image_to_text": len(latents.text_image_T.unique()), "text_to_image": latents.pairs}
    by_direction = [
        sum((recall * (100 - recall) / count) ** 0.5 for recall in metrics[direction].values())
        / len(metrics[direction])
        for direction, count in queries.items()
    ]
    return math.hypot(*by_direction) / len(by_direction)


def is_clearly_better(new: dict[str, Any], old: dict[str, Any], latents: SplitLatents) -> bool:
    """Whether the mean recall is higher by more than the standard error: less is chance, with few validation pairs most
    of all, and then what is usually better is kept."""
    return bool(new["mean_recall"] - old["mean_recall"] > standard_error(old, latents))


def _unit_rows(adapter: Adapter, latent_ND: torch.Tensor) -> torch.Tensor:
    return torch.cat([F.normalize(adapter.body(block_BD), dim=1) for block_BD in blocks(latent_ND)])


SKIPPED_IN_A_ROW = 10
"""Steps; after so many without a finite loss and gradient the weights are beyond help, and training stops."""
COLLAPSED = 0.9
"""Mean squared cosine of two validation embeddings above which they are said to have collapsed."""


class Skips:
    """Counts skipped steps on the device: nothing waits for it until `read`."""

    def __init__(self, device: str) -> None:
        self.counts = torch.zeros(3, device=device)
        """In all, in a row up to now, and the most in a row."""

    def judge(self, loss: LossParts, gradients: list[Tensor]) -> Tensor:
        """1.0 if the loss or the norm of all gradients together is not finite, else 0.0, on their device; counted."""
        norm = torch.nn.utils.get_total_norm(gradients)
        skipped = (~torch.isfinite(loss.loss.detach() + norm)).float()
        total, row, most = self.counts.unbind()
        row = (row + skipped) * skipped
        self.counts = torch.stack([total + skipped, row, torch.maximum(most, row)])
        return skipped


def mean_squared_cosine(unit_NE: Tensor) -> float:
    """Of all pairs of two different rows, which have unit length; 1 if all lie on one line, so also on one point.

    It is the squared Frobenius norm of the rows' second moment (E, E), less what each row adds with itself.
    """
    rows = len(unit_NE)
    if rows < 2:
        return 0.0
    moment_EE = unit_NE.T @ unit_NE
    return (moment_EE.square().sum().item() - rows) / (rows * (rows - 1))


def skip_warnings(skipped: int, step: int) -> Iterator[tuple[str, str]]:
    """(cause, sentence), when a step was skipped."""
    if skipped:
        yield (
            "skipped",
            f"a loss or gradient was not finite by step {step}, and its step was skipped, as such steps are; training "
            f"stops after {SKIPPED_IN_A_ROW} in a row. A smaller --lr or --precision fp32 may help",
        )


def tau_warnings(tau: float) -> Iterator[tuple[str, str]]:
    """(cause, sentence), when a learned temperature stands at a bound of its range."""
    lowest, highest = TAU_RANGE
    if tau <= lowest * 1.001:
        yield (
            "tau low",
            f"tau has reached its lower bound, {lowest:g}: the similarities cannot be sharpened further, which a "
            "smaller --lr or --temperature fixed:0.05 avoids",
        )
    if tau >= highest * 0.999:
        yield (
            "tau high",
            f"tau has reached its upper bound, {highest:g}: the adapters hardly tell the pairs apart, which a "
            "smaller --lr, less noise or --temperature fixed:0.05 may change",
        )


def collapse_warnings(squared_cosine: dict[str, float]) -> Iterator[tuple[str, str]]:
    """(cause, sentence) for each modality whose validation embeddings have collapsed."""
    for side, value in squared_cosine.items():
        if value > COLLAPSED:
            yield (
                f"collapsed {side}",
                f"the {side} embeddings have collapsed: on validation the squared cosine of two of them is {value:.3f} "
                "on average, where 1 means that all are one vector; try a smaller --lr or --latent-norm standardize",
            )
