"""Whole runs on small stores: what comes out, what repeats, what is refused."""

import json
import math

import numpy as np
import pytest
import torch
from support.fakes import make_store

from alignvl_cli import devices as machine
from alignvl_cli.align.ranks import image_to_text_ranks, recalls, text_to_image_ranks
from alignvl_cli.errors import DataError, DivergedError, MismatchError, UsageError
from alignvl_cli.recipes import resolve_train
from alignvl_cli.store.reader import open_store
from alignvl_cli.training.data import load_split
from alignvl_cli.training.run import count_pairs, train_run
from alignvl_cli.training.run_folder import ADAPTERS, CONFIG, METRICS, RESULT, load_run
from alignvl_cli.training.state import Finished, Started, Step, Validated
from alignvl_cli.training.validation import is_clearly_better, standard_error


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("stores") / "store.h5", images=60, dim=12, text_dim=10)


def settings(store, **asked):
    small = {
        "size": "pairs", "latent_norm": "none",
        "init": "random", "epochs": 3, "batch_size": 32, "embed_dim": 8, "adapter_depth": 1, "device": "cpu",
        "precision": "fp32",
    }  # fmt: skip
    if asked.get("adapter") in ("linear", "glu") or asked.get("recipe") == "sail":
        del small["adapter_depth"]
    layer = {key.replace("_", "-"): value for key, value in (small | asked).items()}
    return resolve_train(layer, pairs=count_pairs([store]))


def train(store, output, **asked):
    return list(train_run([store], output, settings(store, **asked)))


def test_a_run_learns_what_the_latents_share(tmp_path):
    easy = make_store(tmp_path / "easy.h5", images=120, dim=12, text_dim=12)
    size = {"epochs": 25, "batch_size": 64, "embed_dim": 16, "dropout": 0.0, "lr": 3e-3}
    records = train(easy, tmp_path / "run", **size)
    started, finished = records[0], records[-1]
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    steps = [record for record in records if isinstance(record, Step)]
    assert steps[-1].hard_loss < 0.5 * steps[0].hard_loss
    assert finished.result["best"]["mean_recall"] > 90
    assert started.pairs == count_pairs([easy]) == len(open_store(easy).rows("train").text)
    assert started.total_steps == steps[-1].step == 25 * (started.pairs // 64)


@pytest.mark.parametrize(
    ("recalls_in_errors", "kept"),
    [
        ((0.0, 0.8, 0.6), 3),  # a little less is chance: the later epoch is kept
        ((0.0, 0.8, -0.9), 2),  # clearly less is not
        ((0.0, 2.0, 1.9, 0.5), 3),
        ((1.0, 1.0, 1.0), 3),
        ((2.0, -1.0, 0.5), 1),
        ((0.0, 0.9, 1.8, 0.0), 3),
    ],
)
def test_of_epochs_that_only_chance_tells_apart_the_latest_is_kept(
    store, tmp_path, monkeypatch, recalls_in_errors, kept
):
    directions = {name: {"R@1": 50.0, "R@5": 50.0, "R@10": 50.0} for name in ("image_to_text", "text_to_image")}
    error = standard_error(directions, load_split([open_store(store)], "val"))
    recalls = iter(50 + number * error for number in recalls_in_errors)

    def validated(adapters, latents):
        recall = next(recalls)
        spread = {"image": 0.0, "text": 0.0}
        return {**directions, "mean_recall": recall, "rsum": 6 * recall, "mean_squared_cosine": spread}

    monkeypatch.setattr("alignvl_cli.training.loop.validate", validated)
    records = train(store, tmp_path / "run", epochs=len(recalls_in_errors))
    assert records[-1].result["best"]["epoch"] == kept


@pytest.mark.parametrize("keep", ["latest", "best"])
def test_the_kept_adapters_are_those_of_the_validation_that_is_to_be_kept(store, tmp_path, keep):
    records = train(store, tmp_path / "run", epochs=12, lr=0.05, keep_epoch=keep)
    validated = [record for record in records if isinstance(record, Validated)]
    best = max(validated, key=lambda record: record.metrics["mean_recall"])  # the first of equals
    if keep == "latest":
        val = load_split([open_store(store)], "val")
        *_, best = (one for one in validated if not is_clearly_better(best.metrics, one.metrics, val))
    assert [record for record in validated if record.best][-1] == best
    run = load_run(tmp_path / "run")
    assert run.result["best"] == {"step": best.step, "epoch": best.epoch, **best.metrics}
    opened = open_store(store)
    rows = opened.rows("val")
    image = run.adapters.project_image(torch.from_numpy(opened.image_block(rows.image)))
    text = run.adapters.project_text(torch.from_numpy(opened.text_block(rows.text)))
    owner = torch.from_numpy(rows.text_image)
    assert recalls(image_to_text_ranks(image, text, owner).rank_Q) == best.metrics["image_to_text"]
    assert recalls(text_to_image_ranks(image, text, owner).rank_Q) == best.metrics["text_to_image"]
    six = [*best.metrics["image_to_text"].values(), *best.metrics["text_to_image"].values()]
    assert best.metrics["rsum"] == pytest.approx(sum(six))
    assert best.metrics["mean_recall"] == pytest.approx(sum(six) / 6)


def test_of_ties_the_best_is_the_earlier(store, tmp_path):
    records = train(store, tmp_path / "run", lr=1e-12, epochs=4, keep_epoch="best")  # all validations are equal
    validated = [record for record in records if isinstance(record, Validated)]
    assert len(validated) == 4
    assert [record.best for record in validated] == [True, False, False, False]


def test_a_seed_repeats_bit_for_bit_and_another_differs(store, tmp_path):
    before = torch.random.get_rng_state()
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        train(store, tmp_path / name, seed=seed)
    assert torch.equal(torch.random.get_rng_state(), before)
    one, two, three = ((tmp_path / name / ADAPTERS).read_bytes() for name in ("one", "two", "three"))
    assert one == two
    assert one != three


def test_the_folder_says_how_it_was_made_and_logs_what_passed(store, tmp_path):
    records = train(store, tmp_path / "run", mix=False, noise="uniform", latent_norm="standardize")
    folder = tmp_path / "run"
    run = load_run(folder)
    assert run.config["settings"]["mix"] is False
    assert run.config["settings"]["noise"] == "uniform"
    assert run.config["stores"] == [{"path": str(store), "content_hash": open_store(store).content_hash}]
    assert run.split_used == "val"
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["threads"] == torch.get_num_threads()
    assert "torch" in environment["libraries"]
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    passed = [record for record in records if isinstance(record, Step | Validated)]
    assert [line["kind"] for line in lines] == [type(record).__name__.lower() for record in passed]
    assert [line["step"] for line in lines] == [record.step for record in passed]
    assert run.result["pairs_per_s"] > 0
    assert run.result["peak_memory_bytes"] > 1 << 20
    assert 0 < run.result["share_of_peak"] < 0.5  # of so small a step


ARMS = {
    "no mix": {"mix": False},
    "uniform": {"noise": "uniform"},
    "uniform by range": {"noise": "uniform", "noise_match": "range"},
    "rms": {"noise_units": "rms", "noise_std": 0.3},
    "output noise": {"noise_position": "output"},
    "no rp": {"rp": False},
    "no es": {"es": False},
    "pair coefficient": {"mix_coefficient": "pair"},
    "masked": {"mask_duplicates": True},
    "l2": {"latent_norm": "l2"},
    "standardize": {"latent_norm": "standardize"},
    "reduced": {"latent_width": 5},
    "reduced after l2": {"latent_width": 5, "latent_norm": "l2"},
    "start at CCA": {"init": "cca", "lr": 1e-5},
    "linear": {"adapter": "linear"},
    "fixed temperature": {"temperature": "fixed:0.05"},
    "laplace": {"noise": "laplace"},
    "dropout noise": {"noise": "dropout"},
    "off the diagonal": {"es_target": "off-diagonal"},
    "by similarity": {"es_target": "similarity"},
    "by similarity, masked": {"es_target": "similarity", "mask_duplicates": True},
    "ramp": {"es_schedule": "linear"},
    "by confidence": {"es_schedule": "confidence"},
    "mlp": {"adapter": "mlp"},
    "glu": {"adapter": "glu"},
    "sigmoid": {"loss": "sigmoid"},
    "sigmoid, smoothed by similarity and confidence": {
        "loss": "sigmoid",
        "es_target": "similarity",
        "es_schedule": "confidence",
    },
    "sigmoid, fixed temperature": {"loss": "sigmoid", "temperature": "fixed:0.05"},
    "sail": {"recipe": "sail"},
    "clip": {"recipe": "clip"},
    "fusemix": {"recipe": "fusemix"},
    "another seed": {"seed": 1},
    "bf16": {"precision": "bf16"},
}


def test_every_setting_changes_what_is_learned(store, tmp_path):
    weights = {}
    for name, asked in {"plain": {}, **ARMS}.items():
        records = train(store, tmp_path / name, **asked)
        assert math.isfinite(records[-1].result["best"]["mean_recall"])
        weights[name] = (tmp_path / name / ADAPTERS).read_bytes()
    assert len(set(weights.values())) == len(weights)
    assert load_run(tmp_path / "fixed temperature").temperature == pytest.approx(0.05)
    assert load_run(tmp_path / "plain").temperature != pytest.approx(0.07, abs=1e-6)
    fixed, learned = (load_run(tmp_path / name) for name in ("sigmoid, fixed temperature", "sail"))
    assert fixed.temperature == fixed.result["tau"] == pytest.approx(0.05)
    assert learned.temperature == pytest.approx(learned.result["tau"])
    assert learned.temperature != pytest.approx(0.1, abs=1e-6)
    assert learned.adapters.bias.item() != -10


def test_tiles_change_memory_and_not_the_loss(store, tmp_path):
    for loss in ("infonce", "sigmoid"):
        whole, tiled = (
            train(store, tmp_path / f"{loss}-{tile}", loss=loss, loss_tile=tile, mask_duplicates=True, epochs=2)
            for tile in ("auto", "5")
        )
        found, wanted = ([record.loss for record in records if isinstance(record, Step)] for records in (tiled, whole))
        assert found == pytest.approx(wanted, rel=1e-5)


def test_the_automatic_tile_is_the_batch_while_that_takes_little_memory(monkeypatch):
    monkeypatch.setattr(machine, "memory_bytes", lambda device: 2**33)
    assert machine.automatic_tile(512, "cpu") == 512
    assert machine.automatic_tile(20_480, "cpu") == machine.CPU_TILE
    monkeypatch.setattr(machine, "memory_bytes", lambda device: 141 * 10**9)
    assert machine.automatic_tile(20_480, "cuda") == 20_480
    assert machine.automatic_tile(1_000_000, "cuda") == machine.ACCELERATOR_TILE
    assert machine.automatic_tile(4096, "cpu") == 4096
    assert machine.automatic_tile(20_480, "cpu") == machine.CPU_TILE  # however much a machine of many users has


def test_this_machine_has_memory():
    assert machine.memory_bytes("cpu") > 2**28


def test_arms_share_the_number_of_steps_and_the_first_draws(store, tmp_path):
    full, no_mix = (train(store, tmp_path / name, **asked) for name, asked in (("a", {}), ("b", {"mix": False})))
    assert full[0].total_steps == no_mix[0].total_steps
    config = {"rp": False, "lr": 1e-12, "mix": False}
    loud, quiet = (train(store, tmp_path / f"es{es}", es=es, **config) for es in (True, False))
    assert loud[1].hard_loss == pytest.approx(quiet[1].hard_loss, abs=1e-6)  # same weights, batch and dropout
    assert quiet[1].loss == quiet[1].hard_loss
    assert loud[1].loss != pytest.approx(loud[1].hard_loss, abs=1e-3)  # only the target differs


def test_the_noise_is_told_as_a_share_of_the_latents(store, tmp_path):
    started = train(store, tmp_path / "faint", noise_units="absolute")[0]
    for side in ("image", "text"):
        assert started.noise_share[side] == pytest.approx(0.01 / started.latent_rms[side])
    assert any("can hardly act" in note for note in started.notes)
    loud = train(store, tmp_path / "loud", noise_std=0.3)[0]
    assert loud.noise_share == pytest.approx({"image": 0.3, "text": 0.3})
    assert not any("can hardly act" in note for note in loud.notes)
    unit = train(store, tmp_path / "unit", latent_norm="l2")[0]
    assert unit.latent_rms["image"] == pytest.approx(1 / math.sqrt(12), rel=1e-5)
    assert train(store, tmp_path / "none", rp=False)[0].noise_share is None


def test_several_stores_train_together(store, tmp_path):
    other = make_store(tmp_path / "other.h5", images=40, dim=12, text_dim=10, seed=9)
    asked = settings(store, epochs=1)
    started, *_, finished = train_run([store, other], tmp_path / "run", asked)
    assert started.pairs == count_pairs([store, other]) == count_pairs([store]) + count_pairs([other])
    run = load_run(tmp_path / "run")
    assert [entry["path"] for entry in run.config["stores"]] == [str(store), str(other)]
    assert run.config["selection_store"]["path"] == str(store)
    assert finished.result == run.result


def test_another_store_can_select(store, tmp_path):
    train_only = make_store(tmp_path / "t.h5", images=40, dim=12, text_dim=10, seed=2, splits={"train": 1.0})
    asked = settings(train_only, epochs=1)
    with pytest.raises(DataError, match=r"t\.h5: no image in split 'val'.*--val"):
        list(train_run([train_only], tmp_path / "run", asked))
    assert not (tmp_path / "run").exists()
    val_only = make_store(tmp_path / "v.h5", images=40, dim=12, text_dim=10, splits={"val": 1.0})
    for attempt in (lambda: count_pairs([val_only]), lambda: list(train_run([val_only], tmp_path / "run", asked))):
        with pytest.raises(DataError, match=r"v\.h5: no image in split 'train' \(it has val \(40 images\)\)"):
            attempt()
    started = next(iter(train_run([train_only], tmp_path / "run", asked, val=store)))
    assert started.val_images == len(open_store(store).rows("val").image)


def test_refusals_leave_nothing_behind(store, tmp_path):
    stranger = make_store(tmp_path / "stranger.h5", images=40, dim=12, text_dim=10, encoders="other")
    pairs = count_pairs([store])
    cases = [
        (UsageError, rf"may be at most {pairs // 2}\b", [store], settings(store, batch_size=pairs)),
        (MismatchError, "extract both alike", [store, stranger], settings(store)),
        (DataError, "no such store", [tmp_path / "absent.h5"], settings(store)),
    ]
    for error, message, stores, asked in cases:
        with pytest.raises(error, match=message):
            list(train_run(stores, tmp_path / "run", asked))
        assert not (tmp_path / "run").exists()


def test_a_complete_run_is_replaced_only_on_request(store, tmp_path):
    train(store, tmp_path / "run")
    first = (tmp_path / "run" / ADAPTERS).read_bytes()
    with pytest.raises(UsageError, match="--overwrite"):
        train(store, tmp_path / "run", seed=1)
    assert (tmp_path / "run" / ADAPTERS).read_bytes() == first
    list(train_run([store], tmp_path / "run", settings(store, seed=1), overwrite=True))
    assert (tmp_path / "run" / ADAPTERS).read_bytes() != first


def test_an_abandoned_run_keeps_its_best_and_is_not_complete(store, tmp_path):
    records = train_run([store], tmp_path / "run", settings(store, epochs=50))
    for record in records:
        if isinstance(record, Validated):
            break
    records.close()
    assert (tmp_path / "run" / ADAPTERS).is_file()
    assert not (tmp_path / "run" / RESULT).exists()
    with pytest.raises(DataError, match="incomplete"):
        load_run(tmp_path / "run")


def test_divergence_stops_at_once_and_keeps_the_best(store, tmp_path):
    records = train_run([store], tmp_path / "run", settings(store, lr=1e30, epochs=40))
    with pytest.raises(DivergedError, match=r"training diverged: .* try a smaller --lr than 1e\+30"):
        list(records)
    assert not (tmp_path / "run" / RESULT).exists()
    assert (tmp_path / "run" / CONFIG).is_file()


def test_latents_of_any_scale_are_no_reason_to_diverge(tmp_path):
    wide = np.random.default_rng(0).standard_normal((60, 12)).astype(np.float32) * 1e6
    path = make_store(tmp_path / "wide.h5", images=60, dim=12, text_dim=10, image_latent=wide)
    assert train(path, tmp_path / "run")[-1].result["steps"] > 0
