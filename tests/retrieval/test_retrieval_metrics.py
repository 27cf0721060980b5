"""Metrics whose answer is known on paper."""

import numpy as np
import pytest

from alignvl_cli.retrieval.metrics import RetrievalMetrics, direction_metrics


def test_metrics_of_known_ranks():
    metrics = direction_metrics(np.array([0, 0, 4, 9, 99]))
    assert metrics.hit_rate == {"R@1": 40.0, "R@5": 60.0, "R@10": 80.0}
    assert metrics.median_rank == 5.0
    assert metrics.mrr == pytest.approx((1 + 1 + 1 / 5 + 1 / 10 + 1 / 100) / 5)


def test_the_median_of_an_even_number_lies_between():
    assert direction_metrics(np.array([0, 1])).median_rank == 1.5


def test_rsum_of_perfect_ranks_is_600_and_mean_recall_a_percentage():
    perfect = direction_metrics(np.zeros(7, dtype=np.int64))
    never = direction_metrics(np.full(7, 50))
    assert RetrievalMetrics(perfect, perfect).rsum == 600.0
    assert RetrievalMetrics(perfect, never).rsum == 300.0
    assert RetrievalMetrics(perfect, never).mean_recall == 50.0


def test_json_has_the_documented_keys():
    direction = direction_metrics(np.array([0, 20]))
    assert RetrievalMetrics(direction, direction).to_json() == {
        "image_to_text": {
            "R@1": 50.0,
            "R@5": 50.0,
            "R@10": 50.0,
            "median_rank": 11.0,
            "mrr": pytest.approx((1 + 1 / 21) / 2),
        },
        "text_to_image": {
            "R@1": 50.0,
            "R@5": 50.0,
            "R@10": 50.0,
            "median_rank": 11.0,
            "mrr": pytest.approx((1 + 1 / 21) / 2),
        },
        "rsum": 300.0,
        "mean_recall": 50.0,
    }


@pytest.mark.parametrize("ranks", [[], [0, -1]])
def test_no_queries_and_impossible_ranks_are_a_callers_bug(ranks):
    with pytest.raises(ValueError, match="at least one query"):
        direction_metrics(np.array(ranks, dtype=np.int64))
