"""Hubs made on purpose are found, and the corrections do what their formulas say."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.fake_runs import make_run
from support.fakes import make_store

from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.retrieval.embeddings import Embeddings
from alignvl_cli.retrieval.evaluate import evaluate
from alignvl_cli.retrieval.hubness import (
    bank_means,
    choose_normalisation,
    inverted_softmax_penalties,
    normalisation_penalties,
    occurrence,
    sides,
)
from alignvl_cli.retrieval.metrics import Protocol
from alignvl_cli.settings import HubnessReport
from alignvl_cli.store.reader import open_store
from alignvl_cli.training.run_folder import load_run


def unit(rows: int, width: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def hubbed(seed: int, first_image: int, images: int = 80) -> Embeddings:
    """Pairs with noise, and a direction common to all queries in which some gallery rows lie: these are hubs."""
    draw = torch.Generator().manual_seed(seed)
    common = F.normalize(torch.ones(1, 24), dim=1)
    img = F.normalize(torch.randn(images, 24, generator=draw), dim=1)
    txt = F.normalize(img + 0.9 * F.normalize(torch.randn(images, 24, generator=draw), dim=1) + 1.2 * common, dim=1)
    img = F.normalize(img + 0.8 * (torch.arange(images) % 8 == 0).float()[:, None] * common, dim=1)
    rows = SimpleNamespace(image=np.arange(images) + first_image, text_image=np.arange(images))
    return Embeddings(img, txt, rows)


def test_occurrence_counts_every_query_once_per_place():
    even = occurrence(torch.eye(12), torch.eye(12))
    assert (even.k, even.antihubs) == (10, pytest.approx(even.antihubs))
    gallery = torch.cat([torch.eye(12), F.normalize(torch.ones(1, 12), dim=1).repeat(1, 1)])
    found = occurrence(unit(50, 12, 0).abs(), gallery)
    assert found.largest == 50


def test_occurrence_of_identical_places_is_even():
    ring = torch.arange(40) * (2 * np.pi / 40)
    circle = torch.stack([ring.cos(), ring.sin()], dim=1)
    turned = torch.stack([(ring + 0.01).cos(), (ring + 0.01).sin()], dim=1)
    found = occurrence(turned, circle)
    assert (found.skewness, found.antihubs, found.largest) == (None, 0.0, 10)


def test_hubs_are_skewed_and_a_penalty_evens_them():
    case = hubbed(0, 0)
    txt, img = sides(case)["text_to_image"]
    plain = occurrence(txt, img)
    even = occurrence(txt, img, (img @ txt.T).mean(dim=1))
    assert plain.skewness > 1.5
    assert abs(even.skewness) < plain.skewness / 2
    assert even.antihubs < plain.antihubs


def test_a_small_gallery_takes_fewer_places():
    assert occurrence(unit(5, 3, 0), unit(4, 3, 1)).k == 4


def test_bank_means_are_those_of_the_nearest_rows_without_the_own_pairs():
    gallery, bank = unit(9, 6, 1), unit(30, 6, 2)
    owner_G, owner_N = np.arange(9), np.arange(30) // 3
    found = bank_means(gallery, owner_G, bank, owner_N, (1, 4))
    for row in range(9):
        sims = sorted(((gallery[row] @ bank[n]).item() for n in range(30) if n // 3 != row), reverse=True)
        assert found[1][row].item() == pytest.approx(sims[0], abs=1e-6)
        assert found[4][row].item() == pytest.approx(np.mean(sims[:4]), abs=1e-6)


def test_a_bank_smaller_than_k_is_taken_whole():
    gallery, bank = unit(4, 6, 1), unit(3, 6, 2)
    found = bank_means(gallery, np.array([0, 9, 9, 9]), bank, np.array([0, 1, 2]), (64,))[64]
    torch.testing.assert_close(found[1:], (gallery @ bank.T)[1:].mean(dim=1))
    torch.testing.assert_close(found[0], (gallery @ bank.T)[0, 1:].mean())


def test_chosen_parameters_help_where_there_are_hubs_and_are_mild_where_there_are_none():
    chosen = choose_normalisation(hubbed(1, 100), hubbed(2, 200))
    assert chosen["text_to_image"].alpha > 0
    perfect = Embeddings(torch.eye(20), torch.eye(20), SimpleNamespace(image=np.arange(20), text_image=np.arange(20)))
    assert {choice.alpha for choice in choose_normalisation(perfect, perfect).values()} == {0.0}


def test_penalties_are_alpha_times_the_bank_means():
    test, bank = hubbed(3, 0), hubbed(2, 200)
    chosen = choose_normalisation(hubbed(1, 100), bank)
    found = normalisation_penalties(test, bank, chosen)["text_to_image"]
    alpha, k = chosen["text_to_image"].alpha, chosen["text_to_image"].k
    expected = alpha * (test.img_IE @ bank.txt_TE.T).topk(k, dim=1).values.mean(dim=1)
    torch.testing.assert_close(found, expected)


def test_inverted_softmax_normalises_over_the_queries():
    case, tau = hubbed(4, 0), 0.05
    penalty = inverted_softmax_penalties(case, tau)["text_to_image"]
    sim = case.txt_TE @ case.img_IE.T
    expected = (sim / tau).softmax(dim=0)
    torch.testing.assert_close(((sim - penalty) / tau).exp(), expected, atol=1e-5, rtol=1e-4)


@pytest.fixture
def parts(tmp_path):
    store = open_store(make_store(tmp_path / "s.h5", images=150, captions_per_image=(2,), noise=2.5))
    return load_run(make_run(tmp_path / "run", store)), store


@pytest.mark.parametrize("kind", list(HubnessReport))
def test_the_report_of_an_evaluation(parts, kind):
    run, store = parts
    found = evaluate(run, store, "test", hubs=kind)
    plain = evaluate(run, store, "test")
    assert found.metrics == plain.metrics, "headline figures are never corrected"
    told = found.to_json()["hubness"]
    assert told["occurrence"]["image_to_text"]["k"] == 10
    if kind is HubnessReport.report:
        assert told["corrected"] is None
        return
    assert told["corrected"]["name"] == kind.value
    assert told["corrected"]["transductive"] is (kind is HubnessReport.inverted_softmax)
    assert set(told["corrected"]["parameters"]) == {"image_to_text", "text_to_image"}
    assert 0 < told["corrected"]["metrics"]["rsum"] <= 600


def test_nnn_needs_a_training_split(tmp_path):
    store = open_store(make_store(tmp_path / "s.h5", images=30, splits=["test", "val"] * 15))
    run = load_run(make_run(tmp_path / "run", store))
    with pytest.raises(DataError, match="'train'"):
        evaluate(run, store, "test", hubs=HubnessReport.nnn)


@pytest.mark.parametrize("report", [{"calibration": True}, {"hubs": HubnessReport.report}])
def test_folds_and_reports_on_the_whole_gallery_do_not_go_together(parts, report):
    with pytest.raises(UsageError, match="leave --folds out"):
        evaluate(*parts, "test", protocol=Protocol(folds=2), **report)


def test_images_without_a_caption_are_in_the_gallery_and_never_queries(tmp_path):
    """Two stores, equal but for images without captions: whatever is told of images that ask is equal."""
    captions = [1, 2] * 30
    splits = ["train"] * 30 + ["val"] * 10 + ["test"] * 20
    draw = np.random.default_rng(0)
    latent = draw.normal(size=(60, 32)).astype(np.float32)
    text = np.repeat(latent, captions, axis=0) + draw.normal(size=(90, 32)).astype(np.float32)
    more = np.concatenate([latent, draw.normal(size=(40, 32)).astype(np.float32)])
    told = []
    for name, image_latent, without in (("plain", latent, 0), ("more", more, 40)):
        made = make_store(
            tmp_path / f"{name}.h5",
            images=60 + without,
            captions_per_image=[*captions, *[0] * without],
            splits=[*splits, *["train"] * (without // 2), *["test"] * (without - without // 2)],
            image_latent=image_latent,
            text_latent=text,
        )
        store = open_store(made)
        run = load_run(make_run(tmp_path / f"run-{name}", store, seed=3, embed_dim=8))
        way = "image_to_text"
        found = {kind: evaluate(run, store, "test", hubs=kind).to_json() for kind in HubnessReport}
        corrected = [found[kind]["hubness"]["corrected"] for kind in HubnessReport if kind is not HubnessReport.report]
        told.append(
            (
                found[HubnessReport.report]["hubness"]["occurrence"][way],
                [(one["metrics"][way], one["occurrence"][way], one["parameters"][way]) for one in corrected],
                found[HubnessReport.report]["queries"],
            )
        )
    assert told[0] == told[1]
