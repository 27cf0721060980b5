"""Statistics of studies over several cells: one family of all contrasts, and means over sets."""

import numpy as np
import pytest

from alignvl_cli.ablation.statistics import (
    LEVEL,
    equivalence_p,
    holm,
    max_t,
    random_effects,
    sign_flip_floor,
    sign_flip_p,
)


def luck(contrasts, seeds, seed=0):
    return np.random.default_rng(seed).standard_normal((contrasts, seeds))


def test_one_contrast_alone_has_the_p_of_the_sign_flip_test():
    for number in range(5):
        delta_CS = luck(1, 7, number) + number / 2
        assert max_t(delta_CS) == pytest.approx(sign_flip_p(delta_CS))


def test_equal_contrasts_are_one():
    delta_CS = np.repeat(luck(1, 7) + 0.5, 30, axis=0) * np.arange(1, 31)[:, None]
    assert max_t(delta_CS) == pytest.approx(np.repeat(sign_flip_p(delta_CS[:1]), 30))


def test_the_floor_is_that_of_one_contrast_however_many_there_are():
    delta_CS = luck(108, 8)
    delta_CS[5] = 5 + luck(1, 8, 1)[0] / 10
    assert holm(sign_flip_p(delta_CS))[5] > LEVEL
    assert max_t(delta_CS)[5] == sign_flip_floor(8) <= LEVEL


def test_no_p_is_below_that_of_the_contrast_alone_and_order_and_scale_do_not_matter():
    delta_CS = luck(12, 8) + np.linspace(0, 2, 12)[:, None]
    found_C = max_t(delta_CS)
    assert (found_C >= sign_flip_p(delta_CS) - 1e-12).all()
    order_C = np.random.default_rng(1).permutation(12)
    assert max_t(delta_CS[order_C] * 7.5) == pytest.approx(found_C[order_C])
    assert max_t(-delta_CS) == pytest.approx(found_C)


def test_differences_that_are_all_alike_or_nothing():
    delta_CS = np.array([[2.0] * 8, [0.0] * 8, luck(1, 8)[0]])
    found_C = max_t(delta_CS)
    assert found_C[0] == sign_flip_floor(8)
    assert found_C[1] == 1


def test_a_seed_that_a_contrast_lacks_is_in_none_of_its_figures():
    delta_CS = np.array([[3.0, 3.1, 2.9, 3.0, 3.05, 2.95, np.nan, np.nan]])
    assert max_t(delta_CS)[0] == pytest.approx(sign_flip_floor(6))
    many_CS = np.vstack([luck(10, 8), delta_CS])
    assert sign_flip_floor(6) <= max_t(many_CS)[10] <= LEVEL


def test_no_difference_at_all_is_found_in_five_of_a_hundred_studies():
    found = [(max_t(luck(20, 8, number)) <= LEVEL).any() for number in range(400)]
    assert np.mean(found) == pytest.approx(0.05, abs=0.03)


def test_sets_of_equal_error_have_the_plain_mean_and_the_spread_beyond_their_error():
    effect_K = np.array([1.0, 2.0, 6.0])
    found = random_effects(effect_K, np.full(3, 0.5))
    assert found.mean == pytest.approx(3)
    assert found.tau**2 == pytest.approx(effect_K.var(ddof=1) - 0.5)
    assert found.error == pytest.approx((effect_K.var(ddof=1) / 3) ** 0.5)
    assert found.i2 == pytest.approx(1 - 0.5 / effect_K.var(ddof=1))
    low, high = found.ci95
    assert (high - low) / 2 == pytest.approx(4.3027 * found.error, rel=1e-4)
    assert found.equivalence_p(9.0) == pytest.approx(float(equivalence_p(effect_K, 9.0)))


def test_sets_that_differ_by_less_than_their_errors_are_one_and_no_surer_than_these_say():
    found = random_effects(np.array([1.0, 1.1]), np.array([1.0, 3.0]))
    assert (found.tau, found.i2) == (0, 0)
    assert found.mean == pytest.approx((1.0 / 1 + 1.1 / 3) / (1 + 1 / 3))
    assert found.error == pytest.approx((1 / (1 + 1 / 3)) ** 0.5)


def test_sets_without_any_error_are_pooled_too():
    found = random_effects(np.array([1.0, 3.0]), np.zeros(2))
    assert (found.mean, found.tau) == (pytest.approx(2), pytest.approx(2**0.5))
    alike = random_effects(np.array([1.0, 1.0]), np.zeros(2))
    assert (alike.mean, alike.tau, alike.i2) == (1, 0, 0)


@pytest.mark.parametrize("tau", [0.0, 2.0])
def test_the_interval_holds_the_mean_of_the_sets_that_there_are_to_draw_from(tau):
    rng = np.random.default_rng(0)
    held = []
    for _ in range(400):
        spread_K = rng.uniform(0.5, 2, 4)
        delta_KS = tau * rng.standard_normal((4, 1)) + spread_K[:, None] * rng.standard_normal((4, 8))
        low, high = random_effects(delta_KS.mean(axis=1), delta_KS.var(axis=1, ddof=1) / 8).ci95
        held.append(low <= 0 <= high)
    assert np.mean(held) > 0.92
