"""Main effects and interactions, recovered from arms made of known ones."""

import itertools

import numpy as np
import pytest

from alignvl_cli.ablation.statistics import effects

FACTORS = {"mixing": ("no-mix", "mix"), "noise": ("no-rp", "rp"), "smoothing": ("no-es", "es")}


def test_planted_effects_come_back():
    value_A = np.array(
        [30 + 5 * mix - 2 * rp + 1 * es + 4 * mix * rp for mix, rp, es in itertools.product((0, 1), repeat=3)]
    )
    found = {effect.name: effect.weight_A @ value_A for effect in effects(FACTORS)}
    assert found == pytest.approx(
        {
            "mixing": 5 + 4 / 2,  # averaged over the noise, on and off
            "noise": -2 + 4 / 2,
            "smoothing": 1,
            "mixing x noise": 4,
            "mixing x smoothing": 0,
            "noise x smoothing": 0,
            "mixing x noise x smoothing": 0,
        }
    )


def test_a_factor_of_four_levels_has_three_effects_each_against_the_first():
    factors = {"corruption": ("0 %", "10 %", "20 %", "40 %"), "smoothing": ("no-es", "es")}
    value_A = np.array([[50, 52], [45, 48], [40, 46], [30, 42]]).ravel()
    found = {effect.name: effect.weight_A @ value_A for effect in effects(factors)}
    assert len(found) == len(value_A) - 1
    assert found["corruption 40 %"] == pytest.approx(36 - 51)
    assert found["smoothing"] == pytest.approx((2 + 3 + 6 + 12) / 4)
    assert found["corruption 40 % x smoothing"] == pytest.approx(12 - 2)


def test_every_effect_ignores_a_shift_of_all_arms_and_says_what_it_means():
    for effect in effects(FACTORS):
        assert effect.weight_A.sum() == pytest.approx(0)
    meanings = {effect.name: effect.meaning for effect in effects(FACTORS)}
    assert meanings["mixing"] == "mix against no-mix"
    assert meanings["mixing x noise"] == "how much mix against no-mix changes with rp against no-rp"
