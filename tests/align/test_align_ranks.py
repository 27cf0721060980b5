"""Ranks against a brute-force rewrite, and the rules about ties and non-finite scores."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from alignvl_cli.align.ranks import TIE, image_to_text_ranks, recalls, text_to_image_ranks
from alignvl_cli.errors import DataError


def random_case(seed: int, captionless: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unit rows on a coarse grid, so that exact ties are common; 1 to 7 captions an image, in any order."""
    draw = torch.Generator().manual_seed(seed)
    images = int(torch.randint(3, 30, (), generator=draw))
    counts = torch.randint(1, 8, (images,), generator=draw)
    counts[:captionless] = 0
    text_image = torch.repeat_interleave(torch.arange(images), counts)
    text_image = text_image[torch.randperm(len(text_image), generator=draw)]
    img = F.normalize(grid(images, draw), dim=1)
    txt = F.normalize(grid(len(text_image), draw), dim=1)
    return img, txt, text_image


def grid(rows: int, draw: torch.Generator) -> torch.Tensor:
    """Non-zero integer vectors: cosines are equal, up to rounding, or far apart."""
    points = torch.randint(-1, 2, (rows, 3), generator=draw).float()
    points[(points == 0).all(dim=1)] = 1.0
    return points


def brute_force(img: np.ndarray, txt: np.ndarray, text_image: np.ndarray) -> tuple[list[int], list[int]]:
    sim = img @ txt.T
    image_ranks = []
    for image in range(len(img)):
        own = np.flatnonzero(text_image == image)
        if len(own):
            best = max(sim[image, caption] for caption in own)
            rivals = (sim[image, caption] for caption in range(len(txt)) if caption not in own)
            image_ranks.append(sum(bool(rival >= best - TIE) for rival in rivals))
    text_ranks = []
    for caption, owner in enumerate(text_image):
        rivals = (sim[image, caption] for image in range(len(img)) if image != owner)
        text_ranks.append(sum(bool(rival >= sim[owner, caption] - TIE) for rival in rivals))
    return image_ranks, text_ranks


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("block_elements", [1, 40, 1 << 20])
def test_ranks_equal_brute_force_whatever_the_block(seed, block_elements):
    img, txt, text_image = random_case(seed, captionless=seed % 3)
    image_ranks, text_ranks = brute_force(img.numpy(), txt.numpy(), text_image.numpy())
    by_image = image_to_text_ranks(img, txt, text_image, block_elements)
    by_text = text_to_image_ranks(img, txt, text_image, block_elements)
    assert by_image.rank_Q.tolist() == image_ranks
    assert by_text.rank_Q.tolist() == text_ranks
    assert by_image.row_Q.tolist() == sorted(set(text_image.tolist()))
    assert by_text.row_Q.tolist() == list(range(len(txt)))


def test_all_equal_embeddings_are_last_not_first():
    img = F.normalize(torch.ones(6, 4), dim=1)
    txt = F.normalize(torch.ones(12, 4), dim=1)
    owner = torch.arange(12) // 2
    assert image_to_text_ranks(img, txt, owner).rank_Q.tolist() == [10] * 6
    assert text_to_image_ranks(img, txt, owner).rank_Q.tolist() == [5] * 12


def test_a_rival_within_the_tie_wins_and_one_beyond_it_loses():
    txt = torch.tensor([[1.0, 0.0]])
    angle = torch.tensor([0.0, 5e-4, 4e-3])  # cosines 1, 1 - 1.25e-7, 1 - 8e-6
    img = torch.stack([angle.cos(), angle.sin()], dim=1)
    assert text_to_image_ranks(img, txt, torch.tensor([0])).rank_Q.tolist() == [1]


def test_images_without_captions_are_rivals_but_not_queries():
    img = torch.eye(3)
    txt = torch.tensor([[0.6, 0.0, 0.8]])
    owner = torch.tensor([0])
    assert image_to_text_ranks(img, txt, owner).row_Q.tolist() == [0]
    assert text_to_image_ranks(img, txt, owner).rank_Q.tolist() == [1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("ranks", [image_to_text_ranks, text_to_image_ranks])
def test_non_finite_scores_are_refused(ranks, value):
    img = torch.eye(3)
    img[1, 1] = value
    with pytest.raises(DataError, match="NaN or infinity"):
        ranks(img, torch.eye(3), torch.arange(3))


def test_recalls_are_percentages_of_queries():
    assert recalls(torch.tensor([0, 0, 4, 7, 30])) == {"R@1": 40.0, "R@5": 60.0, "R@10": 80.0}
