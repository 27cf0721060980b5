"""`alignvl probe`: pairs that belong together, pairs that do not, and stores that cannot be probed."""

import json

import numpy as np
import pytest
from support.command_line import CommandLine
from support.fakes import make_store

from alignvl_cli.retrieval.probe import probe
from alignvl_cli.store.reader import open_store


@pytest.fixture(scope="module")
def aligned(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("probe") / "a.h5", images=300, dim=16, text_dim=12, noise=0.02)


def shuffled(folder, images=300):
    """The same widths, and captions that belong to no image."""
    draws = np.random.default_rng(0).standard_normal((images * 2, 12)).astype(np.float32)
    return make_store(folder / "s.h5", images=images, dim=16, captions_per_image=[2], text_latent=draws)


def test_pairs_that_belong_together_align(aligned):
    found = probe(open_store(aligned))
    assert found.verdict == "aligns"
    assert "will align" in found.reading
    assert found.cca.beats > 0.95
    assert found.cka["train"].value > 5 * abs(found.cka["train"].shuffled_max)
    assert found.mutual_knn["val"].value > found.mutual_knn["val"].shuffled_max


def test_pairs_that_do_not_are_told_apart(tmp_path):
    found = probe(open_store(shuffled(tmp_path)))
    assert found.verdict == "unrelated"
    assert "will not align" in found.reading
    assert found.cca.beats == pytest.approx(0.5, abs=0.15)


def test_chance_is_that_of_a_random_order(tmp_path):
    found = probe(open_store(shuffled(tmp_path)))
    images = found.images["val"]
    assert found.cca.chance["text_to_image"]["R@5"] == pytest.approx(100 * 5 / images)
    captions, drawn = found.captions["val"], np.random.default_rng(1)
    hits = np.mean([(drawn.permutation(captions)[:5] < 2).any() for _ in range(20_000)])  # two captions an image
    assert found.cca.chance["image_to_text"]["R@5"] == pytest.approx(100 * hits, rel=0.05)


def test_a_sample_bounds_what_is_read_and_is_the_same_each_time(aligned):
    store = open_store(aligned)
    first, again = probe(store, sample=40), probe(store, sample=40)
    assert first == again
    assert first.images["train"] == 40
    assert first.captions["train"] <= 5 * 40
    assert first.of["train"] > 40


def test_the_command_prints_one_document_or_a_table(aligned, tmp_path):
    alignvl = CommandLine(tmp_path / "none")
    found = json.loads(alignvl.succeeds("probe", aligned, "--json"))
    assert (found["schema"], found["verdict"]) == ("alignvl.probe/1", "aligns")
    shown = " ".join(alignvl.succeeds("probe", aligned).split())
    assert "will align" in shown
    assert "linear CKA, debiased" in shown


def test_too_few_images_are_refused(tmp_path):
    small = make_store(tmp_path / "small.h5", images=40)
    assert "a probe wants 20" in CommandLine(tmp_path / "none").fails(3, "probe", small)
