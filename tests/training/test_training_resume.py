"""A run that was stopped goes on bit for bit; whatever does not belong to it is refused."""

import json
import os
import shutil
import signal
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from support.fakes import make_store
from support.killable_training import begin, end, outcome, settings, small_store

from alignvl_cli.artifacts import SEAL, read_json
from alignvl_cli.errors import DataError, MismatchError, UsageError
from alignvl_cli.recipes import resolve_train
from alignvl_cli.settings import TrainConfig
from alignvl_cli.training import checkpoint
from alignvl_cli.training import checkpoint as snapshot
from alignvl_cli.training.checkpoint import FOLDER, STATE, read_checkpoint, write_checkpoint
from alignvl_cli.training.run import resume_run, train_run
from alignvl_cli.training.run_folder import ADAPTERS, CONFIG, ENVIRONMENT, METRICS, RESULT, held_run, load_run
from alignvl_cli.training.state import Step, Validated


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return small_store(tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="module")
def undisturbed(store, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    records = list(train_run([store], run, settings()))
    return run, records


def stopped(store: Path, run: Path, after: int, **options) -> Path:
    """Train until record number `after` has passed, and drop everything."""
    records = train_run([store], run, settings(), **{"checkpoint_s": 0.0, **options})
    for _ in range(after):
        next(records)
    records.close()
    return run


def test_from_every_record_on_the_same_weights_metrics_and_result(store, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "CHECKPOINT_SHARE", 0)  # one at every record that allows it
    whole, records = undisturbed
    wanted = outcome(whole)
    steps_per_epoch = records[0].steps_per_epoch
    assert steps_per_epoch >= 3
    resumed_within_an_epoch = 0
    for after in range(1, len(records), 2):
        run = stopped(store, tmp_path / str(after), after)
        assert not (run / RESULT).exists()
        started = next(resumed := resume_run(run, checkpoint_s=0.0))
        resumed_within_an_epoch += started.first_step % steps_per_epoch > 0
        list(resumed)
        assert outcome(run) == wanted, after
        assert not (run / FOLDER).exists(), "a complete run needs no checkpoint"
        assert load_run(run)
    assert resumed_within_an_epoch > 3


def test_without_a_checkpoint_the_run_begins_again(store, undisturbed, tmp_path):
    run = stopped(store, tmp_path / "run", 9, checkpoint_s=1e9)
    assert (run / METRICS).read_text()
    resumed = resume_run(run)
    assert next(resumed).first_step == 0
    list(resumed)
    assert outcome(run) == outcome(undisturbed[0])


def test_stopped_again_and_again(store, undisturbed, tmp_path):
    run = stopped(store, tmp_path / "run", 3)
    for _ in range(4):
        records = resume_run(run, checkpoint_s=0.0)
        for _ in range(4):
            next(records)
        records.close()
    list(resume_run(run, checkpoint_s=0.0))
    assert outcome(run) == outcome(undisturbed[0])


@pytest.mark.skipif(os.name == "nt", reason="no such signals")
def test_killed_terminated_and_interrupted_in_a_process_of_its_own(store, undisturbed, tmp_path):
    run = tmp_path / "run"
    for number, records in ((signal.SIGKILL, 6), (signal.SIGTERM, 7), (signal.SIGINT, 8)):
        process = begin(store, run, pause_s=0.02)
        assert process.stdout is not None
        for _ in range(records):
            assert process.stdout.readline()
        assert end(process, number) != 0
        assert read_checkpoint(run) is not None
    last = begin(store, run)
    last.communicate()
    assert last.returncode == 0
    assert outcome(run) == outcome(undisturbed[0])


def test_patience_and_warnings_are_part_of_the_state(tmp_path):
    flat = torch.ones(60, 12).numpy()
    store = make_store(tmp_path / "flat.h5", images=60, dim=12, text_dim=10, image_latent=flat)
    config = resolve_train(
        {"epochs": 9, "batch-size": 24, "embed-dim": 8, "lr": 1e-12, "patience": 3, "device": "cpu"}, pairs=144
    )
    whole = list(train_run([store], tmp_path / "whole", config))
    assert whole[-1].result["stopped_early"]
    for after in range(2, len(whole), 3):
        run = tmp_path / str(after)
        records = train_run([store], run, config, checkpoint_s=0.0)
        for _ in range(after):
            next(records)
        records.close()
        list(resume_run(run))
        assert outcome(run) == outcome(tmp_path / "whole")


def test_a_checkpoint_cut_short_leaves_the_former_one(store, undisturbed, tmp_path, monkeypatch):
    run = stopped(store, tmp_path / "run", 8)
    former = json.loads((run / FOLDER / STATE).read_text())["state"]["step"]

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "write_json", full_disk)
        with pytest.raises(OSError, match="No space left"):
            list(resume_run(run, checkpoint_s=0.0))
    assert len(list((run / FOLDER).iterdir())) == 3, "the new tensors, the former ones, and the state that names these"
    started = next(resumed := resume_run(run, checkpoint_s=0.0))
    assert started.first_step == former
    list(resumed)
    assert outcome(run) == outcome(undisturbed[0])


def test_checkpoints_rest_between_steps_and_take_a_twentieth_of_the_time(store, tmp_path, monkeypatch):
    clock = [0.0]

    class Time:
        @staticmethod
        def perf_counter() -> float:
            return clock[0]

    written = []

    def save(writer, step, tensors, state):
        written.append((step, clock[0]))
        clock[0] += 4.0  # what a write takes

    monkeypatch.setattr(snapshot, "time", Time)
    monkeypatch.setattr("alignvl_cli.training.run_folder.RunWriter.save_checkpoint", save)
    for record in train_run([store], tmp_path / "run", settings(), checkpoint_s=30.0):
        clock[0] += 10.0 if isinstance(record, Step | Validated) else 0.0
    pauses = [later - earlier - 4.0 for (_, earlier), (_, later) in pairwise(written)]
    assert written[0][1] == 30.0
    assert len(pauses) >= 1
    assert all(80.0 <= pause <= 100.0 for pause in pauses)


def test_settings_survive_the_folder():
    config = settings()
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    with pytest.raises(KeyError, match="another version"):
        TrainConfig.from_json({**config.to_json(), "flavour": "vanilla"})


def test_the_threads_of_the_run_are_set_again(store, tmp_path):
    run = stopped(store, tmp_path / "run", 5)
    config = read_json(run / CONFIG, "config")
    threads = torch.get_num_threads()
    config["machine"]["threads"] = threads + 1
    (run / CONFIG).write_text(json.dumps(config))
    records = resume_run(run)
    assert next(records).threads == threads + 1
    records.close()
    assert torch.get_num_threads() == threads


def test_what_differs_from_the_machine_of_the_run_is_said(store, tmp_path):
    run = stopped(store, tmp_path / "run", 5)
    resumed = resume_run(run)
    assert not [note for note in next(resumed).notes if "begun elsewhere" in note]
    resumed.close()
    environment = json.loads((run / ENVIRONMENT).read_text())
    environment |= {"device": "cpu (aarch64, SVE)", "libraries": environment["libraries"] | {"torch": "2.6.0"}}
    environment.pop(SEAL)
    (run / ENVIRONMENT).write_text(json.dumps(environment))
    resumed = resume_run(run)
    (note,) = (note for note in next(resumed).notes if "begun elsewhere" in note)
    resumed.close()
    assert "device cpu (aarch64, SVE) -> cpu (" in note
    assert "torch 2.6.0 -> " in note
    assert "platform" not in note


def test_a_complete_run_is_not_resumed(undisturbed):
    run, _ = undisturbed
    before = (run / ADAPTERS).read_bytes()
    with pytest.raises(UsageError, match=r"is complete, .*--overwrite"):
        list(resume_run(run))
    assert (run / ADAPTERS).read_bytes() == before


def test_what_is_no_run_is_not_resumed(tmp_path):
    for place in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DataError, match="no run to resume"):
            list(resume_run(place))


def test_another_process_in_the_folder(store, tmp_path):
    run = stopped(store, tmp_path / "run", 5)
    with held_run(run):
        for attempt in (
            lambda: list(resume_run(run)),
            lambda: list(train_run([store], run, settings(), overwrite=True)),
        ):
            with pytest.raises(DataError, match="another process is training in this run folder"):
                attempt()
        assert (run / FOLDER / STATE).is_file()
    running = train_run([store], tmp_path / "other", settings())
    next(running)
    with pytest.raises(DataError, match="another process"):
        list(train_run([store], tmp_path / "other", settings(), overwrite=True))
    assert list(running)[-1].result["steps"] > 0


@pytest.mark.parametrize("changed", [{"seed": 5}, {"encoders": "other"}, {"noise": 0.4}])
def test_a_store_that_is_another_now(tmp_path, changed):
    store = small_store(tmp_path)
    run = stopped(store, tmp_path / "run", 5)
    store.unlink()
    make_store(store, **{"images": 60, "dim": 12, "text_dim": 10, **changed})
    with pytest.raises(MismatchError, match=r"store\.h5.*put the former store back"):
        list(resume_run(run))


def test_a_store_that_was_moved_is_found_by_its_content(undisturbed, tmp_path):
    store = small_store(tmp_path)
    run = stopped(store, tmp_path / "run", 5)
    moved = shutil.move(store, tmp_path / "moved.h5")
    with pytest.raises(DataError, match="not there, nor is its like"):
        list(resume_run(run))
    broken = tmp_path / "broken.h5"
    broken.write_text("no store")
    list(resume_run(run, [broken, moved]))
    assert outcome(run) == outcome(undisturbed[0])


def test_damage_is_told(store, tmp_path):
    run = stopped(store, tmp_path / "run", 7)
    (tensors,) = (run / FOLDER).glob("*.safetensors")
    sound = tensors.read_bytes()
    tensors.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(DataError, match="this checkpoint is damaged"):
        list(resume_run(run))
    tensors.write_bytes(sound)
    metrics = (run / METRICS).read_bytes()
    (run / METRICS).write_bytes(metrics[:40])
    with pytest.raises(DataError, match=r"metrics\.jsonl: 40 bytes, and the checkpoint was taken after"):
        list(resume_run(run))
    (run / METRICS).write_bytes(metrics)
    (run / CONFIG).write_text(json.dumps({**read_json(run / CONFIG, "config"), "settings": {"mix": True}}))
    with pytest.raises(DataError, match="not the configuration of a run that this version can continue"):
        list(resume_run(run))


def test_a_second_checkpoint_of_one_step_leaves_the_first_in_place_until_it_is_complete(tmp_path, monkeypatch):
    """Two pairs of an ensemble have the same steps."""
    write_checkpoint(tmp_path, 0, {"a": torch.zeros(3)}, {"number": 1})

    def killed(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr("alignvl_cli.training.checkpoint.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, 0, {"a": torch.ones(3)}, {"number": 2})
    monkeypatch.undo()
    tensors, state = read_checkpoint(tmp_path)
    assert (tensors["a"].tolist(), state) == ([0.0] * 3, {"number": 1})
    write_checkpoint(tmp_path, 0, {"a": torch.ones(3)}, {"number": 2})
    tensors, state = read_checkpoint(tmp_path)
    assert (tensors["a"].tolist(), state) == ([1.0] * 3, {"number": 2})
    assert len([*tmp_path.rglob("*.safetensors")]) == 1
