"""Neighbours and places of vectors."""

import sys

import numpy as np
import pytest

from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.retrieval.layout import neighbours, principal_axes, umap, umap_layout


def unit(*shape: int) -> np.ndarray:
    rows = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_neighbours_are_the_nearest_others_and_never_oneself():
    unit_NE = unit(40, 6)
    sim_NN = unit_NE @ unit_NE.T
    np.fill_diagonal(sim_NN, -np.inf)
    cosine_NK, row_NK = neighbours(unit_NE, 5)
    assert (row_NK == np.argsort(-sim_NN, axis=1)[:, :5]).all()
    assert np.allclose(cosine_NK, -np.sort(-sim_NN, axis=1)[:, :5], atol=1e-6)


def test_among_more_copies_than_neighbours_nobody_is_his_own():
    unit_NE = np.concatenate([np.tile(unit(1, 6), (30, 1)), unit(10, 6)])
    cosine_NK, row_NK = neighbours(unit_NE, 4)
    assert not (row_NK == np.arange(40)[:, None]).any()
    assert np.allclose(cosine_NK[:30], 1)
    assert all(len(set(row_K)) == 4 for row_K in row_NK.tolist())


def test_few_rows_have_few_neighbours_and_too_few_no_map():
    assert neighbours(unit(4, 3), 15)[1].shape == (4, 3)
    with pytest.raises(DataError, match="at least 4"):
        neighbours(unit(3, 3), 15)


def test_the_principal_axes_are_those_of_the_spread_whatever_its_order():
    rows_NE = np.random.default_rng(1).standard_normal((200, 3)).astype(np.float32) * [1, 9, 4]
    axes_N2 = principal_axes(rows_NE)
    assert np.abs(np.corrcoef(axes_N2[:, 0], rows_NE[:, 1])[0, 1]) > 0.99
    assert np.abs(np.corrcoef(axes_N2[:, 1], rows_NE[:, 2])[0, 1]) > 0.99
    order = np.random.default_rng(2).permutation(200)
    assert np.allclose(principal_axes(rows_NE[order]), axes_N2[order], atol=1e-4)


def test_without_umap_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UsageError, match=r"alignvl\[map\]"):
        umap()


@pytest.mark.slow
def test_umap_keeps_groups_apart_and_repeats_itself():
    pytest.importorskip("umap")
    centre_GE = np.repeat(np.eye(4, dtype=np.float32), 30, axis=0)
    unit_NE = centre_GE + 0.05 * unit(120, 4)
    unit_NE /= np.linalg.norm(unit_NE, axis=1, keepdims=True)
    near = neighbours(unit_NE, 10)
    place_N2 = umap_layout(unit_NE, *near, seed=3)
    assert (umap_layout(unit_NE, *near, seed=3) == place_N2).all()
    assert not np.allclose(umap_layout(unit_NE, *near, seed=4), place_N2)
    apart_NN = np.linalg.norm(place_N2[:, None] - place_N2[None], axis=2)
    same_NN = np.arange(120)[:, None] // 30 == np.arange(120) // 30
    assert apart_NN[same_NN].max() < apart_NN[~same_NN].min()
