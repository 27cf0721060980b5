"""Intervals against theory and against a plain loop."""

import numpy as np
import pytest

from alignvl_cli.retrieval import metrics as metrics_module
from alignvl_cli.retrieval.metrics import QueryRanks, RetrievalMetrics, direction_metrics, resample

KS = (1, 5, 10)


def queries(rank_Q: np.ndarray, image_Q: np.ndarray, fold_Q: np.ndarray | None = None) -> QueryRanks:
    fold_Q = np.zeros(len(rank_Q), np.int64) if fold_Q is None else fold_Q
    return QueryRanks(rank_Q, (rank_Q == 0) * 1.0, np.arange(len(rank_Q)), [f"i{n}" for n in image_Q], fold_Q)


def drawn(images: int, seed: int, captions: int = 3) -> tuple[QueryRanks, QueryRanks]:
    """Ranks in which the captions of one image share their luck."""
    draw = np.random.default_rng(seed)
    luck_I = draw.geometric(draw.uniform(0.05, 0.6, images)) - 1
    image_T = np.repeat(np.arange(images), captions)
    return queries(luck_I, np.arange(images)), queries(luck_I[image_T] + draw.integers(0, 3, len(image_T)), image_T)


def test_the_width_is_that_of_the_standard_error():
    by_image, by_text = drawn(1000, 0)
    share = (by_image.rank_Q < 1).mean()
    low, high = resample(by_image, by_text, KS).ci95()["image_to_text"]["R@1"]
    assert high - low == pytest.approx(2 * 1.96 * 100 * np.sqrt(share * (1 - share) / 1000), rel=0.06)
    assert (low + high) / 2 == pytest.approx(100 * share, abs=0.3)


def test_captions_of_one_image_move_together():
    image_T = np.repeat(np.arange(400), 5)
    rank_I = np.random.default_rng(1).integers(0, 2, 400)
    apart = queries(rank_I[image_T], np.arange(2000)), queries(rank_I[image_T], np.arange(2000))
    together = queries(rank_I, np.arange(400)), queries(rank_I[image_T], image_T)
    width = {
        name: np.ptp(resample(*ranks, KS).ci95()["text_to_image"]["R@1"])
        for name, ranks in (("apart", apart), ("together", together))
    }
    assert width["together"] / width["apart"] == pytest.approx(np.sqrt(5), rel=0.1)


def test_every_resample_is_the_metric_of_the_resampled_queries(monkeypatch):
    monkeypatch.setattr(metrics_module, "RESAMPLES", 7)
    by_image, by_text = drawn(12, 3)
    found = resample(by_image, by_text, KS)
    ids = np.unique(by_image.id_Q)
    times_SI = np.random.default_rng(metrics_module.SEED).multinomial(12, np.full(12, 1 / 12), 7)
    for number, times_I in enumerate(times_SI):
        chosen = [identity for identity, times in zip(ids, times_I, strict=True) for _ in range(times)]
        metrics = RetrievalMetrics(
            *(
                direction_metrics(
                    queries(
                        np.array([r for c in chosen for r, i in zip(q.rank_Q, q.id_Q, strict=True) if i == c]),
                        np.array([0 for c in chosen for i in q.id_Q if i == c]),
                    )
                )
                for q in (by_image, by_text)
            )
        )
        assert found.rsum_S[number] == pytest.approx(metrics.rsum)
        assert found.directions["text_to_image"]["R@5"][number] == pytest.approx(metrics.text_to_image.hit_rate["R@5"])
        assert found.directions["image_to_text"]["mrr"][number] == pytest.approx(metrics.image_to_text.mrr)


def test_chunks_do_not_change_the_draws(monkeypatch):
    ranks = drawn(50, 4)
    whole = resample(*ranks, KS).rsum_S
    monkeypatch.setattr(metrics_module, "CHUNK_ELEMENTS", 50 * 13)
    assert resample(*ranks, KS).rsum_S.tolist() == whole.tolist()


def test_a_run_differs_from_itself_by_nothing_and_pairing_narrows_the_interval():
    by_image, by_text = drawn(300, 5)
    better = queries(np.maximum(by_image.rank_Q - 1, 0), np.arange(300)), by_text
    first, second = resample(by_image, by_text, KS), resample(*better, KS)
    assert first.less(first).ci95()["rsum"] == [0.0, 0.0]
    low, high = second.less(first).ci95()["rsum"]
    assert 0 < low < high
    assert high - low < 0.5 * np.ptp(second.ci95()["rsum"])
    assert second.less(first).ci95()["text_to_image"]["R@1"] == [0.0, 0.0]


def test_folds_are_resampled_apart_and_count_alike():
    fold_I = np.repeat([0, 1], [10, 40])
    rank_I = np.where(fold_I == 0, 0, 99)
    ranks = queries(rank_I, np.arange(50), fold_I), queries(rank_I, np.arange(50), fold_I)
    assert resample(*ranks, KS).ci95()["image_to_text"]["R@1"] == [50.0, 50.0]


@pytest.mark.slow
def test_intervals_cover_what_they_claim():
    """Of 200 samples from one population, about 95 % of the intervals hold its R@1."""
    covered = 0
    for seed in range(200):
        by_image, by_text = drawn(150, 1000 + seed)
        low, high = resample(by_image, by_text, (1,)).ci95()["image_to_text"]["R@1"]
        covered += low <= 100 * 0.325 <= high  # a hit's chance is the mean of U(0.05, 0.6)
    assert 0.9 <= covered / 200 <= 0.99
