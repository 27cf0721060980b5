"""Wasserstein-Procrustes: a known rotation found without pairs, and known pairs that take over as their share grows."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from alignvl_cli.align.wasserstein import CENTRES, clouds_of, matched, objective, parted, rotate

D, C, SHAPES = 12, 10, 12


@pytest.fixture(scope="module")
def halves():
    """Rows of one lopsided cloud, and the same rotated and shifted; a test that takes a half of each shares no row."""
    draw = torch.Generator().manual_seed(0)
    middles = 2 * torch.randn(SHAPES, C, generator=draw) * torch.linspace(2, 0.5, C)
    number_N = torch.multinomial(torch.linspace(1, 3, SHAPES), 1600, replacement=True, generator=draw)
    rows = middles[number_N] + 0.3 * torch.randn(1600, C, generator=draw)
    wide, _ = torch.linalg.qr(torch.randn(D, D, generator=draw))
    image = rows @ wide[:C] + 5
    turned, _ = torch.linalg.qr(torch.randn(C, C, generator=draw))
    return image, rows @ turned - 3


def test_a_rotation_is_found_without_pairs(halves):
    image, text = halves
    clouds = clouds_of(image[:800], text[800:], image[800:], text[800:])  # pairs that have no share
    draws = torch.Generator().manual_seed(0)
    fitted, aside = parted(clouds, draws)
    assert (len(fitted.img_NK), len(aside.img_NK)) == (640, 160)
    found = [rotate(fitted, 0.0, draws) for _ in range(4)]
    judged = [objective(aside, map_KK) for map_KK in found]
    cosines = [(clouds.paired_img_PK @ map_KK * clouds.paired_txt_PK).sum(dim=1).mean().item() for map_KK in found]
    assert cosines[judged.index(max(judged))] > 0.95
    for map_KK in found:
        assert torch.allclose(map_KK @ map_KK.T, torch.eye(C), atol=1e-5)
    draws = torch.Generator().manual_seed(0)
    assert torch.equal(rotate(parted(clouds, draws)[0], 0.0, draws), found[0])


def test_pairs_alone_are_procrustes(halves):
    image, text = (side + 2 * torch.randn(side.shape, generator=torch.Generator().manual_seed(1)) for side in halves)
    clouds = clouds_of(image, text, image, text)
    left, _, right = torch.linalg.svd((clouds.img_NK.T @ clouds.txt_MK).double())
    alone = rotate(clouds, 1.0, torch.Generator().manual_seed(0))
    assert torch.allclose(alone.double(), left @ right, atol=1e-5)


def test_few_pairs_help_where_shapes_say_little(halves):
    draw = torch.Generator().manual_seed(2)
    image = torch.randn(600, D, generator=draw)  # a round cloud: every rotation matches it as well
    turned, _ = torch.linalg.qr(torch.randn(D, D, generator=draw))
    text = image @ turned
    cosines = []
    for share in (0.0, 0.5):
        clouds = clouds_of(image, text, image[:60], text[:60])
        found = rotate(clouds, share, torch.Generator().manual_seed(0))
        cosines.append((clouds.img_NK @ found * clouds.txt_MK).sum(dim=1).mean().item())
    assert cosines[0] < 0.5
    assert cosines[1] > 0.99


def test_a_matching_is_one_to_one_and_the_best():
    draw = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(20, 6, generator=draw), dim=1)
    order = torch.randperm(20, generator=draw)
    found_N, found_M = matched(rows[:15], rows[order])
    assert found_N.tolist() == list(range(15))
    assert torch.equal(order[found_M], found_N)


def test_fewer_rows_than_centres_are_enough_and_no_global_generator_is_asked():
    np.random.seed(0)
    draw = torch.Generator().manual_seed(0)
    clouds = clouds_of(*(torch.randn(rows, 6, generator=draw) for rows in (CENTRES - 10, 9, 4, 4)))
    assert torch.isfinite(rotate(clouds, 0.5, draw)).all()
