"""What trained adapters make of the clean and the corrupted training pairs: the paper's claim, looked at directly.

Letters: P training pairs, N rows of a batch, B rows of a block, E shared width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alignvl_cli.align.adapters import AdapterPair
from alignvl_cli.align.streams import stream_seed
from alignvl_cli.config import Loss
from alignvl_cli.training.state import Plan

BLOCK_ROWS = 1024


@torch.inference_mode()
def clean_and_corrupted(plan: Plan, corrupted_P: Tensor, adapters: AdapterPair) -> dict[str, Any]:
    """Of the clean and of the corrupted training pairs: their number, mean cosine (`similarity`), mean `probability`.

    The probability is what the loss sees of an unmixed, unperturbed batch of the run's size: the mean of both
    directions' softmax, or the sigmoid. The last batch is filled up with pairs of the one before.
    """
    rows = min(plan.config.batch_size, len(corrupted_P))
    generator = torch.Generator().manual_seed(stream_seed(plan.config.seed, "positives"))
    order_P = plan.gather.data.epoch_order(generator)
    similarity_P, probability_P = torch.zeros(len(order_P)), torch.zeros(len(order_P))
    adapters.eval()
    for start in range(0, len(order_P), rows):
        pair_N = order_P[max(0, min(start, len(order_P) - rows)) :][:rows]
        batch = plan.gather(pair_N)
        image_NE, text_NE = adapters.image.body(batch.image), adapters.text.body(batch.text)
        similarity_N, probability_N = _positives(adapters, F.normalize(image_NE, dim=1), F.normalize(text_NE, dim=1))
        similarity_P[pair_N.cpu()], probability_P[pair_N.cpu()] = similarity_N.cpu(), probability_N.cpu()
    return {
        name: {
            "pairs": int(these_P.sum()),
            "similarity": similarity_P[these_P].mean().item() if these_P.any() else None,
            "probability": probability_P[these_P].mean().item() if these_P.any() else None,
        }
        for name, these_P in (("clean", ~corrupted_P), ("corrupted", corrupted_P))
    }


def _positives(adapters: AdapterPair, img_NE: Tensor, txt_NE: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and probability of each row's own pair."""
    scale, bias = adapters.scale_and_bias()
    similarity_N = (img_NE * txt_NE).sum(dim=1)
    if adapters.shape.loss is Loss.sigmoid and bias is not None:
        return similarity_N, (scale * similarity_N + bias).sigmoid()
    own_N = scale * similarity_N
    normalisers = [
        torch.cat([(scale * block_BE @ gallery_NE.T).logsumexp(dim=1) for block_BE in query_NE.split(BLOCK_ROWS)])
        for query_NE, gallery_NE in ((img_NE, txt_NE), (txt_NE, img_NE))
    ]
    return similarity_N, sum(((own_N - norm_N).exp() for norm_N in normalisers), torch.zeros_like(own_N)) / 2
