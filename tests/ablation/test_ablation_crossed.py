"""The crossed bootstrap: limits on paper, the hits it starts from, and its coverage in small."""

import numpy as np
import pytest

from alignvl_cli.ablation.statistics import ImageHits, crossed_interval, image_resamples, t_interval
from alignvl_cli.retrieval.metrics import QueryRanks, RetrievalMetrics, direction_metrics


def hits(rng, images=30, captions=3):
    image_of_caption = np.repeat(np.arange(images), captions)
    ranks = [rng.integers(0, 15, images), rng.integers(0, 15, images * captions)]
    return ImageHits.of([np.arange(images), image_of_caption], ranks, images), ranks


def test_mean_recall_is_that_of_the_evaluation():
    found, (by_image, by_text) = hits(np.random.default_rng(0))

    def metrics(rank_Q):
        count = len(rank_Q)
        return direction_metrics(
            QueryRanks(rank_Q, np.zeros(count), np.arange(count), [""] * count, np.zeros(count, int))
        )

    assert found.value == pytest.approx(RetrievalMetrics(metrics(by_image), metrics(by_text)).mean_recall)


def test_resamples_of_equal_runs_are_equal_and_centre_on_the_measured_value():
    rng = np.random.default_rng(1)
    one, other = hits(rng)[0], hits(rng)[0]
    recall_RB = image_resamples([one, one, other])
    assert np.array_equal(recall_RB[0], recall_RB[1])  # the same draws for all runs
    assert not np.array_equal(recall_RB[0], recall_RB[2])
    assert recall_RB[0].mean() == pytest.approx(one.value, abs=0.3)
    assert recall_RB.std(axis=1).min() > 0.5


def test_the_spread_over_images_is_that_of_the_mean():
    rng = np.random.default_rng(2)
    images = 200
    ranks = rng.choice([0, 99], images)
    run = ImageHits.of([np.arange(images)] * 2, [ranks, ranks], images)
    wanted = np.std(100.0 * (ranks == 0)) / images**0.5
    assert image_resamples([run])[0].std() == pytest.approx(wanted, rel=0.06)


def test_runs_asked_other_queries_are_refused():
    rng = np.random.default_rng(3)
    with pytest.raises(ValueError, match="different queries"):
        image_resamples([hits(rng)[0], hits(rng, captions=2)[0]])


def test_without_a_difference_between_images_it_is_the_t_interval():
    seed_S = np.array([1.0, 2.0, 4.0, 3.5, 2.2])
    flat_SB = np.repeat(seed_S[:, None], 2000, axis=1)
    low, high = crossed_interval(seed_S.mean(), seed_S, flat_SB, images=400)
    assert (low, high) == pytest.approx(tuple(t_interval(seed_S)), rel=0.05)


def test_it_is_never_narrower_than_the_interval_for_these_images_alone():
    rng = np.random.default_rng(6)
    for seeds in (2, 3, 8):
        delta_SI = rng.normal(0, 5, (seeds, 1)) + rng.normal(0, 20, (seeds, 40))
        times_BI = rng.multinomial(40, np.full(40, 1 / 40), 400) / 40
        seed_S = delta_SI.mean(axis=1)
        crossed = np.array(crossed_interval(seed_S.mean(), seed_S, delta_SI @ times_BI.T, images=40))
        alone = t_interval(seed_S)
        assert crossed[0] <= alone[0] + 1e-9
        assert crossed[1] >= alone[1] - 1e-9


def interval_of(delta_SI):
    """Of a difference by seed and image."""
    images = delta_SI.shape[1]
    times_BI = np.random.default_rng(7).multinomial(images, np.full(images, 1 / images), 2000) / images
    return crossed_interval(delta_SI.mean(), delta_SI.mean(axis=1), delta_SI @ times_BI.T, images)


def test_seeds_that_agree_by_chance_still_have_the_spread_of_the_images():
    rng = np.random.default_rng(8)
    delta_SI = rng.normal(0, 20, (2, 100))
    delta_SI -= delta_SI.mean(axis=1, keepdims=True)
    low, high = interval_of(delta_SI)
    of_images = delta_SI.mean(axis=0).std() / 100**0.5
    assert 1.96 * of_images < high < 13 * of_images  # Student's t of one degree of freedom is 12.7
    assert low == pytest.approx(-high)


def test_one_seed_of_three_that_differs_on_a_few_images():
    delta_SI = np.zeros((3, 400))  # the other two kept the start that the reference kept
    delta_SI[2, :69] = np.random.default_rng(9).normal(0, 12, 69)
    delta_SI[2] += 0.03 - delta_SI[2].mean()
    low, high = interval_of(delta_SI)
    assert -1 < low < 0 < high < 1


def test_no_spread_at_all_is_a_point():
    assert crossed_interval(2.0, np.full(4, 2.0), np.full((4, 50), 2.0), images=9) == (2.0, 2.0)


def test_it_covers_the_truth():
    rng = np.random.default_rng(4)
    seeds, images, studies = 8, 60, 300
    covered = 0
    for _ in range(studies):
        delta_SI = rng.normal(0, 20, images) + rng.normal(0, 2, (seeds, 1)) + rng.normal(0, 20, (seeds, images))
        times_BI = rng.multinomial(images, np.full(images, 1 / images), 300) / images
        low, high = crossed_interval(delta_SI.mean(), delta_SI.mean(axis=1), delta_SI @ times_BI.T, images)
        covered += low <= 0 <= high
    assert 0.92 < covered / studies < 0.99
