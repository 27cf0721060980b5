"""Protocols: what is asked for, how it is printed, and folds against evaluations of their own."""

import numpy as np
import pytest
from support.fake_runs import make_run
from support.fakes import make_store

from alignvl_cli.align.ranks import TIE as EXACT_TIE
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.retrieval.evaluate import compare, evaluate
from alignvl_cli.retrieval.metrics import TIE, Protocol, cut_folds
from alignvl_cli.store.reader import SplitRows, open_store
from alignvl_cli.training.run_folder import load_run


@pytest.mark.parametrize("typed", ["", "0", "1,x", "1,,5", "5,5", "-1", "1.5"])
def test_a_list_of_k_that_is_none_is_refused(typed):
    with pytest.raises(UsageError, match="--recall-k"):
        Protocol.parse(typed)


def test_folds_below_one_are_refused():
    with pytest.raises(UsageError, match="--folds"):
        Protocol(folds=0)


def test_the_words_say_every_departure():
    assert "fold" not in Protocol().text
    assert "IDENTICAL" not in Protocol().text
    assert "5 folds" in Protocol(folds=5).text
    assert "IDENTICAL HITS" in Protocol(identical_hits=True).text
    assert f"{EXACT_TIE:g}" == TIE


def test_folds_are_consecutive_disjoint_and_nearly_equal():
    rows = SplitRows(np.arange(11) + 50, np.arange(22) + 90, np.arange(22) // 2)
    folds = cut_folds(rows, 3)
    assert [len(fold.image_I) for fold in folds] == [4, 4, 3]
    assert np.concatenate([fold.image_I for fold in folds]).tolist() == list(range(11))
    assert np.concatenate([fold.text_T for fold in folds]).tolist() == list(range(22))
    for fold in folds:
        assert (fold.image_I[fold.text_image_T] == rows.text_image[fold.text_T]).all()


def test_more_folds_than_images_and_folds_without_captions_are_refused():
    with pytest.raises(DataError, match="only 4 images"):
        cut_folds(SplitRows(np.arange(4), np.arange(4), np.arange(4)), 5)
    with pytest.raises(DataError, match="no caption"):
        cut_folds(SplitRows(np.arange(4), np.arange(2), np.array([0, 1])), 2)


def test_folds_equal_the_mean_over_evaluations_of_their_own(tmp_path):
    latent = np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)
    text = np.repeat(latent, 3, axis=0) + 1.5 * np.random.default_rng(1).standard_normal((180, 8)).astype(np.float32)
    shared = {"images": 60, "captions_per_image": (3,), "image_latent": latent, "text_latent": text}
    whole = open_store(make_store(tmp_path / "whole.h5", splits=["test"] * 60, **shared))
    parts = [f"part{n // 20}" for n in range(60)]
    apart = open_store(make_store(tmp_path / "apart.h5", splits=parts, **shared))
    run = load_run(make_run(tmp_path / "run", whole))
    found = evaluate(run, whole, "test", protocol=Protocol(folds=3, recall_at=(1, 3)))
    single = [evaluate(run, apart, f"part{n}", protocol=Protocol(recall_at=(1, 3))).metrics for n in range(3)]
    assert found.metrics.rsum == pytest.approx(np.mean([metrics.rsum for metrics in single]))
    for direction in ("image_to_text", "text_to_image"):
        mine = getattr(found.metrics, direction).to_json()
        for name, figure in mine.items():
            assert figure == pytest.approx(np.mean([getattr(metrics, direction).to_json()[name] for metrics in single]))
    assert found.to_json()["folds"] == 3
    assert len(found.image_to_text.rank_Q) == 60


def test_intervals_of_several_runs_and_of_their_differences(tmp_path):
    store = open_store(make_store(tmp_path / "s.h5", images=80, noise=2.0, splits=["test"] * 80))
    runs = [load_run(make_run(tmp_path / f"run{seed}", store, seed=seed, embed_dim=16)) for seed in (1, 2)]
    found = compare([evaluate(run, store, "test", bootstrap=True) for run in runs]).to_json()
    assert found["difference_to_first_ci95"][0] is None
    low, high = found["difference_to_first_ci95"][1]["rsum"]
    first, second = (result["metrics"]["rsum"] for result in found["results"])
    assert low <= second - first <= high
    for result in found["results"]:
        low, high = result["ci95"]["image_to_text"]["R@5"]
        assert low <= result["metrics"]["image_to_text"]["R@5"] <= high
        assert set(result["ci95"]["text_to_image"]) == {"R@1", "R@5", "R@10", "mean_rank", "mrr", "mAP@R"}
