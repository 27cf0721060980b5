"""Closed forms against solutions found another way: a planted rotation, QR and SVD of the data, least squares."""

import numpy as np
import pytest
import torch

from alignvl_cli.align.closed_forms import (
    CLOSED_FORMS,
    CSA_GRID,
    GRID,
    cca,
    moments,
    procrustes,
    rank,
    ridge_regression,
)
from alignvl_cli.settings import Method

PAIRS, D, C = 200, 7, 5


def data(pairs: int = PAIRS) -> tuple[np.ndarray, np.ndarray]:
    """Correlated float32 rows far from the origin."""
    draw = np.random.default_rng(0)
    image = draw.standard_normal((pairs, D)) @ draw.standard_normal((D, D)) + 50
    text = image[:, :C] @ draw.standard_normal((C, C)) + 3 * draw.standard_normal((pairs, C)) - 20
    return image.astype(np.float32), text.astype(np.float32)


def found(image: np.ndarray, text: np.ndarray, block: int = 33):
    return moments(zip(torch.from_numpy(image).split(block), torch.from_numpy(text).split(block), strict=True))


def centred(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return rows - rows.mean(axis=0)


def test_streamed_moments_are_those_of_the_whole():
    image, text = data()
    streamed = found(image, text)
    whole = np.cov(np.hstack([image, text]).astype(np.float64).T, bias=True)
    np.testing.assert_allclose(streamed.image_DD, whole[:D, :D], rtol=1e-9)
    np.testing.assert_allclose(streamed.text_CC, whole[D:, D:], rtol=1e-9)
    np.testing.assert_allclose(streamed.cross_DC, whole[:D, D:], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(streamed.image_mean_D, image.mean(axis=0, dtype=np.float64), rtol=1e-9)


def test_procrustes_recovers_a_planted_rotation():
    image, _ = data()
    rotation, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((D, D)))
    text = centred(image) @ rotation + 4
    ((ridge, maps),) = procrustes(found(image.astype(np.float64), text), D)
    assert ridge is None
    np.testing.assert_allclose(maps.image_KD.T @ maps.text_KC, rotation, atol=1e-8)
    np.testing.assert_allclose(maps.image_KD @ maps.image_KD.T, np.eye(D), atol=1e-9)


def test_cca_correlations_are_those_of_qr_and_svd(monkeypatch):
    image, text = data()
    left, right = (np.linalg.qr(centred(rows))[0] for rows in (image, text))
    wanted = np.linalg.svd(left.T @ right, compute_uv=False)
    monkeypatch.setattr("alignvl_cli.align.closed_forms.GRID", (1e-12,))
    ((_, maps),) = cca(found(image, text), C)
    projected = centred(image) @ maps.image_KD.numpy().T, centred(text) @ maps.text_KC.numpy().T
    correlations = [np.corrcoef(projected[0][:, k], projected[1][:, k])[0, 1] for k in range(C)]
    np.testing.assert_allclose(correlations, wanted, rtol=1e-6)
    # Each canonical variate has variance 1, times the root of its correlation, squared.
    np.testing.assert_allclose(projected[0].var(axis=0), wanted, rtol=1e-6)


def test_ridge_equals_least_squares_with_the_ridge_as_further_rows():
    image, text = data()
    x, y = centred(image), centred(text)
    for ridge, maps in ridge_regression(found(image, text), D):
        added = np.sqrt(PAIRS * ridge * y.var(axis=0).mean()) * np.eye(C)
        wanted, *_ = np.linalg.lstsq(np.vstack([y, added]), np.vstack([x, np.zeros((C, D))]), rcond=None)
        np.testing.assert_allclose(maps.image_KD.T @ maps.text_KC, wanted.T, atol=1e-8)


@pytest.mark.parametrize("method", CLOSED_FORMS)
def test_a_narrow_space_keeps_the_leading_directions(method):
    image, text = data()
    wide, narrow = (dict(CLOSED_FORMS[method](found(image, text), width)) for width in (C, 2))
    assert set(wide) == ({None} if method is Method.procrustes else set(CSA_GRID if method is Method.csa else GRID))
    for ridge, maps in wide.items():
        np.testing.assert_allclose(narrow[ridge].image_KD.abs(), maps.image_KD[:2].abs(), atol=1e-7)
        np.testing.assert_allclose(narrow[ridge].text_KC.abs(), maps.text_KC[:2].abs(), atol=1e-7)


def test_rank_is_that_of_what_varies_together():
    image, text = data()
    assert rank(found(image, text)) == C
    assert rank(found(image, np.repeat(text[:, :1], C, axis=1))) == 1
    assert rank(found(image, np.ones_like(text))) == 0
    with pytest.raises(ValueError, match="no pairs"):
        moments([])
