"""More latents than the budget: the same rows, block by block, in an order of their own, in bounded memory."""

import numpy as np
import pytest
import torch
from support.fakes import make_store
from support.killable_training import outcome

from alignvl_cli.errors import UsageError
from alignvl_cli.recipes import resolve_train
from alignvl_cli.store.reader import open_store
from alignvl_cli.training.data import BUFFER_BLOCKS, ShuffleBuffer, load_split, stored_split
from alignvl_cli.training.ingredients import epoch_slices
from alignvl_cli.training.run import resume_run, train_run
from alignvl_cli.training.state import Started, Validated

ROWS, PAIR_BYTES = 24, 4 * (12 + 10)
BUDGET = 2 * BUFFER_BLOCKS * 20 * PAIR_BYTES
"""Blocks of twenty pairs."""


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    sizes = {"images": 500, "dim": 12, "text_dim": 10, "captions_per_image": (2, 0, 3, 1)}
    return [open_store(make_store(folder / f"{seed}.h5", seed=seed, **sizes)) for seed in (0, 1)]


def windowed(stores, budget=BUDGET, rows=ROWS):
    return ShuffleBuffer(*stored_split(stores, "train"), budget, rows)


def test_the_rows_are_those_of_the_store_whatever_is_asked_for(stores):
    latents, resident = windowed(stores), load_split(stores, "train")
    assert latents.pairs == resident.pairs > 2 * BUFFER_BLOCKS * 20
    draw = torch.Generator().manual_seed(0)
    for _ in range(40):
        # Anywhere, but not from more blocks than there is room for.
        start = int(torch.randint(latents.pairs - 300, (), generator=draw))
        pair_N = start + torch.randint(300, (ROWS,), generator=draw)
        image, text = latents.rows(pair_N)
        expected_image, expected_text = resident.rows(latents.pair_text_P[pair_N])
        assert torch.equal(image, expected_image)
        assert torch.equal(text, expected_text)


def test_an_epoch_reads_each_block_about_once_and_mixes_within_windows(stores, monkeypatch):
    latents = windowed(stores)
    loads = []
    load = ShuffleBuffer._load
    monkeypatch.setattr(ShuffleBuffer, "_load", lambda self, number: (loads.append(number), load(self, number))[1])
    order_P = latents.epoch_order(torch.Generator().manual_seed(1))
    assert torch.equal(order_P.sort().values, torch.arange(latents.pairs))
    resident = load_split(stores, "train")
    for slices in epoch_slices(order_P, ROWS):
        assert not set(slices.anchor_N.tolist()) & set(slices.next_N.tolist())
        for pair_N in slices:
            image, _ = latents.rows(pair_N)
            assert torch.equal(image, resident.rows(latents.pair_text_P[pair_N])[0])
    blocks = -(-latents.pairs // 20)
    assert set(loads) == set(range(blocks))
    assert len(loads) <= blocks + 2 * BUFFER_BLOCKS  # the first window comes back, for the last step's partners
    window_P = order_P[: BUFFER_BLOCKS * 20]
    assert (window_P // 20).unique().numel() == BUFFER_BLOCKS
    assert (window_P[:ROWS] // 20).unique().numel() > BUFFER_BLOCKS // 2, "a batch has pairs of many blocks"
    assert not torch.equal(order_P, latents.epoch_order(torch.Generator().manual_seed(2)))
    assert torch.equal(order_P, windowed(stores).epoch_order(torch.Generator().manual_seed(1)))


def test_what_is_held_is_within_the_budget(stores):
    latents = windowed(stores)
    assert latents._image_SBD.numel() * 4 + latents._text_SBC.numel() * 4 <= BUDGET
    assert len(latents._text_SBC) == 2 * BUFFER_BLOCKS


def test_a_budget_too_small_for_the_batch_says_what_it_takes(stores):
    with pytest.raises(UsageError, match=r"--batch-size 500 .* needs at least 178kB") as problem:
        windowed(stores, budget=50_000, rows=500)
    assert "--memory-budget 50kB" in str(problem.value)
    with pytest.raises(UsageError, match="needs at least 36MB"):
        windowed(stores, budget=50_000, rows=100_000)


def settings(**asked):
    size = {
        "size": "pairs",
        "latent-norm": "none",
        "epochs": 2,
        "batch-size": ROWS,
        "embed-dim": 8,
        "device": "cpu",
        "precision": "fp32",
    }
    return resolve_train(size | asked, pairs=1000)


@pytest.mark.parametrize("prepared", [{}, {"latent-norm": "standardize"}, {"latent-norm": "l2", "latent-width": 6}])
def test_a_run_is_like_a_resident_one_and_repeats(stores, tmp_path, prepared):
    asked = prepared | {"mask-duplicates": True, "memory-budget": f"{BUDGET / 1000}kB"}
    paths = [store.path for store in stores]
    results = {}
    for name, changes in (("one", {}), ("two", {}), ("resident", {"memory-budget": "1GB"})):
        records = list(train_run(paths, tmp_path / name, settings(**{**asked, **changes})))
        results[name] = [record.metrics["mean_recall"] for record in records if isinstance(record, Validated)]
        started = records[0]
        assert isinstance(started, Started)
        assert any("larger than --memory-budget" in note for note in started.notes) == (name != "resident")
        rms = started.latent_rms
        results.setdefault("rms", rms)
        assert rms == pytest.approx(results["rms"], rel=1e-5)
    assert outcome(tmp_path / "one") == outcome(tmp_path / "two")
    assert results["one"] == pytest.approx(results["resident"], abs=12)


def test_it_goes_on_after_a_stop(stores, tmp_path):
    asked = settings(**{"memory-budget": f"{BUDGET / 1000}kB"})
    paths = [stores[0].path]
    list(train_run(paths, tmp_path / "whole", asked))
    stopped = train_run(paths, tmp_path / "run", asked, checkpoint_s=0.0)
    for _ in range(9):
        next(stopped)
    stopped.close()
    list(resume_run(tmp_path / "run"))
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


@pytest.mark.parametrize(
    ("text", "size"), [("8GB", 8 * 10**9), ("2GiB", 2**31), ("1.5 mb", 1_500_000), ("none", None), ("64KiB", 65536)]
)
def test_sizes(text, size):
    assert settings(**{"memory-budget": text}).memory_budget == size


@pytest.mark.parametrize("text", ["", "8", "GB", "-1GB", "8 gigabytes", "nanGB", "0MB", "infGB"])
def test_what_is_no_size(text):
    with pytest.raises(UsageError, match=r"--memory-budget: wanted 'none' or a size such as 8GB"):
        settings(**{"memory-budget": text})


def test_released_pages_are_read_again(stores):
    rows = np.arange(5)
    before = stores[0].image_block(rows)
    stores[0].release()
    assert np.array_equal(stores[0].image_block(rows), before)
