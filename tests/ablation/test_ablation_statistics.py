"""The statistics against scipy, against enumeration by hand, and at their limits."""

import itertools

import numpy as np
import pytest
from scipy import stats

from alignvl_cli.ablation.statistics import (
    difference_power,
    equivalence_p,
    equivalence_power,
    holm,
    seeds_for_any_verdict,
    seeds_to_settle,
    sign_flip_floor,
    sign_flip_p,
    t_interval,
)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def test_the_interval_is_scipys(rng):
    value_XS = rng.normal(3, 2, (4, 7))
    found = t_interval(value_XS)
    for value_S, bounds in zip(value_XS, found, strict=True):
        wanted = stats.ttest_1samp(value_S, 0).confidence_interval(0.95)
        assert bounds == pytest.approx([wanted.low, wanted.high])


def test_sign_flips_equal_enumeration_by_hand(rng):
    for seeds in range(2, 11):
        delta_S = rng.normal(0.5, 1, seeds)
        flipped = [
            abs(sum(sign * delta for sign, delta in zip(signs, delta_S, strict=True)))
            for signs in itertools.product((1, -1), repeat=seeds)
        ]
        wanted = np.mean([total >= abs(delta_S.sum()) - 1e-9 for total in flipped])
        assert sign_flip_p(delta_S) == pytest.approx(wanted)


def test_sign_flips_equal_scipys_permutation_test(rng):
    delta_S = rng.normal(0.4, 1, 9)
    wanted = stats.permutation_test(
        (delta_S,), lambda delta, axis=-1: delta.mean(axis=axis), permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_p(delta_S) == pytest.approx(wanted.pvalue)


@pytest.mark.parametrize("seeds", [2, 5, 6, 10, 20])
def test_differences_all_of_one_sign_reach_the_floor_and_not_below(seeds):
    delta_S = np.linspace(1, 2, seeds)
    assert sign_flip_p(delta_S) == pytest.approx(sign_flip_floor(seeds))
    assert sign_flip_p(-delta_S) == pytest.approx(2.0 ** (1 - seeds))
    assert sign_flip_p(np.zeros(seeds)) == 1


def test_equal_differences_tie_whatever_the_rounding():
    assert sign_flip_p(np.full(8, 0.1) * 3) == pytest.approx(sign_flip_floor(8))


def test_many_seeds_are_tested_by_random_flips_that_agree_with_the_t_test(rng):
    delta_XS = rng.normal(0.3, 1, (3, 30))
    assert sign_flip_p(delta_XS) == pytest.approx(stats.ttest_1samp(delta_XS, 0, axis=1).pvalue, abs=0.01)
    assert sign_flip_p(np.ones(30)) == pytest.approx(sign_flip_floor(30), rel=0.01)


def test_stacks_are_tested_one_by_one(rng):
    delta_XXS = rng.normal(0, 1, (2, 3, 6))
    together = sign_flip_p(delta_XXS)
    assert together.shape == (2, 3)
    for index in np.ndindex(2, 3):
        assert together[index] == pytest.approx(float(sign_flip_p(delta_XXS[index])))


def test_holm_on_paper():
    assert holm(np.array([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])
    assert holm(np.array([0.5, 0.9])) == pytest.approx([1.0, 1.0])
    assert holm(np.array([[0.02], [0.3]])) == pytest.approx(np.array([[0.02], [0.3]]))
    stacked = holm(np.array([[0.01, 0.04, 0.03], [0.2, 0.01, 0.01]]))
    assert stacked == pytest.approx(np.array([[0.03, 0.06, 0.06], [0.2, 0.03, 0.03]]))


def test_equivalence_is_the_larger_of_scipys_two_tests(rng):
    for mean in (-0.4, 0.0, 0.7, 3.0):
        delta_S = rng.normal(mean, 0.5, 8)
        wanted = max(
            stats.ttest_1samp(delta_S, -1, alternative="greater").pvalue,
            stats.ttest_1samp(delta_S, 1, alternative="less").pvalue,
        )
        assert equivalence_p(delta_S, 1.0) == pytest.approx(wanted)


def test_identical_arms_are_equivalent_and_constant_ones_beyond_the_margin_are_not():
    assert equivalence_p(np.zeros(5), 1.0) == 0
    assert equivalence_p(np.full(5, 2.0), 1.0) == 1


def test_the_fewest_seeds_are_those_of_the_floor():
    assert {m: seeds_for_any_verdict(m) for m in (1, 5, 6, 7, 30)} == {1: 6, 5: 8, 6: 8, 7: 9, 30: 11}


def test_power_is_the_share_of_simulated_studies_that_find_the_difference(rng):
    seeds, mean, sd = 12, 1.0, 1.0
    delta_XS = rng.normal(mean, sd, (1500, seeds))
    share = (sign_flip_p(delta_XS) <= 0.05).mean()
    assert difference_power(mean, sd, np.array([seeds]), 1)[0] == pytest.approx(share, abs=0.03)
    same = (equivalence_p(delta_XS - mean, 0.9) <= 0.05).mean()
    assert equivalence_power(0.0, sd, np.array([seeds]), 0.9, 1)[0] == pytest.approx(same, abs=0.05)


def test_power_is_none_below_the_floor_and_grows_with_seeds():
    power_N = difference_power(10.0, 1.0, np.array([5, 6, 8, 9]), 7)
    assert list(power_N > 0.99) == [False, False, False, True]
    assert list(power_N[:3]) == [0, 0, 0]
    more_N = difference_power(0.5, 1.0, np.arange(10, 400), 3)
    assert (np.diff(more_N) >= -1e-4).all()  # where scipy gives up, 1 stands for 0.9999
    assert more_N[-1] > 0.999


def test_seeds_to_settle_fall_with_the_difference_and_have_an_end():
    clear = seeds_to_settle(np.array([2.0, 3.0, 2.5, 2.2]), margin=1.0, contrasts=1)
    faint = seeds_to_settle(np.array([1.0, -0.5, 2.5, 1.2]), margin=0.1, contrasts=1)
    assert clear == seeds_for_any_verdict(1)
    assert clear < faint < 200
    assert seeds_to_settle(np.array([0.1, -0.1, 5.0, -5.0]), margin=0.001, contrasts=1) is None
    assert seeds_to_settle(np.array([0.2, -0.2, 0.1, -0.1]), margin=1.0, contrasts=1) == 5  # equivalence, soon
    assert seeds_to_settle(np.array([1.0, 1.0]), margin=0.5, contrasts=5) == 8
