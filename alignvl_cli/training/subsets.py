"""Which pairs a run trains on: some get another's image (`--corrupt-captions`), then some are kept (`--subset`), so
that a subset can be judged by how many corrupted pairs it leaves out.

`near`, `kdpp` and `quality` compare the latents as stored, by cosine, a part at a time under `--memory-budget`.

Letters: I images, T captions of the split, U different images, Q captions to corrupt, P pairs that are left, B pairs of
a block, K pairs or keys, M neighbours, D and C widths of image and text latents.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alignvl_cli.align.ranks import ASKED, NEIGHBOURS, Read, nearest_others
from alignvl_cli.align.streams import Stream, Streams
from alignvl_cli.errors import DataError
from alignvl_cli.settings import CorruptKind, SubsetKind, TrainConfig, subset_of
from alignvl_cli.store.reader import Store
from alignvl_cli.training.data import FLOAT_BYTES, StoredRows, duplicate_keys, is_within, stored_split


@dataclass(frozen=True)
class Latents:
    """The latents of one modality, in memory or not, for what needs them."""

    read: Read
    held: int | None = None
    """Rows that may be in memory at once, besides a block; None: all are."""


DPP_BLOCK = 8192
"""Pairs among which greedy MAP chooses at once; of more, each random block gives its share."""
DEPENDENT = 1e-4
"""Left of a pair's own kernel value of 4 once it is a combination of those selected, in float32."""


def corrupt(
    share: float,
    kind: CorruptKind,
    text_image_T: Tensor,
    image_key_T: Tensor,
    image: Latents,
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
    wrong_Q = torch.randperm(len(text_image_T), generator=generator)[: max(1, round(share * len(text_image_T)))]
    own_Q = own_T[wrong_Q]
    if kind is CorruptKind.shuffle:
        other_Q = torch.randint(len(shown_U) - 1, (len(wrong_Q),), generator=generator)
        other_Q += other_Q >= own_Q
    else:
        kept = min(NEIGHBOURS, len(shown_U) - 1)
        near_QM = nearest_others(lambda shown: image.read(row_U[shown]), len(row_U), own_Q, kept, held=image.held)
        drawn_Q = torch.randint(near_QM.shape[1], (len(wrong_Q),), generator=generator)
        other_Q = near_QM.gather(1, drawn_Q[:, None]).squeeze(1)
    new_image_T, corrupted_T = text_image_T.clone(), torch.zeros(len(text_image_T), dtype=torch.bool)
    new_image_T[wrong_Q] = row_U[other_Q]
    corrupted_T[wrong_Q] = True
    return new_image_T, corrupted_T


def uniform(size: int, image: Latents, text: Latents, text_image_T: Tensor, generator: torch.Generator) -> Tensor:
    """Any `size` pairs."""
    return torch.randperm(len(text_image_T), generator=generator)[:size]


def kdpp(size: int, image: Latents, text: Latents, text_image_T: Tensor, generator: torch.Generator) -> Tensor:
    """Diverse pairs: greedy MAP of a k-DPP (Chen et al., NeurIPS 2018) with kernel `(1 + s)^2`, s the mean of the
    pairs' image cosine and text cosine."""
    order_T = torch.randperm(len(text_image_T), generator=generator)
    selected, done, before = [], 0, 0
    for block_B in order_T.split(DPP_BLOCK):
        done += len(block_B)
        upto = round(size * done / len(order_T))
        sides = image.read(text_image_T[block_B]), text.read(block_B)
        row_BW = torch.cat([F.normalize(side, dim=1) for side in sides], dim=1) * 0.5**0.5
        selected.append(block_B[_greedy_map(row_BW, upto - before)])
        before = upto
    return torch.cat(selected)


def _greedy_map(row_BW: Tensor, size: int) -> Tensor:
    """Positions of `size` rows, each the one of most variance given those before it, by incremental Cholesky; once the
    rest depends on them, the rest in its order."""
    factor_KB = torch.zeros(size, len(row_BW))
    left_B = torch.full((len(row_BW),), 4.0)
    is_free_B = torch.ones(len(row_BW), dtype=torch.bool)
    selected: list[int] = []
    while len(selected) < size:
        best = int(left_B.argmax())
        if left_B[best] < DEPENDENT:
            break
        step = len(selected)
        kernel_B = (1 + row_BW @ row_BW[best]).square()
        kernel_B -= factor_KB[:step, best] @ factor_KB[:step]
        factor_KB[step] = kernel_B / left_B[best].sqrt()
        left_B = left_B - factor_KB[step].square()
        selected.append(best)
        is_free_B[best] = False
        left_B[~is_free_B] = -torch.inf
    rest = is_free_B.nonzero().squeeze(1)[: size - len(selected)]
    return torch.cat([torch.tensor(selected, dtype=torch.int64), rest])


def quality(size: int, image: Latents, text: Latents, text_image_T: Tensor, generator: torch.Generator) -> Tensor:
    """The pairs that both frozen spaces place alike (`agreement`); equals in random order."""
    order_T = torch.randperm(len(text_image_T), generator=generator)
    score_T = agreement(image, text, text_image_T)
    return order_T[score_T[order_T].argsort(descending=True, stable=True)][:size]


def agreement(image: Latents, text: Latents, text_image_T: Tensor) -> Tensor:
    """Mutual-kNN agreement of each pair, from 0 to 1, (T,): of the ten images nearest its image, the share that own one
    of the ten captions nearest its caption; its own image and all captions of that are left out.

    After Huh et al., "The Platonic Representation Hypothesis" (2024), who average it over a set.
    """
    shown_U, own_T = text_image_T.unique(return_inverse=True)
    kept = min(NEIGHBOURS, len(shown_U) - 1)
    if kept < 1:
        return torch.zeros(len(text_image_T))
    every_U, every_T = torch.arange(len(shown_U)), torch.arange(len(text_image_T))
    near_UM = nearest_others(lambda place: image.read(shown_U[place]), len(every_U), every_U, kept, held=image.held)

    def of_one_image(text_B: Tensor, other_G: Tensor) -> Tensor:
        return own_T[text_B][:, None] == own_T[other_G]

    near_TM = nearest_others(text.read, len(every_T), every_T, kept, left_out=of_one_image, held=text.held)
    blocks = zip(own_T.split(ASKED), near_TM.split(ASKED), strict=True)
    shares = [(near_UM[own_B][:, :, None] == own_T[near_BM][:, None, :]).any(dim=2) for own_B, near_BM in blocks]
    return torch.cat(shares).float().mean(dim=1)


SUBSETS: dict[SubsetKind, Callable[[int, Latents, Latents, Tensor, torch.Generator], Tensor]] = {
    SubsetKind.uniform: uniform,
    SubsetKind.kdpp: kdpp,
    SubsetKind.quality: quality,
}
"""(pairs to keep, image latents, text latents, row of each text's image, generator) -> the rows of the texts kept."""
assert SUBSETS.keys() == set(SubsetKind)


@dataclass(frozen=True)
class SelectedPairs:
    """The pairs to train on, one a text, in the stores' order."""

    image: StoredRows
    """All of the split, or with a subset those of its pairs."""
    text: StoredRows
    text_image_T: Tensor
    """Row in `image` of each text's image."""
    keys_KP: Tensor | None
    """What each pair shows (see `duplicate_keys`); None unless masking or corruption asks."""
    corrupted_P: Tensor | None
    record: dict[str, Any]
    """What a run's configuration says of it."""


def select_pairs(stores: Sequence[Store], split: str, config: TrainConfig, streams: Streams) -> SelectedPairs:
    """The pairs of `split`, of which `--corrupt-captions` have another's image, and `--subset` are kept.

    DataError when a store lacks the split, or no caption can get another image.
    """
    image, text, image_T = stored_split(stores, split)
    keys_KT = duplicate_keys(stores, split) if config.mask_duplicates or config.corrupt_captions else None
    readers = _readers(image, text, config.memory_budget)
    record: dict[str, Any] = {}
    corrupted_T = None
    if keys_KT is not None and config.corrupt_captions:
        key_I = torch.full((len(image),), -1).scatter_(0, image_T, keys_KT[0])
        share, how = config.corrupt_captions, config.corrupt_kind
        image_T, corrupted_T = corrupt(share, how, image_T, keys_KT[0], readers[0], streams[Stream.corruption])
        keys_KT = torch.stack([key_I[image_T], keys_KT[1]])
        record["corruption"] = {"share": share, "kind": how, "pairs": int(corrupted_T.sum())}
    asked = subset_of(config.subset)
    if asked is None:
        return SelectedPairs(image, text, image_T, keys_KT, corrupted_T, record)
    kind, size = asked
    kept_P = SUBSETS[kind](size, *readers, image_T, streams[Stream.subset]).sort().values
    shown, image_P = image_T[kept_P].unique(return_inverse=True)
    record["subset"] = {"kind": kind, "pairs": size, "of": len(text)}
    if corrupted_T is not None:
        corrupted_T = corrupted_T[kept_P]
        record["corruption"]["pairs_kept"] = int(corrupted_T.sum())
    keys_KP = None if keys_KT is None else keys_KT[:, kept_P]
    return SelectedPairs(image.pick(shown.numpy()), text.pick(kept_P.numpy()), image_P, keys_KP, corrupted_T, record)


def _readers(image: StoredRows, text: StoredRows, budget: int | None) -> tuple[Latents, Latents]:
    """How corruption and subsets read latents: all of them, kept once they are read, or half a budget that they exceed
    at a time."""
    if budget is None or is_within(budget, image, text):
        images, texts = cache(image.resident), cache(text.resident)
        return Latents(lambda row_N: images()[row_N]), Latents(lambda row_N: texts()[row_N])

    def part(side: StoredRows) -> Latents:
        return Latents(lambda row_N: side.read(row_N.numpy()), held=budget // (2 * FLOAT_BYTES * side.shape[1]))

    return part(image), part(text)
