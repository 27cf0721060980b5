"""Metrics whose answer is known on paper."""

import numpy as np
import pytest

from alignvl_cli.retrieval.metrics import DirectionMetrics, QueryRanks, RetrievalMetrics, direction_metrics, predicted


def ranks(rank: list[int], precision: list[float] | None = None, fold: list[int] | None = None) -> QueryRanks:
    rank_Q = np.array(rank, dtype=np.int64)
    precision_Q = (rank_Q == 0).astype(float) if precision is None else np.array(precision)
    fold_Q = np.zeros(len(rank), np.int64) if fold is None else np.array(fold)
    return QueryRanks(rank_Q, precision_Q, np.arange(len(rank)), [f"image{n}" for n in range(len(rank))], fold_Q)


def test_metrics_of_known_ranks():
    metrics = direction_metrics(ranks([0, 0, 4, 9, 99], [1, 0.5, 0.25, 0, 0]))
    assert metrics.hit_rate == {"R@1": 40.0, "R@5": 60.0, "R@10": 80.0}
    assert metrics.median_rank == 5.0
    assert metrics.mean_rank == (1 + 1 + 5 + 10 + 100) / 5
    assert metrics.mrr == pytest.approx((1 + 1 + 1 / 5 + 1 / 10 + 1 / 100) / 5)
    assert metrics.map_at_r == pytest.approx(35.0)


def test_the_median_of_an_even_number_lies_between():
    assert direction_metrics(ranks([0, 1])).median_rank == 1.5


def test_any_k_is_reported_and_rsum_stays_that_of_1_5_and_10():
    metrics = direction_metrics(ranks([0, 2, 7, 30]), (3, 20))
    assert metrics.hit_rate == {"R@3": 50.0, "R@20": 75.0}
    assert metrics.recall_sum == 25.0 + 50.0 + 75.0


def test_with_folds_every_fold_counts_alike_whatever_its_queries():
    metrics = direction_metrics(ranks([0, 1, 1, 1, 40], fold=[0, 1, 1, 1, 1]))
    assert metrics.hit_rate == {"R@1": 50.0, "R@5": (100 + 75) / 2, "R@10": (100 + 75) / 2}
    assert metrics.median_rank == 1.5
    assert metrics.mean_rank == (1 + (2 + 2 + 2 + 41) / 4) / 2


def test_rsum_of_perfect_ranks_is_600_and_mean_recall_a_percentage():
    perfect, never = direction_metrics(ranks([0] * 7)), direction_metrics(ranks([50] * 7))
    assert RetrievalMetrics(perfect, perfect).rsum == 600.0
    assert RetrievalMetrics(perfect, never).rsum == 300.0
    assert RetrievalMetrics(perfect, never).mean_recall == 50.0


def test_json_has_the_documented_keys():
    direction: DirectionMetrics = direction_metrics(ranks([0, 20]))
    figures = {
        "R@1": 50.0,
        "R@5": 50.0,
        "R@10": 50.0,
        "median_rank": 11.0,
        "mean_rank": 11.0,
        "mrr": pytest.approx((1 + 1 / 21) / 2),
        "mAP@R": 50.0,
    }
    assert RetrievalMetrics(direction, direction).to_json() == {
        "image_to_text": figures,
        "text_to_image": figures,
        "rsum": 300.0,
        "mean_recall": 50.0,
    }


@pytest.mark.parametrize("rank", [[], [0, -1]])
def test_no_queries_and_impossible_ranks_are_a_callers_bug(rank):
    with pytest.raises(ValueError, match="at least one query"):
        direction_metrics(ranks(rank))


@pytest.mark.parametrize(("share", "trials"), [(0.5, 80), (0.93, 400), (0.0, 50), (1.0, 50), (0.999, 1000)])
def test_predicted_shares_are_those_that_a_test_of_two_samples_does_not_tell_apart(share, trials):
    low, high = predicted(share, trials)
    for new in np.linspace(0, 1, 2001):
        pooled = (share + new) / 2
        is_alike = abs(new - share) <= 1.959964 * np.sqrt(2 * pooled * (1 - pooled) / trials) + 1e-12
        assert is_alike == (low - 1e-9 <= new <= high + 1e-9), new
