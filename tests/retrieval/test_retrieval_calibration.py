"""Calibration measures at their limits, and the fitted temperature."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from alignvl_cli.retrieval import calibration as module
from alignvl_cli.retrieval.calibration import Judged, calibration, fit_temperature, judge, modesty
from alignvl_cli.retrieval.embeddings import Embeddings


def judged(confidence, is_correct) -> Judged:
    confidence_Q = np.asarray(confidence, dtype=float)
    return Judged(confidence_Q, np.asarray(is_correct, dtype=bool), np.zeros(len(confidence_Q)), confidence_Q)


def embeddings(img: torch.Tensor, txt: torch.Tensor, owner) -> Embeddings:
    rows = SimpleNamespace(text_image=np.asarray(owner), image=np.arange(len(img)), text=np.arange(len(txt)))
    return Embeddings(F.normalize(img, dim=1), F.normalize(txt, dim=1), rows)


def noisy(seed: int, images: int = 60) -> Embeddings:
    draw = torch.Generator().manual_seed(seed)
    img = torch.randn(images, 12, generator=draw)
    owner = torch.arange(3 * images) // 3
    return embeddings(img, img[owner] + 1.2 * torch.randn(len(owner), 12, generator=draw), owner)


def test_a_perfectly_calibrated_model_has_no_error():
    confidence = np.repeat([0.25, 0.75], 400)
    correct = np.concatenate([np.arange(400) % 4 == 0, np.arange(400) % 4 != 0])
    found = calibration(judged(confidence, correct))
    assert (found.ece, found.ece_equal_mass, found.overconfidence) == (0.0, 0.0, 0.0)
    assert found.auroc == pytest.approx(0.75)


def test_always_sure_and_half_right_is_half_over():
    found = calibration(judged(np.ones(10), np.arange(10) % 2 == 0))
    assert (found.ece, found.overconfidence, found.auroc) == (0.5, 0.5, 0.5)
    assert found.aurc == pytest.approx(0.5)
    assert found.diagram[-1].queries == 10
    assert sum(part.queries for part in found.diagram) == 10
    assert found.diagram[0].accuracy is None


def test_equal_confidences_give_the_same_figures_in_any_order():
    correct = np.arange(60) % 3 == 0
    shuffled = np.random.default_rng(0).permutation(correct)
    assert calibration(judged(np.full(60, 0.5), correct)) == calibration(judged(np.full(60, 0.5), shuffled))


def test_aurc_walks_from_the_surest():
    found = calibration(judged([0.9, 0.8, 0.7, 0.6], [True, True, False, False]))
    assert found.aurc == pytest.approx((0 + 0 + 1 / 3 + 2 / 4) / 4)
    assert found.auroc == 1.0
    assert calibration(judged([0.9, 0.8], [True, True])).auroc is None
    assert calibration(judged([0.9, 0.8], [False, False])).auroc is None


def test_bins_of_equal_mass_hold_equally_many():
    confidence = np.random.default_rng(1).beta(0.5, 20, 150)
    correct = np.random.default_rng(2).random(150) < 0.5
    order = np.argsort(confidence)
    expected = np.mean([abs((confidence[part] - correct[part]).mean()) for part in np.split(order, 15)])
    assert calibration(judged(confidence, correct)).ece_equal_mass == pytest.approx(expected)


def test_captions_of_one_image_are_one_class():
    """With five equal captions an image, a model that separates images perfectly is sure of the image."""
    img = torch.eye(4)
    found = judge(embeddings(img, img.repeat_interleave(5, dim=0), np.arange(20) // 5), temperature=0.05)
    assert (found["image_to_text"].confidence_Q > 0.999).all()
    assert found["image_to_text"].is_correct_Q.all()
    assert found["image_to_text"].nll_Q.max() < 1e-6


def test_a_collapsed_model_is_unsure_and_never_correct():
    found = judge(embeddings(torch.ones(8, 3), torch.ones(16, 3), np.arange(16) // 2), temperature=0.05)
    for direction in ("image_to_text", "text_to_image"):
        np.testing.assert_allclose(found[direction].confidence_Q, 1 / 8)
        assert not found[direction].is_correct_Q.any()
        np.testing.assert_allclose(found[direction].nll_Q, np.log(8))
        np.testing.assert_allclose(found[direction].brier_Q, 1 - 1 / 8)


def test_correct_is_a_hit_at_1_for_captions():
    from alignvl_cli.align.ranks import text_to_image_ranks

    case = noisy(0)
    ranks = text_to_image_ranks(case.img_IE, case.txt_TE, torch.from_numpy(case.rows.text_image))
    found = judge(case, temperature=0.05)["text_to_image"].is_correct_Q
    assert found.tolist() == (ranks.rank_Q == 0).tolist()
    assert 0 < found.mean() < 1


def test_blocks_do_not_change_the_judgement(monkeypatch):
    whole = judge(noisy(1), 0.05)
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 1)
    parts = judge(noisy(1), 0.05)
    for direction, found in whole.items():
        np.testing.assert_allclose(found.nll_Q, parts[direction].nll_Q, atol=1e-5)
        assert found.is_correct_Q.tolist() == parts[direction].is_correct_Q.tolist()


def test_the_smallest_temperature_keeps_every_figure_finite():
    for found in judge(noisy(2), 0.001).values():
        assert np.isfinite(found.nll_Q).all()
        assert found.nll_Q.max() > 50
        assert (found.confidence_Q <= 1).all()


def test_images_without_captions_are_classes_and_not_queries():
    img = torch.eye(5)
    found = judge(embeddings(img, img[:3], [0, 1, 2]), temperature=1.0)
    assert len(found["image_to_text"].nll_Q) == 3
    assert found["text_to_image"].nll_Q[0] == pytest.approx(np.log(4 + np.e) - 1)
    assert found["image_to_text"].nll_Q[0] == pytest.approx(np.log(2 + np.e) - 1)


def test_one_image_alone_is_certain():
    found = calibration(judge(embeddings(torch.ones(1, 3), torch.ones(2, 3), [0, 0]), 0.05)["text_to_image"])
    assert (found.confidence, found.accuracy, found.ece) == (1.0, 1.0, 0.0)


def test_the_fitted_temperature_is_the_best_of_a_fine_grid():
    case = noisy(3)

    def loss(tau: float) -> float:
        return float(np.mean([found.nll_Q.mean() for found in judge(case, tau).values()]))

    fitted = fit_temperature(case)
    assert loss(fitted) <= min(loss(tau) for tau in np.geomspace(0.005, 2, 120)) + 1e-5
    assert 0.01 < fitted < 1


def test_rescaled_logits_differ_before_the_one_temperature_and_not_after():
    case = noisy(4)
    sharp, soft = (modesty(case, tau, noisy(5), "val") for tau in (0.01, 0.2))
    assert sharp.raw.text_to_image.overconfidence > 0.2 > soft.raw.text_to_image.overconfidence
    assert sharp.fitted == soft.fitted
    assert (sharp.fitted_on, sharp.fitted_gallery_images, sharp.gallery_images) == ("val", 60, 60)


def test_without_a_split_to_fit_on_the_report_is_raw():
    report = modesty(noisy(6), 0.05, None, "val")
    assert report.fitted is None
    assert report.fitted_on is None
    assert report.to_json()["raw"]["temperature"] == 0.05
