"""The training pairs as the settings want them: those of the stores, corrupted and chosen from (see `selection`).

Letters: I images, T captions of the split, P pairs that are left, K keys a pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from alignvl_cli.align.streams import Stream, Streams
from alignvl_cli.config import TrainConfig
from alignvl_cli.grammar import subset_of
from alignvl_cli.store.reader import Store
from alignvl_cli.training.data import FLOAT_BYTES, StoredRows, duplicate_keys, is_within, stored_split
from alignvl_cli.training.selection import SUBSETS, Latents, corrupt


@dataclass(frozen=True)
class ChosenPairs:
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


def choose_pairs(stores: Sequence[Store], split: str, config: TrainConfig, streams: Streams) -> ChosenPairs:
    """The pairs of `split`, of which `--corrupt-captions` have another's image, and `--subset` are kept.

    DataError when a store lacks the split, or no caption can get another image.
    """
    image, text, image_T = stored_split(stores, split)
    keys_KT = duplicate_keys(stores, split) if config.mask_duplicates or config.corrupt_captions else None
    looked_at = _looked_at(image, text, config.memory_budget)
    record: dict[str, Any] = {}
    corrupted_T = None
    if keys_KT is not None and config.corrupt_captions:
        key_I = torch.full((len(image),), -1).scatter_(0, image_T, keys_KT[0])
        share, how = config.corrupt_captions, config.corrupt_kind
        image_T, corrupted_T = corrupt(share, how, image_T, keys_KT[0], looked_at[0], streams[Stream.corruption])
        keys_KT = torch.stack([key_I[image_T], keys_KT[1]])
        record["corruption"] = {"share": share, "kind": how, "pairs": int(corrupted_T.sum())}
    asked = subset_of(config.subset)
    if asked is None:
        return ChosenPairs(image, text, image_T, keys_KT, corrupted_T, record)
    kind, size = asked
    kept_P = SUBSETS[kind](size, *looked_at, image_T, streams[Stream.subset]).sort().values
    shown, image_P = image_T[kept_P].unique(return_inverse=True)
    record["subset"] = {"kind": kind, "pairs": size, "of": len(text)}
    if corrupted_T is not None:
        corrupted_T = corrupted_T[kept_P]
        record["corruption"]["pairs_kept"] = int(corrupted_T.sum())
    keys_KP = None if keys_KT is None else keys_KT[:, kept_P]
    return ChosenPairs(image.pick(shown.numpy()), text.pick(kept_P.numpy()), image_P, keys_KP, corrupted_T, record)


def _looked_at(image: StoredRows, text: StoredRows, budget: int | None) -> tuple[Latents, Latents]:
    """What corruption and choice may look at: all latents, once they are asked for, or half a budget that they exceed
    at a time."""
    if budget is None or is_within(budget, image, text):
        images, texts = cache(image.resident), cache(text.resident)
        return Latents(lambda row_N: images()[row_N]), Latents(lambda row_N: texts()[row_N])

    def part(side: StoredRows) -> Latents:
        return Latents(lambda row_N: side.read(row_N.numpy()), held=budget // (2 * FLOAT_BYTES * side.shape[1]))

    return part(image), part(text)
