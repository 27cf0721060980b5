"""Batches, data, ingredients and schedule, each apart."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.fakes import make_store

from alignvl_cli.align.adapters import AdapterPair, AdapterShape, Standardize, new_pair
from alignvl_cli.align.mixing import draw_coefficient
from alignvl_cli.align.streams import Stream, Streams
from alignvl_cli.errors import DataError, MismatchError, UsageError
from alignvl_cli.recipes import resolve_train
from alignvl_cli.settings import AdapterKind, LatentNorm, MixCoefficient, NoiseKind
from alignvl_cli.store.joined import require_different, shared_images
from alignvl_cli.store.reader import open_store
from alignvl_cli.training import data as training_data
from alignvl_cli.training.data import (
    SplitLatents,
    blocks,
    duplicate_keys,
    load_split,
    prepared,
    require_same_encoders,
    root_mean_square,
)
from alignvl_cli.training.ingredients import (
    FuseMix,
    Gather,
    Perturb,
    Scale,
    Slices,
    epoch_slices,
    input_transforms,
    noise_std,
    output_transforms,
    steps_per_epoch,
)
from alignvl_cli.training.optimizer import WEIGHT_DECAY, adamw, learning_rate
from alignvl_cli.training.validation import is_validation_epoch

SCALES = {"image": Scale(2.0), "text": Scale(0.5)}


@pytest.mark.parametrize(("pairs", "batch_size"), [(100, 50), (103, 10), (7, 3), (2, 1)])
def test_an_epoch_sees_each_pair_at_most_once_and_partners_apart(pairs, batch_size):
    slices = list(epoch_slices(torch.randperm(pairs, generator=torch.Generator().manual_seed(0)), batch_size))
    assert len(slices) == steps_per_epoch(pairs, batch_size) == pairs // batch_size
    anchors = torch.cat([step.anchor_N for step in slices])
    assert len(anchors.unique()) == len(anchors) == pairs // batch_size * batch_size
    for step in slices:
        assert len(step.anchor_N) == len(step.next_N) == batch_size
        assert not set(step.anchor_N.tolist()) & set(step.next_N.tolist())
    assert torch.equal(slices[-1].next_N, slices[0].anchor_N)


def test_epochs_are_permuted_anew():
    generator = torch.Generator().manual_seed(0)
    latents = SplitLatents(torch.zeros(50, 1), torch.zeros(50, 1), torch.arange(50))
    first, second = (latents.epoch_order(generator) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, second.sort().values)


def test_a_batch_of_more_than_half_the_pairs_is_refused_with_the_largest_allowed():
    with pytest.raises(UsageError, match=r"--batch-size 51: with 101 training pairs it may be at most 50"):
        steps_per_epoch(101, 51)
    assert steps_per_epoch(101, 50) == 2


def test_a_split_is_resident_as_the_store_holds_it(tmp_path, monkeypatch):
    monkeypatch.setattr(training_data, "BLOCK_ROWS", 7)
    store = open_store(make_store(tmp_path / "one.h5", images=30, dim=8, text_dim=6, captions_per_image=(2, 0, 3)))
    rows = store.rows("train")
    split = load_split([store], "train")
    assert split.pairs == len(rows.text)
    assert np.array_equal(split.image_ID.numpy(), store.image_latent[rows.image])
    assert np.array_equal(split.text_TC.numpy(), store.text_latent[rows.text])
    assert np.array_equal(rows.image[split.text_image_T.numpy()], store.text_image[rows.text])


def test_several_stores_are_one_after_the_other(tmp_path):
    stores = [open_store(make_store(tmp_path / f"{seed}.h5", images=20, dim=8, seed=seed)) for seed in (0, 1)]
    parts = [load_split([store], "train") for store in stores]
    both = load_split(stores, "train")
    assert torch.equal(both.image_ID, torch.cat([part.image_ID for part in parts]))
    assert torch.equal(both.text_TC, torch.cat([part.text_TC for part in parts]))
    own = both.image_ID[both.text_image_T]
    assert torch.equal(own, torch.cat([part.image_ID[part.text_image_T] for part in parts]))


def test_stores_of_other_encoders_do_not_mix(tmp_path):
    stores = [open_store(make_store(tmp_path / f"{name}.h5", images=10, encoders=name)) for name in ("one", "two")]
    with pytest.raises(MismatchError, match=r"one\.h5 holds latents of one and one .*two\.h5 holds latents of two"):
        require_same_encoders(stores)


def test_a_store_named_twice_is_refused_by_its_content(tmp_path):
    one, other = (open_store(make_store(tmp_path / name, images=10)) for name in ("a.h5", "b.h5"))
    with pytest.raises(UsageError, match=r"a\.h5 and .*b\.h5 hold the same pairs"):
        require_different([one, other])
    require_different([one, open_store(make_store(tmp_path / "c.h5", images=11))])


def test_a_split_without_captions_is_no_training_data(tmp_path):
    store = open_store(make_store(tmp_path / "s.h5", images=10, captions_per_image=(0, 0, 0, 0, 0, 0, 1, 1, 1, 1)))
    with pytest.raises(DataError, match="no image of split 'train' has a caption"):
        load_split([store], "train")


def test_statistics_of_resident_latents_by_blocks(monkeypatch):
    monkeypatch.setattr(training_data, "BLOCK_ROWS", 9)
    latents = 5 + 3 * torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    assert root_mean_square(latents) == pytest.approx(latents.square().mean().sqrt().item(), rel=1e-6)
    norm = Standardize(4)
    norm.fit(blocks(latents))
    assert prepared(latents, norm) is latents
    assert torch.allclose(latents.mean(dim=0), torch.zeros(4), atol=1e-5)
    assert torch.allclose(latents.std(dim=0, correction=0), torch.ones(4), atol=1e-5)


def test_keys_tell_the_same_image_and_the_same_caption(tmp_path):
    captions = ["a dog", "a cat", "a dog", "a tree", "a cat", "a bus"]
    store = open_store(
        make_store(tmp_path / "s.h5", images=3, captions_per_image=(2,), captions=captions, splits=["train"] * 3)
    )
    image_key, caption_key = duplicate_keys([store], "train").tolist()
    assert [image_key[i] == image_key[0] for i in range(6)] == [True, True, False, False, False, False]
    assert [caption_key[i] == caption_key[0] for i in range(6)] == [True, False, True, False, False, False]
    assert caption_key[1] == caption_key[4]


def test_validation_images_that_are_trained_on_are_counted(tmp_path):
    store = open_store(make_store(tmp_path / "s.h5", images=10))
    assert shared_images([store], "train", store, "val") == 0
    assert shared_images([store], "train", store, "train") == len(store.rows("train").image)


def config(**asked):
    return resolve_train({key.replace("_", "-"): value for key, value in asked.items()}, pairs=1000)


@pytest.mark.parametrize(
    ("asked", "inputs", "outputs"),
    [
        ({}, [FuseMix, Perturb], []),
        ({"mix": False}, [Perturb], []),
        ({"rp": False}, [FuseMix], []),
        ({"recipe": "clip"}, [], []),
        ({"noise_position": "output"}, [FuseMix], [Perturb]),
    ],
)
def test_an_ablated_ingredient_is_absent(asked, inputs, outputs):
    gather = Gather(SplitLatents(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1, dtype=torch.long)), None)
    streams = Streams(0)
    assert [type(step) for step in input_transforms(config(**asked), gather, SCALES, streams)] == inputs
    assert [type(step) for step in output_transforms(config(**asked), SCALES, streams)] == outputs


def test_noise_units_and_match():
    assert noise_std(config(noise_std=0.3), SCALES) == {"image": 0.6, "text": 0.15}, "units of the SCALES by default"
    assert noise_std(config(noise_std=0.3, noise_units="absolute"), SCALES) == {"image": 0.3, "text": 0.3}
    enlarged = {side: scale._replace(factor=4.0) for side, scale in SCALES.items()}
    assert noise_std(config(noise_std=0.3, noise_units="absolute"), enlarged) == {"image": 1.2, "text": 1.2}
    assert noise_std(config(noise_units="absolute"), SCALES) == {"image": 0.01, "text": 0.01}, "the paper's sigma"
    matched = noise_std(config(noise="uniform", noise_std=0.3, noise_match="range", noise_units="absolute"), SCALES)
    assert matched["image"] == pytest.approx(0.3 / math.sqrt(3))


@pytest.fixture
def latents() -> SplitLatents:
    draw = torch.Generator().manual_seed(0)
    owner = torch.arange(12) // 2
    return SplitLatents(torch.randn(6, 3, generator=draw), torch.randn(12, 2, generator=draw), owner)


@pytest.mark.parametrize("coefficient", MixCoefficient)
def test_mixing_blends_both_modalities_with_one_coefficient(latents, coefficient):
    gather = Gather(latents, None)
    slices = Slices(torch.tensor([0, 2, 4]), torch.tensor([6, 8, 10]))
    mixed = FuseMix(gather, 1.0, coefficient, Streams(5))(gather(slices.anchor_N), slices)
    streams = Streams(5)
    partners = slices.next_N[torch.randperm(3, generator=streams[Stream.partners])]
    shape = (3, 1) if coefficient is MixCoefficient.pair else ()
    lam = draw_coefficient(1.0, shape, streams[Stream.coefficient])
    one, other = gather(slices.anchor_N), gather(partners)
    assert torch.allclose(mixed.image, lam * one.image + (1 - lam) * other.image, atol=1e-6)
    assert torch.allclose(mixed.text, lam * one.text + (1 - lam) * other.text, atol=1e-6)
    assert torch.equal(one.image[1], latents.image_ID[1])


def test_a_mixed_row_stands_for_its_dominant_component(latents):
    gather = Gather(latents, torch.arange(24).reshape(2, 12))
    slices = Slices(torch.arange(0, 6), torch.arange(6, 12))
    streams = Streams(1)
    mixed = FuseMix(gather, 1.0, MixCoefficient.pair, streams)(gather(slices.anchor_N), slices)
    again = Streams(1)
    partners = slices.next_N[torch.randperm(6, generator=again[Stream.partners])]
    lam = draw_coefficient(1.0, (6, 1), again[Stream.coefficient]).squeeze(1)
    expected = torch.where(lam >= 0.5, slices.anchor_N, partners)
    assert mixed.keys_KN.tolist() == [expected.tolist(), (expected + 12).tolist()]
    assert 0 < (lam >= 0.5).sum() < 6


def test_perturbing_is_independent_by_modality_and_leaves_the_latents(latents):
    gather = Gather(latents, None)
    slices = Slices(torch.arange(6), torch.arange(6, 12))
    settings = config(noise="uniform", noise_std=0.1, noise_units="absolute")
    (perturb,) = input_transforms(replace(settings, mix=False), gather, SCALES, Streams(0))
    plain = gather(slices.anchor_N)
    noisy = perturb(plain, slices)
    for before, after in ((plain.image, noisy.image), (plain.text, noisy.text)):
        assert 0 < (after - before).abs().max().item() <= 0.1 * math.sqrt(3) + 1e-6
    assert not torch.allclose((noisy.image - plain.image)[:, :2], noisy.text - plain.text)
    assert settings.noise is NoiseKind.uniform


def test_dropout_noise_multiplies_and_adds_sigma_on_average(latents):
    gather = Gather(latents, None)
    slices = Slices(torch.arange(6).repeat(3000), torch.arange(6))
    plain = gather(slices.anchor_N)
    rms = {"image": plain.image.square().mean().sqrt().item(), "text": plain.text.square().mean().sqrt().item()}
    settings = replace(config(noise="dropout", noise_std=0.4, noise_units="absolute"), mix=False)
    (perturb,) = input_transforms(settings, gather, {side: Scale(value) for side, value in rms.items()}, Streams(0))
    noisy = perturb(plain, slices)
    for side, before, after in (("image", plain.image, noisy.image), ("text", plain.text, noisy.text)):
        added = after - before
        assert added.std().item() == pytest.approx(0.4, rel=0.03)
        kept = after[after != 0] / before[after != 0]
        assert kept.min().item() == pytest.approx(kept.max().item(), rel=1e-4)
        assert kept.mean().item() == pytest.approx(1 + (0.4 / rms[side]) ** 2, rel=1e-4)


def test_who_resembles_whom_is_told_by_the_mixed_latents_without_noise(latents):
    gather = Gather(latents, None)
    slices = Slices(torch.arange(6), torch.arange(6, 12))
    settings = config(noise="uniform", noise_std=0.5, es_target="similarity")
    mix, remember, perturb = input_transforms(settings, gather, SCALES, Streams(0))
    mixed = mix(gather(slices.anchor_N), slices)
    seen = perturb(remember(mixed, slices), slices)
    assert torch.allclose(seen.frozen.image_ND, F.normalize(mixed.image, dim=1))
    assert torch.allclose(seen.frozen.text_NC, F.normalize(mixed.text, dim=1))
    assert not torch.allclose(seen.image, mixed.image)
    assert len(list(input_transforms(replace(settings, smoothing=0.0), gather, SCALES, Streams(0)))) == 2


def test_the_learning_rate_warms_up_and_ends_at_the_floor():
    rates = [learning_rate(step, 2000, 1e-3) for step in range(2000)]
    assert rates[0] == pytest.approx(1e-6)
    assert rates[50] == pytest.approx((1e-3 + 1e-6) / 2)
    assert rates[100] == max(rates) == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-6)
    assert rates[100:] == sorted(rates[100:], reverse=True)
    middle = (100 + 1999) // 2
    assert rates[middle] == pytest.approx(5e-4, rel=0.01)


@pytest.mark.parametrize("total", [1, 2, 9, 40])
def test_short_runs_shorten_the_warm_up(total):
    rates = [learning_rate(step, total, 1e-3) for step in range(total)]
    assert max(rates) == pytest.approx(1e-3)
    assert rates.index(max(rates)) == total // 10


def test_weight_decay_is_on_matrices_only():
    shape = AdapterShape(
        kind=AdapterKind.fusemix,
        image_width=6,
        text_width=4,
        depth=1,
        expansion=4,
        embed_dim=3,
        dropout=0.1,
        latent_norm=LatentNorm.none,
        temperature=None,
    )
    pair: AdapterPair = new_pair(shape, Streams(0))
    decayed, spared = adamw(pair).param_groups
    assert decayed["weight_decay"] == WEIGHT_DECAY
    assert spared["weight_decay"] == 0
    assert {parameter.ndim for parameter in decayed["params"]} == {2}
    assert {parameter.ndim for parameter in spared["params"]} == {0, 1}
    assert len(decayed["params"]) + len(spared["params"]) == len(list(pair.parameters()))


@pytest.mark.parametrize("epochs", [1, 2, 19, 20, 21, 39, 41, 100, 250])
def test_a_run_validates_often_enough_and_at_its_end(epochs):
    validated = [epoch for epoch in range(1, epochs + 1) if is_validation_epoch(epoch, epochs)]
    assert validated[-1] == epochs
    assert min(epochs, 10) <= len(validated) <= 20
