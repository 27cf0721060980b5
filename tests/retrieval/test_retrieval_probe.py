"""`alignvl probe`: pairs that belong together, pairs that do not, and stores that cannot be probed."""

import json

import numpy as np
import pytest
import torch
from support.command_line import CommandLine
from support.fakes import make_store

from alignvl_cli.retrieval.probe import agreement, probe
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


def in_parts(folder, images=250):
    """A store whose image part `good` arranges the pairs as the text part `0` does; the other parts are noise."""
    draw = np.random.default_rng(3)
    shared = draw.standard_normal((images, 8)).astype(np.float32)
    image = np.concatenate([draw.standard_normal((images, 5)), shared], axis=1).astype(np.float32)
    text = np.concatenate([3 * shared, draw.standard_normal((images, 4))], axis=1).astype(np.float32)
    return make_store(
        folder / "p.h5",
        images=images,
        captions_per_image=[1],
        image_latent=image,
        text_latent=text,
        image_parts={"1": 5, "good": 8},
        text_parts={"0": 8, "last": 4},
    )


def test_layers_that_agree_are_told_from_those_that_do_not(tmp_path):
    path = in_parts(tmp_path)
    found = probe(open_store(path)).layers
    assert found.pairs == 150
    assert found.neighbours == 11  # 2 * 150 ** (1 / 3) is 10.6
    assert {image: [*by_text] for image, by_text in found.parts.items()} == {"1": ["0", "last"], "good": ["0", "last"]}
    assert found.parts["good"]["0"].value == pytest.approx(1)
    for image, text in (("1", "0"), ("1", "last"), ("good", "last")):
        one = found.parts[image][text]
        assert one.value <= one.shuffled_max + 0.02
        assert one.shuffled_mean == pytest.approx(11 / 149, abs=0.01)
    alignvl = CommandLine(tmp_path / "none")
    document = json.loads(alignvl.succeeds("probe", path, "--json"))["layers"]
    assert document["parts"]["good"]["0"]["value"] == pytest.approx(1)
    assert document["closest"]["p"] == pytest.approx(1 / 201)
    shown = " ".join(alignvl.succeeds("probe", path).split())
    assert "train --image-parts good --text-parts 0" in shown
    assert "Mutual 11-nearest neighbours on train" in shown
    assert "image layer text 0 text last" in shown


def test_the_largest_of_many_layers_is_held_against_the_largest_of_shuffled_pairs():
    """Layers that share nothing: one of many is always larger than shuffled pairs have it, and their largest is not."""
    ps, too_often = [], 0
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        image, text = torch.randn(40, 24, generator=draw), torch.randn(40, 24, generator=draw)
        parts = {f"{number}": slice(6 * number, 6 * number + 6) for number in range(4)}
        found = agreement(image, parts, text, parts, torch.Generator().manual_seed(1))
        ps.append(found.closest.p)
        of_all = [one.value for by_text in found.parts.values() for one in by_text.values()]
        assert found.closest.value == max(of_all) == found.parts[found.closest.image][found.closest.text].value
        too_often += found.closest.calibrated > 0
        assert (found.closest.p <= 0.05) == (found.closest.value >= found.closest.threshold)
    assert np.mean(ps) == pytest.approx(0.5, abs=0.2)
    assert too_often <= 3
    assert ("by chance" in found.closest.reading) == (found.closest.p > 0.05)


def test_shuffling_is_the_same_in_all_layers():
    """A layer beside its own copy: each shuffle measures the two alike, so the largest of both is that of one."""
    draw = torch.Generator().manual_seed(0)
    image, text = torch.randn(60, 6, generator=draw), torch.randn(60, 6, generator=draw)
    once = agreement(image, {"a": slice(None)}, text, {"t": slice(None)}, torch.Generator().manual_seed(1))
    twice = agreement(
        torch.cat([image, image], dim=1),
        {"a": slice(0, 6), "b": slice(6, 12)},
        text,
        {"t": slice(None)},
        torch.Generator().manual_seed(1),
    )
    assert twice.parts["a"]["t"] == twice.parts["b"]["t"] == once.parts["a"]["t"]
    assert (twice.closest.p, twice.closest.threshold) == (once.closest.p, once.closest.threshold)


def test_neighbours_in_common_are_those_counted_by_hand():
    draw = torch.Generator().manual_seed(0)
    image, text = torch.randn(64, 6, generator=draw), torch.randn(64, 5, generator=draw)
    text[:, :3] = image[:, :3]
    whole = {"last": slice(None)}
    found = agreement(image, whole, text, whole, torch.Generator().manual_seed(1))
    assert found.neighbours == 8
    near = []
    for latent in (image, text):
        unit = torch.nn.functional.normalize(latent, dim=1)
        near.append([set((unit @ one).topk(9).indices.tolist()) - {row} for row, one in enumerate(unit)])
    wanted = np.mean([len(one & other) / 8 for one, other in zip(*near, strict=True)])
    assert found.parts["last"]["last"].value == pytest.approx(wanted)


def test_a_store_of_one_part_has_no_layers_to_compare(aligned):
    assert probe(open_store(aligned)).layers is None
