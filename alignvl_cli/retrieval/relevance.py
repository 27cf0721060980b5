"""Which gallery rows answer a query: its own pairs, or also those of the very same text."""

# I images, T captions, M matches.

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from alignvl_cli.align.ranks import Relevant, captions_of_images, images_of_captions
from alignvl_cli.errors import DataError
from alignvl_cli.retrieval.protocol import Protocol
from alignvl_cli.store.reader import SplitRows


@dataclass(frozen=True)
class Fold:
    """One gallery: positions within a split."""

    image_I: np.ndarray
    text_T: np.ndarray
    text_image_T: np.ndarray
    """Position of each caption's image *within* `image_I`."""


def cut_folds(rows: SplitRows, folds: int) -> list[Fold]:
    """The split as `folds` galleries of consecutive images, equal up to one; DataError when one has no caption."""
    if folds > len(rows.image):
        raise DataError(f"--folds {folds}: the split has only {len(rows.image)} images")
    made = []
    for image_I in np.array_split(np.arange(len(rows.image)), folds):
        text_T = np.flatnonzero((rows.text_image >= image_I[0]) & (rows.text_image <= image_I[-1]))
        if not len(text_T):
            raise DataError(f"--folds {folds}: a fold of {len(image_I)} images has no caption; use fewer folds")
        made.append(Fold(image_I, text_T, rows.text_image[text_T] - image_I[0]))
    return made


def relevance(fold: Fold, captions: Sequence[str], protocol: Protocol, device: torch.device) -> dict[str, Relevant]:
    """Direction -> what answers its queries. `captions` are those of the fold."""
    text_image_T = torch.from_numpy(fold.text_image_T).to(device)
    if not protocol.identical_hits:
        return {
            "image_to_text": captions_of_images(text_image_T, len(fold.image_I)),
            "text_to_image": images_of_captions(text_image_T),
        }
    by_image, by_text = _identical(fold.text_image_T, captions, len(fold.image_I))
    return {
        direction: Relevant(torch.from_numpy(row_M).to(device), torch.from_numpy(count_Q).to(device))
        for direction, (row_M, count_Q) in (("image_to_text", by_image), ("text_to_image", by_text))
    }


def _identical(
    text_image_T: np.ndarray, captions: Sequence[str], images: int
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Matches by text, ragged: (rows, count of each query) of images asking captions, and of captions asking images."""
    number_of: dict[str, int] = {}
    group_T = np.array([number_of.setdefault(caption, len(number_of)) for caption in captions])
    groups = len(number_of)
    texts_by_group, texts_in_G = np.argsort(group_T, kind="stable"), np.bincount(group_T, minlength=groups)
    # Distinct (group, image) pairs: an image that has one text twice has it once here.
    pair_P = np.unique(group_T * images + text_image_T)
    group_P, image_P = pair_P // images, pair_P % images
    images_in_G = np.bincount(group_P, minlength=groups)

    by_image_P = np.argsort(image_P, kind="stable")
    asked_P = group_P[by_image_P]
    row_M = texts_by_group[_ragged((texts_in_G.cumsum() - texts_in_G)[asked_P], texts_in_G[asked_P])]
    count_I = np.bincount(image_P, weights=texts_in_G[group_P], minlength=images).astype(np.int64)
    image_M = image_P[_ragged((images_in_G.cumsum() - images_in_G)[group_T], images_in_G[group_T])]
    return (row_M, count_I), (image_M, images_in_G[group_T])


def _ragged(first_P: np.ndarray, count_P: np.ndarray) -> np.ndarray:
    """`first`, `first + 1`, ... `count` of them, one stretch after the other."""
    end_P = count_P.cumsum()
    return np.arange(end_P[-1]) + np.repeat(first_P - (end_P - count_P), count_P)
