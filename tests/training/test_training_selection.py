"""Corrupted and chosen pairs: who is re-paired with whom, who is kept, and what a run says of it."""

import json

import pytest
import torch
from support.fakes import make_store

from alignvl_cli.align import ranks
from alignvl_cli.align.streams import Streams
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.recipes import resolve_train
from alignvl_cli.settings import CorruptKind, SubsetKind
from alignvl_cli.store.reader import open_store
from alignvl_cli.training import subsets as selection
from alignvl_cli.training.data import StoredRows
from alignvl_cli.training.run import count_pairs, train_run
from alignvl_cli.training.run_folder import CONFIG, load_run
from alignvl_cli.training.subsets import SUBSETS, Latents, agreement, corrupt, select_pairs

SMALL = {
    "size": "pairs",
    "epochs": 3,
    "batch-size": 16,
    "embed-dim": 8,
    "adapter-depth": 1,
    "device": "cpu",
    "precision": "fp32",
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def held(latent_ND: torch.Tensor) -> Latents:
    return Latents(latent_ND.__getitem__)


def images_in_two_rows(copies: int = 2):
    """40 images, the last `copies` of which are one picture, and three captions of each."""
    image_ID = torch.randn(40, 6, generator=seeded())
    image_ID[-copies:] = image_ID[-1]
    text_image_T = torch.arange(40).repeat_interleave(3)
    key_T = text_image_T.clamp(max=40 - copies)
    return image_ID, text_image_T, key_T


@pytest.mark.parametrize("kind", CorruptKind)
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_no_corrupted_caption_keeps_its_picture_nor_a_copy_of_it(kind, share):
    image_ID, text_image_T, key_T = images_in_two_rows()
    key_I = torch.arange(40).clamp(max=38)
    new_T, corrupted_T = corrupt(share, kind, text_image_T, key_T, held(image_ID), seeded())
    assert corrupted_T.sum().item() == round(share * 120)
    assert torch.equal(new_T[~corrupted_T], text_image_T[~corrupted_T])
    assert (key_I[new_T[corrupted_T]] != key_T[corrupted_T]).all()


def test_a_near_partner_is_one_of_the_ten_nearest_and_a_shuffled_one_any():
    image_ID, text_image_T, key_T = images_in_two_rows()
    unit = torch.nn.functional.normalize(image_ID, dim=1)
    sim = unit[:39] @ unit[:39].T
    place = sim.argsort(dim=1, descending=True).argsort(dim=1)  # 0: the image itself
    worst = {}
    for kind in CorruptKind:
        new_T, _ = corrupt(1.0, kind, text_image_T, key_T, held(image_ID), seeded())
        worst[kind] = place[key_T, new_T.clamp(max=38)].max().item()
    assert worst[CorruptKind.near] == 10
    assert worst[CorruptKind.shuffle] > 30


def test_one_picture_cannot_be_corrupted():
    with pytest.raises(DataError, match="one image only"):
        corrupt(
            0.5, CorruptKind.shuffle, torch.zeros(4).long(), torch.zeros(4).long(), held(torch.ones(1, 2)), seeded()
        )


def latents(pairs: int = 60):
    image_ID = torch.randn(pairs, 5, generator=seeded(1))
    return image_ID, image_ID @ torch.randn(5, 4, generator=seeded(2)), torch.arange(pairs)


@pytest.mark.parametrize("kind", SUBSETS)
def test_a_subset_is_of_the_size_asked_for_without_repetition(kind):
    image_ID, text_TC, owner_T = latents()
    for size in (1, 7, 60):
        kept = SUBSETS[kind](size, held(image_ID), held(text_TC), owner_T, seeded())
        assert len(kept.unique()) == len(kept) == size


def test_greedy_map_takes_what_a_determinant_would():
    image_ID, text_TC, _ = latents(14)
    row = torch.nn.functional.normalize(torch.cat([image_ID, text_TC], dim=1), dim=1)
    kernel = (1 + row @ row.T).square().double()
    wanted: list[int] = []
    for _ in range(5):
        rest = [i for i in range(14) if i not in wanted]
        wanted.append(max(rest, key=lambda i: torch.det(kernel[[*wanted, i]][:, [*wanted, i]]).item()))
    assert selection._greedy_map(row, 5).tolist() == wanted


def test_kdpp_spreads_over_clusters_and_leaves_copies_out(monkeypatch):
    centres = 10 * torch.eye(5)
    image_ID = centres.repeat_interleave(30, dim=0)
    image_ID[:30] += 1e-4 * torch.randn(30, 5, generator=seeded())
    for block in (8192, 50):
        monkeypatch.setattr(selection, "DPP_BLOCK", block)
        kept = SUBSETS[SubsetKind.kdpp](15, held(image_ID), held(image_ID), torch.arange(150), seeded())
        assert set((kept // 30).tolist()) == {0, 1, 2, 3, 4}
    monkeypatch.setattr(selection, "DPP_BLOCK", 8192)
    kept = SUBSETS[SubsetKind.kdpp](5, held(image_ID), held(image_ID), torch.arange(150), seeded())
    assert sorted((kept // 30).tolist()) == [0, 1, 2, 3, 4]


def test_agreement_is_one_where_both_spaces_agree_and_by_chance_where_they_do_not():
    image_ID = torch.randn(200, 5, generator=seeded(1))
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=seeded(2))).Q
    owner_T = torch.arange(200)
    assert torch.equal(agreement(held(image_ID), held(image_ID @ rotation), owner_T), torch.ones(200))
    unrelated = agreement(held(image_ID), held(torch.randn(200, 5, generator=seeded(3))), owner_T)
    assert unrelated.mean().item() == pytest.approx(10 / 199, abs=0.03)
    assert agreement(held(image_ID[:1]), held(image_ID[:1]), torch.zeros(1).long()).tolist() == [0.0]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(
        tmp_path_factory.mktemp("stores") / "store.h5", images=200, dim=12, captions_per_image=(1, 2, 0, 3)
    )


def chosen(store, **asked):
    config = resolve_train(SMALL | {key.replace("_", "-"): value for key, value in asked.items()}, pairs=180)
    return select_pairs([open_store(store)], "train", config, Streams(config.seed))


def test_quality_leaves_corrupted_pairs_out(store):
    half = count_pairs([store]) // 2
    by_quality, at_random = (
        chosen(store, corrupt_captions=0.3, subset=f"{kind}:{half}").record for kind in ("quality", "uniform")
    )
    assert by_quality["corruption"]["pairs"] == at_random["corruption"]["pairs"] == round(0.3 * count_pairs([store]))
    assert by_quality["corruption"]["pairs_kept"] < 0.5 * at_random["corruption"]["pairs_kept"]


@pytest.mark.parametrize("kind", SubsetKind)
def test_a_chosen_pair_keeps_its_latents(store, kind):
    plain, some = chosen(store), chosen(store, subset=f"{kind}:40")
    texts, images = plain.text.resident(), plain.image.resident()[plain.text_image_T]
    place = [int((texts == row).all(dim=1).nonzero()) for row in some.text.resident()]
    assert place == sorted(place)
    assert torch.equal(some.image.resident()[some.text_image_T], images[place])
    assert len(some.image) == len(some.text_image_T.unique())
    whole = chosen(store, subset=f"uniform:{count_pairs([store])}")
    assert torch.equal(whole.text.resident(), texts)


def test_masks_follow_the_new_pairing(store):
    pairs = chosen(store, corrupt_captions=1.0, mask_duplicates=True)
    image_keys = pairs.keys_KP[0]
    for one, other in ((0, 1), (2, 7)):
        same_image = bool(pairs.text_image_T[one] == pairs.text_image_T[other])
        assert bool(image_keys[one] == image_keys[other]) == same_image
    assert len(image_keys.unique()) == len(pairs.text_image_T.unique())


def test_arms_of_one_seed_corrupt_and_choose_alike(store):
    one, again, other = (chosen(store, corrupt_captions=0.3, subset="uniform:50", **more) for more in (
        {}, {"mix": False, "noise": "uniform"}, {"seed": 1}
    ))  # fmt: skip
    assert torch.equal(one.corrupted_P, again.corrupted_P)
    assert torch.equal(one.text.resident(), again.text.resident())
    assert not torch.equal(one.text.resident(), other.text.resident())


@pytest.mark.parametrize(
    "more",
    [{}, {"loss": "sigmoid"}, {"corrupt-kind": "near", "subset": "kdpp:60"}],
    ids=str,
)
def test_a_run_says_what_it_makes_of_clean_and_corrupted_pairs(store, tmp_path, more):
    asked = SMALL | {"corrupt-captions": 0.25, "epochs": 15, "lr": 3e-3, "dropout": 0.0, "recipe": "clip"} | more
    config = resolve_train(asked, pairs=count_pairs([store]))
    started, *_, finished = train_run([store], tmp_path / "run", config)
    said = json.loads((tmp_path / "run" / CONFIG).read_text())
    count = round(0.25 * count_pairs([store]))
    assert (said["corruption"]["share"], said["corruption"]["pairs"]) == (0.25, count)
    clean, corrupted = (finished.result["positives"][name] for name in ("clean", "corrupted"))
    assert clean["pairs"] + corrupted["pairs"] == started.pairs == finished.result["pairs"]
    assert corrupted["pairs"] == said["corruption"].get("pairs_kept", count)
    assert clean["similarity"] > corrupted["similarity"] + 0.05
    assert 1 > clean["probability"] > corrupted["probability"] > 0
    assert load_run(tmp_path / "run").result == finished.result


def test_a_store_read_by_windows_is_corrupted_and_judged_alike(tmp_path):
    large = make_store(tmp_path / "large.h5", images=1500, dim=12, captions_per_image=(1, 2))
    asked = SMALL | {"corrupt-captions": 0.2, "subset": "uniform:1200", "mask-duplicates": True}
    results = {}
    for name, more in (("resident", {}), ("windows", {"memory-budget": "0.06MB"})):
        config = resolve_train(asked | more, pairs=count_pairs([large]))
        started, *_, finished = train_run([large], tmp_path / name, config)
        assert any("--memory-budget" in note for note in started.notes) == (name == "windows")
        results[name] = finished.result["positives"]
    for which in ("clean", "corrupted"):
        assert results["windows"][which]["pairs"] == results["resident"][which]["pairs"]
    assert results["windows"]["clean"]["similarity"] > results["windows"]["corrupted"]["similarity"] + 0.05


@pytest.mark.parametrize("asked", [{"corrupt_captions": 0.3, "corrupt_kind": "near"}, *(
    {"subset": f"{kind}:300"} for kind in ("quality", "kdpp")
)], ids=str)  # fmt: skip
def test_a_budget_bounds_what_is_looked_at_and_changes_nothing(tmp_path, monkeypatch, asked):
    monkeypatch.setattr(ranks, "ASKED", 40)
    monkeypatch.setattr(ranks, "OTHERS", 70)
    monkeypatch.setattr(selection, "DPP_BLOCK", 150)
    sizes = {"images": 400, "dim": 12, "text_dim": 10, "captions_per_image": (1, 2, 0, 3)}
    opened = [open_store(make_store(tmp_path / "s.h5", **sizes))]
    read, most = StoredRows.read, []
    monkeypatch.setattr(StoredRows, "read", lambda self, row_N: (most.append(len(row_N)), read(self, row_N))[1])
    found = {}
    for budget in ("none", "4kB"):  # no more than 50 rows of the narrower side, and at least a block
        most.clear()
        flags = {key.replace("_", "-"): value for key, value in asked.items()}
        config = resolve_train(SMALL | flags | {"memory-budget": budget}, pairs=400)
        pairs = select_pairs(opened, "train", config, Streams(config.seed))
        found[budget] = (pairs.text_image_T, [rows.tolist() for rows in pairs.text._rows], max(most))
    assert torch.equal(found["4kB"][0], found["none"][0])
    assert found["4kB"][1] == found["none"][1]
    assert found["none"][2] > 150, "all at once, where they may be"
    assert found["4kB"][2] <= 150 < count_pairs([tmp_path / "s.h5"])


def test_closed_forms_take_corrupted_pairs_and_subsets(store, tmp_path):
    config = resolve_train(
        {"method": "cca", "corrupt-captions": 0.2, "subset": "quality:60", "device": "cpu"}, pairs=200
    )
    *_, finished = train_run([store], tmp_path / "run", config)
    assert finished.result["pairs"] == 60
    assert finished.result["positives"]["clean"]["similarity"] > 0.3


def test_more_pairs_than_there_are_is_refused(store, tmp_path):
    pairs = count_pairs([store])
    config = resolve_train(SMALL | {"subset": f"kdpp:{pairs + 1}"}, pairs=pairs)
    with pytest.raises(UsageError, match=rf"there are {pairs} training pairs"):
        list(train_run([store], tmp_path / "run", config))
    assert not (tmp_path / "run").exists()
