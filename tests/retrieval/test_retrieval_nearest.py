"""FAISS against a plain numpy search, and what it must refuse."""

import numpy as np
import pytest

from alignvl_cli.errors import DataError
from alignvl_cli.retrieval.nearest import AGREEMENT_QUERIES, agreement, flat_index, nearest


def unit(rows: int, width: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def test_nearest_equals_a_sorted_product():
    gallery, query = unit(300, 16, 0), unit(20, 16, 1)
    score, row = nearest(flat_index(gallery), query, 7)
    expected = np.argsort(-(query @ gallery.T), axis=1)[:, :7]
    assert row.tolist() == expected.tolist()
    np.testing.assert_allclose(score, np.take_along_axis(query @ gallery.T, expected, 1), atol=1e-6)


def test_k_above_the_gallery_gives_the_whole_gallery_and_no_absent_row():
    _, row = nearest(flat_index(unit(3, 8, 0)), unit(2, 8, 1), 10)
    assert sorted(row[0].tolist()) == [0, 1, 2]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_rows_are_refused_on_both_sides(value):
    good, bad = unit(4, 8, 0), unit(4, 8, 1)
    bad[2, 3] = value
    with pytest.raises(DataError, match="gallery embedding 2"):
        flat_index(bad)
    with pytest.raises(DataError, match="query embedding 2"):
        nearest(flat_index(good), bad, 1)


def test_flat_agrees_with_exact_search_on_random_data():
    found = agreement(flat_index(unit(500, 24, 0)), unit(60, 24, 1), unit(500, 24, 0))
    assert (found.k, found.queries, found.share) == (10, 60, 1.0)


def test_agreement_allows_any_order_among_ties():
    same = np.tile(unit(1, 8, 0), (50, 1))
    assert agreement(flat_index(same), same, same).share == 1.0


def test_agreement_sees_an_index_of_something_else():
    found = agreement(flat_index(unit(500, 24, 9)), unit(60, 24, 1), unit(500, 24, 0))
    assert 0 <= found.share < 0.3


def test_agreement_takes_a_bounded_number_of_queries():
    gallery = unit(20, 4, 0)
    assert agreement(flat_index(gallery), unit(AGREEMENT_QUERIES + 50, 4, 1), gallery).queries == AGREEMENT_QUERIES
