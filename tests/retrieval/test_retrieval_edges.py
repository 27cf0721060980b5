"""Degenerate data and runs: every report at once gives finite, honest figures, or one clear error; search too."""

import json

import numpy as np
import pytest
from support.fake_runs import make_run
from support.fakes import make_store

from alignvl_cli.errors import DataError
from alignvl_cli.retrieval.dual_encoder import DualEncoder
from alignvl_cli.retrieval.evaluate import evaluate
from alignvl_cli.retrieval.index import build_index, open_index
from alignvl_cli.retrieval.metrics import Protocol
from alignvl_cli.retrieval.search import search
from alignvl_cli.settings import Gallery, HubnessReport
from alignvl_cli.store.reader import open_store
from alignvl_cli.training.run_folder import load_run

TRAIN_VAL = ["train"] * 6 + ["val"] * 4
BOTH = ("image_to_text", "text_to_image")


def parts(folder, tested: int, counts: list[int], run: dict | None = None, **store):
    """A run, and a store of 6 training images, 4 validation images, and `tested` test images with `counts` captions."""
    splits = [*TRAIN_VAL, *["test"] * tested]
    per_image = [1] * len(TRAIN_VAL) + counts
    opened = open_store(
        make_store(folder / "s.h5", images=len(splits), splits=splits, captions_per_image=per_image, **store)
    )
    return load_run(make_run(folder / "run", opened, **(run or {}))), opened


def every_report(run, store) -> dict:
    """The evaluation as strict JSON, with intervals, calibration and a hub correction."""
    found = evaluate(run, store, "test", bootstrap=True, calibration=True, hubs=HubnessReport.nnn)
    return json.loads(json.dumps(found.to_json(), allow_nan=False))


def test_one_image_and_one_caption_are_certain_and_said_to_be(tmp_path):
    found = every_report(*parts(tmp_path, 1, [1]))
    assert found["metrics"]["rsum"] == 600.0
    assert found["ci95"]["rsum"] == [600.0, 600.0]
    assert found["calibration"]["raw"]["text_to_image"]["confidence"] == 1.0
    assert found["hubness"]["occurrence"]["image_to_text"]["skewness"] is None
    assert any("cannot miss" in warning for warning in found["warnings"])


def test_one_caption_among_many_images_is_one_query_each_way(tmp_path):
    found = every_report(*parts(tmp_path, 20, [0] * 7 + [1] + [0] * 12, run={"seed": 1, "embed_dim": 3}))
    assert found["queries"] == {"image_to_text": 1, "text_to_image": 1}
    assert found["metrics"]["image_to_text"]["R@1"] == 100.0
    assert any("0 wrong candidates" in warning for warning in found["warnings"])
    assert found["calibration"]["raw"]["text_to_image"]["confidence"] < 1
    assert found["calibration"]["raw"]["image_to_text"]["confidence"] == 1.0


def test_a_collapsed_run_is_never_right_and_as_unsure_as_can_be(tmp_path):
    found = every_report(*parts(tmp_path, 20, [2] * 20, run={"collapsed": True}))
    assert found["metrics"]["rsum"] == 0.0
    assert [found["metrics"][direction]["mAP@R"] for direction in BOTH] == [0.0, 0.0]
    for direction in BOTH:
        for state in ("raw", "fitted"):
            judged = found["calibration"][state][direction]
            assert (judged["accuracy"], judged["auroc"]) == (0.0, None)
            assert judged["confidence"] == pytest.approx(1 / 20)
    assert found["hubness"]["corrected"]["metrics"]["rsum"] == 0.0
    assert found["index"]["agreement_at_10"] == 1.0


def test_zero_latents_stay_zero_and_lose(tmp_path):
    latent = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)
    latent[[0, 7, 12, 25]] = 0
    run, store = parts(tmp_path, 20, [1] * 20, image_latent=latent, text_latent=latent)
    found = evaluate(run, store, "test", bootstrap=True, calibration=True, hubs=HubnessReport.nnn)
    json.dumps(found.to_json(), allow_nan=False)
    lost = [2, 15]
    for ranks in (found.image_to_text.rank_Q, found.text_to_image.rank_Q):
        assert np.flatnonzero(ranks).tolist() == lost
        assert ranks[lost].tolist() == [19, 19]


def test_captions_that_are_all_the_same_text_cannot_be_told_apart(tmp_path):
    latent = np.random.default_rng(0).standard_normal((18, 8)).astype(np.float32)
    same = np.tile(latent[:1], (18, 1))
    run, store = parts(tmp_path, 8, [1] * 8, image_latent=latent, text_latent=same, captions=["the same"] * 18)
    found = every_report(run, store)
    assert found["repeated_captions"] == 7
    assert found["metrics"]["image_to_text"]["R@1"] == 0.0
    assert found["metrics"]["text_to_image"]["R@1"] == pytest.approx(100 / 8), "all ask for one image"
    as_hits = evaluate(run, store, "test", protocol=Protocol(identical_hits=True)).metrics
    assert (as_hits.image_to_text.hit_rate["R@1"], as_hits.text_to_image.hit_rate["R@1"]) == (100.0, 100.0)


def test_k_above_the_gallery_finds_everything_and_says_so(tmp_path):
    run, store = parts(tmp_path, 5, [1] * 5, run={"seed": 1, "embed_dim": 2})
    found = evaluate(run, store, "test", protocol=Protocol(recall_at=(1, 50)))
    for direction in BOTH:
        assert getattr(found.metrics, direction).hit_rate["R@50"] == 100.0
    assert any("R@50 cannot miss" in warning for warning in found.warnings)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_adapters_that_are_not_finite_are_an_error_and_never_a_figure(tmp_path, value):
    run, store = parts(tmp_path, 5, [1] * 5)
    run.adapters.image.body[0].bias.data[3] = value
    with pytest.raises(DataError, match="NaN or infinite"):
        evaluate(run, store, "test")
    with pytest.raises(DataError, match="NaN or infinite"):
        build_index(run, store, "all", tmp_path / "index")
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("collapsed", [True, False])
def test_search_in_a_gallery_of_one(tmp_path, collapsed):
    run, store = parts(tmp_path, 1, [1], run={"collapsed": collapsed})
    build_index(run, store, "test", tmp_path / "index")
    index, encoder = open_index(tmp_path / "index"), DualEncoder(run, "cpu")
    asked = encoder.project_text(np.zeros((2, 32), dtype=np.float32))
    for gallery in Gallery:
        found = search(index, encoder, asked, k=10, of=gallery)
        assert [len(hits) for hits in found] == [1, 1]
        assert found[0][0].score == pytest.approx(1.0 if collapsed else 0.0)


def test_search_in_a_collapsed_gallery_gives_every_image_once_in_the_order_of_its_rows(tmp_path):
    run, store = parts(tmp_path, 12, [1] * 12, run={"collapsed": True})
    build_index(run, store, "test", tmp_path / "index")
    index, encoder = open_index(tmp_path / "index"), DualEncoder(run, "cpu")
    (hits,) = search(index, encoder, encoder.project_text(np.ones((1, 32), dtype=np.float32)), k=100, of=Gallery.image)
    assert [hit.id for hit in hits] == [store.image_id[row] for row in store.rows("test").image]
    assert {round(hit.score, 5) for hit in hits} == {1.0}
