"""Weighted sums of unit rows, and how they are written and told."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignvl_cli.errors import UsageError
from alignvl_cli.retrieval.queries import combine, told, weighted

ONE, OTHER = np.eye(4, dtype=np.float32)[:2]


def test_a_sum_of_one_part_is_that_part_bit_for_bit():
    unit_E = np.array([0.6, 0.8, 0, 0], dtype=np.float32)
    assert combine([unit_E], [3.0]) is unit_E
    assert np.array_equal(combine([unit_E], [-1.0]), -unit_E)


def test_a_sum_lies_along_the_weighted_sum_and_weights_are_relative():
    assert np.allclose(combine([ONE, OTHER], [1.0, 1e200]), OTHER), "however large a weight is"
    found = combine([ONE, OTHER], [3.0, -4.0])
    assert np.allclose(found, [0.6, -0.8, 0, 0])
    assert found.dtype == np.float32
    assert np.allclose(found, combine([OTHER, ONE], [-0.4, 0.3]))


@pytest.mark.parametrize("weights", [(1.0, -1.0), (0.0, 0.0), (np.nan, 1.0), (np.inf, 1.0)])
def test_a_sum_without_a_direction_is_refused(weights):
    with pytest.raises(UsageError, match="combined query"):
        combine([ONE, ONE], weights)


@pytest.mark.parametrize(
    ("written", "weight", "text"),
    [
        ("2*red car", 2, "red car"),
        (".5*truck", 0.5, "truck"),
        ("1*2*3", 1, "2*3"),
        ("12:30 train", 1, "12:30 train"),
        ("2 red cars", 1, "2 red cars"),
        ("-truck", 1, "-truck"),
        ("*", 1, "*"),
        ("A*", 1, "A*"),
    ],
)
def test_a_weight_is_a_number_and_a_star(written, weight, text):
    assert weighted(written) == (weight, text)


@given(st.text())
def test_any_text_can_be_written_with_a_weight(text):
    assert weighted(f"1*{text}") == (1.0, text.strip())


def test_a_sum_is_told_in_words():
    assert told([(1.0, "red car")]) == "red car"
    assert told([(1.0, "photo.jpg"), (2.0, "at night"), (-0.5, "truck"), (-1.0, "x")]) == (
        "photo.jpg + 2*at night - 0.5*truck - x"
    )
