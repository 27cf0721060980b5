"""FAISS against a plain numpy search, and what it must refuse."""

import numpy as np
import pytest

from alignvl_cli.errors import DataError
from alignvl_cli.retrieval.nearest import AGREEMENT_QUERIES, Agreement, agreement, flat_index, nearest


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


def shares(case: str, share: float, queries: int, draw: np.random.Generator) -> np.ndarray:
    """What each query finds of its first 10: row by row, whole or not at all, or something between."""
    match case:
        case "rows":
            return draw.binomial(10, share, queries) / 10
        case "whole":
            return draw.binomial(1, share, queries).astype(float)
        case _:
            return draw.binomial(10, draw.beta(share, 1 - share, queries)) / 10


@pytest.mark.parametrize("case", ["rows", "between", "whole"])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99, 0.999])
def test_a_new_measurement_is_inside_the_interval_as_often_as_it_says(case, share):
    draw = np.random.default_rng(0)
    inside = 0
    for _ in range(600):
        low, high = Agreement.measured(shares(case, share, 500, draw), 10).interval
        inside += low <= shares(case, share, 500, draw).mean() <= high
    assert inside / 600 >= 0.93
    if share <= 0.9:
        assert inside / 600 <= 0.985, "an interval that holds everything says nothing"


def test_rows_missed_apart_tell_more_than_queries_missed_whole():
    apart, whole = np.tile([0.9, 1.0], 250), np.repeat([0.0, 1.0], [25, 475])
    narrow, wide = (np.ptp(Agreement.measured(share_Q, 10).interval) for share_Q in (apart, whole))
    assert wide > 2.5 * narrow
    assert wide / 2 == pytest.approx(1.96 * np.sqrt(2 * 0.05 * 0.95 / 500), rel=0.05)


def test_the_interval_stays_within_0_and_1_and_is_never_a_point():
    for share in (0.0, 1.0):
        low, high = Agreement.measured(np.full(200, share), 10).interval
        assert 0 <= low < high <= 1
        assert share in (low, high)
    assert np.ptp(Agreement.measured(np.ones(1), 1).interval) > 0.5
