"""Which pairs a run trains on: first some are corrupted (`--corrupt-captions`), then some are chosen (`--subset`), so
that a choice can be judged by how many corrupted pairs it leaves out.

`near`, `kdpp` and `quality` look at the latents as stored, by cosine, and hold all of them in memory.

Letters: I images, T captions of the split, U different images, Q pairs asked about, B pairs of a block, K pairs chosen,
M neighbours, D and C widths of image and text latents.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from alignvl_cli.align.neighbours import NEIGHBOURS, SCORES, nearest_others
from alignvl_cli.config import CorruptKind, SubsetKind
from alignvl_cli.errors import DataError

Latents = Callable[[], Tensor]
"""Reads all latents of one modality, for what needs them."""
DPP_BLOCK = 8192
"""Pairs among which greedy MAP chooses at once; of more, each random block gives its share."""
DEPENDENT = 1e-4
"""Left of a pair's own kernel value of 4 once it is a combination of those chosen, in float32."""


def corrupt(
    share: float,
    kind: CorruptKind,
    text_image_T: Tensor,
    image_key_T: Tensor,
    image_ID: Latents,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """A new image row for each caption, and which captions got one (T,): `share` of them, none keeping its own image.

    `image_key_T` numbers what each caption's image shows: copies of one picture are one image. `shuffle` takes any
    other image, `near` one of the ten nearest others. DataError when there is but one image.
    """
    shown_U, own_T = image_key_T.unique(return_inverse=True)
    if len(shown_U) < 2:
        raise DataError("--corrupt-captions: the training pairs show one image only, so no caption can get another")
    row_U = torch.empty_like(shown_U).scatter_(0, own_T, text_image_T)
    chosen_Q = torch.randperm(len(text_image_T), generator=generator)[: max(1, round(share * len(text_image_T)))]
    own_Q = own_T[chosen_Q]
    if kind is CorruptKind.shuffle:
        other_Q = torch.randint(len(shown_U) - 1, (len(chosen_Q),), generator=generator)
        other_Q += other_Q >= own_Q
    else:
        kept = min(NEIGHBOURS, len(shown_U) - 1)
        near_QM = nearest_others(F.normalize(image_ID()[row_U], dim=1), own_Q, kept)
        drawn_Q = torch.randint(near_QM.shape[1], (len(chosen_Q),), generator=generator)
        other_Q = near_QM.gather(1, drawn_Q[:, None]).squeeze(1)
    new_image_T, corrupted_T = text_image_T.clone(), torch.zeros(len(text_image_T), dtype=torch.bool)
    new_image_T[chosen_Q] = row_U[other_Q]
    corrupted_T[chosen_Q] = True
    return new_image_T, corrupted_T


def uniform(size: int, image_ID: Latents, text_TC: Latents, text_image_T: Tensor, generator: torch.Generator) -> Tensor:
    """Any `size` pairs."""
    return torch.randperm(len(text_image_T), generator=generator)[:size]


def kdpp(size: int, image_ID: Latents, text_TC: Latents, text_image_T: Tensor, generator: torch.Generator) -> Tensor:
    """Diverse pairs: greedy MAP of a k-DPP (Chen et al., NeurIPS 2018) with kernel `(1 + s)^2`, s the mean of the
    pairs' image cosine and text cosine."""
    order_T = torch.randperm(len(text_image_T), generator=generator)
    unit_ID, unit_TC = F.normalize(image_ID(), dim=1), F.normalize(text_TC(), dim=1)
    chosen, done, before = [], 0, 0
    for block_B in order_T.split(DPP_BLOCK):
        done += len(block_B)
        upto = round(size * done / len(order_T))
        row_BW = torch.cat([unit_ID[text_image_T[block_B]], unit_TC[block_B]], dim=1) * 0.5**0.5
        chosen.append(block_B[_greedy_map(row_BW, upto - before)])
        before = upto
    return torch.cat(chosen)


def _greedy_map(row_BW: Tensor, size: int) -> Tensor:
    """Positions of `size` rows, each the one of most variance given those before it, by incremental Cholesky; once the
    rest depends on them, the rest in its order."""
    factor_KB = torch.zeros(size, len(row_BW))
    left_B = torch.full((len(row_BW),), 4.0)
    is_free_B = torch.ones(len(row_BW), dtype=torch.bool)
    chosen: list[int] = []
    while len(chosen) < size:
        best = int(left_B.argmax())
        if left_B[best] < DEPENDENT:
            break
        step = len(chosen)
        kernel_B = (1 + row_BW @ row_BW[best]).square()
        kernel_B -= factor_KB[:step, best] @ factor_KB[:step]
        factor_KB[step] = kernel_B / left_B[best].sqrt()
        left_B = left_B - factor_KB[step].square()
        chosen.append(best)
        is_free_B[best] = False
        left_B[~is_free_B] = -torch.inf
    rest = is_free_B.nonzero().squeeze(1)[: size - len(chosen)]
    return torch.cat([torch.tensor(chosen, dtype=torch.int64), rest])


def quality(size: int, image_ID: Latents, text_TC: Latents, text_image_T: Tensor, generator: torch.Generator) -> Tensor:
    """The pairs that both frozen spaces place alike (`agreement`); equals in random order."""
    order_T = torch.randperm(len(text_image_T), generator=generator)
    score_T = agreement(image_ID(), text_TC(), text_image_T)
    return order_T[score_T[order_T].argsort(descending=True, stable=True)][:size]


def agreement(image_ID: Tensor, text_TC: Tensor, text_image_T: Tensor) -> Tensor:
    """Mutual-kNN agreement of each pair, from 0 to 1, (T,): of the ten images nearest its image, the share that own one
    of the ten captions nearest its caption; its own image and all captions of that are left out.

    After Huh et al., "The Platonic Representation Hypothesis" (2024), who average it over a set.
    """
    unit_ID, unit_TC = F.normalize(image_ID, dim=1), F.normalize(text_TC, dim=1)
    used_I = torch.zeros(len(unit_ID), dtype=torch.bool).index_fill_(0, text_image_T, True)
    kept = min(NEIGHBOURS, int(used_I.sum()) - 1)
    if kept < 1:
        return torch.zeros(len(unit_TC))
    scores = []
    for text_B in torch.arange(len(unit_TC)).split(max(1, SCORES // len(unit_TC))):
        image_B = text_image_T[text_B]
        sim_BI = (unit_ID[image_B] @ unit_ID.T).masked_fill_(~used_I, -torch.inf)
        near_BM = sim_BI.scatter_(1, image_B[:, None], -torch.inf).topk(kept, dim=1).indices
        sim_BT = (unit_TC[text_B] @ unit_TC.T).masked_fill_(text_image_T == image_B[:, None], -torch.inf)
        owner_BM = text_image_T[sim_BT.topk(kept, dim=1).indices]
        scores.append((near_BM[:, :, None] == owner_BM[:, None, :]).any(dim=2).float().mean(dim=1))
    return torch.cat(scores)


SUBSETS: dict[SubsetKind, Callable[[int, Latents, Latents, Tensor, torch.Generator], Tensor]] = {
    SubsetKind.uniform: uniform,
    SubsetKind.kdpp: kdpp,
    SubsetKind.quality: quality,
}
"""(pairs to keep, image latents, text latents, row of each text's image, generator) -> the rows of the texts kept."""
assert SUBSETS.keys() == set(SubsetKind)
