"""Mutual neighbours and CKA: identities, invariances, independent references, and unrelated spaces."""

import numpy as np
import pytest
import torch

from alignvl_cli.retrieval.probe import cka, mutual_knn

N = 90


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(1)


def draws(rows: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def test_a_space_agrees_with_itself_rotated_and_scaled(generator):
    space_ND = draws(N, 8, 0)
    rotation_DD = torch.linalg.qr(draws(8, 8, 1)).Q
    other_ND = 3 * space_ND @ rotation_DD
    assert mutual_knn(space_ND, other_ND, generator).value == pytest.approx(1)
    assert cka(space_ND, other_ND + 5, generator).value == pytest.approx(1)


def test_unrelated_spaces_agree_by_chance_alone_however_wide(generator):
    image_ND, text_NC = draws(N, 300, 2), draws(N, 200, 3)
    neighbours, similar = mutual_knn(image_ND, text_NC, generator), cka(image_ND, text_NC, generator)
    assert neighbours.shuffled_mean == pytest.approx(10 / (N - 1), rel=0.1)
    assert neighbours.value == pytest.approx(10 / (N - 1), rel=0.4)
    assert abs(similar.value) < 0.05
    assert abs(similar.shuffled_mean) < 0.05
    biased = np.square(np.linalg.norm(image_ND.T @ text_NC)) / (
        np.linalg.norm(image_ND.T @ image_ND) * np.linalg.norm(text_NC.T @ text_NC)
    )
    assert biased > 0.5, "the plain measure calls these spaces alike: what the unbiased one is for"


def test_neighbours_by_brute_force(generator):
    image_ND, text_NC = draws(N, 5, 4), draws(N, 5, 4) + 0.8 * draws(N, 5, 5)

    def nearest(rows):
        unit = np.asarray(rows) / np.linalg.norm(rows, axis=1, keepdims=True)
        cosine = unit @ unit.T
        np.fill_diagonal(cosine, -np.inf)
        return [set(np.argsort(-line)[:10]) for line in cosine]

    wanted = np.mean([len(a & b) / 10 for a, b in zip(nearest(image_ND), nearest(text_NC), strict=True)])
    found = mutual_knn(image_ND, text_NC, generator)
    assert found.value == pytest.approx(wanted)
    assert found.shuffled_max < found.value < 1


def test_cka_by_gram_matrices(generator):
    """Song et al. (2012), equation 4, as written: N x N matrices without their diagonals."""
    image_ND, text_NC = draws(30, 7, 6), draws(30, 7, 6) @ draws(7, 4, 7) + 0.3 * draws(30, 4, 8)

    def hsic(x, y):
        n = len(x)
        k, m = x @ x.T, y @ y.T
        np.fill_diagonal(k, 0)
        np.fill_diagonal(m, 0)
        one = np.ones(n)
        middle = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        return (np.trace(k @ m) + middle - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))

    x, y = image_ND.double().numpy(), text_NC.double().numpy()
    wanted = hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))
    assert cka(image_ND, text_NC, generator).value == pytest.approx(wanted, rel=1e-9)


def test_a_constant_side_shares_nothing(generator):
    assert cka(torch.ones(N, 3), draws(N, 4, 9), generator).value == 0
