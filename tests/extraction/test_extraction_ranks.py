"""Processes that share an extraction over one folder end in the store of one process, whoever dies on the way."""

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import tiny_models
from support.fakes import FakeText, FakeVision, make_dataset
from support.killable import CONFIG, Killable
from support.stored import differing, stored_datasets
from typer.testing import CliRunner

from alignvl_cli.cli.app import app
from alignvl_cli.distributed import ALONE, Ranks, ranks_here
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.extraction.events import Finished, Progress, Stage
from alignvl_cli.extraction.run import run_extraction

SECONDS = 120
"""Long past any honest run: beyond it something waits for ever."""


def of(count):
    return [Ranks(rank, count, rank, count) for rank in range(count)]


def extract(dataset, output, ranks=ALONE, *, vision=None, text=None, config=CONFIG, **options):
    return list(
        run_extraction(
            dataset, vision or FakeVision(), text or FakeText(), output, config, settings={}, ranks=ranks, **options
        )
    )


def together(dataset, output, count, delay=0.01):
    """The events of each of `count` ranks, which run in threads, and their encoders."""
    encoders = [(FakeVision(delay=delay), FakeText(delay=delay)) for _ in range(count)]
    events = {}

    def run(ranks):
        vision, text = encoders[ranks.rank]
        events[ranks.rank] = extract(dataset, output, ranks, vision=vision, text=text)

    threads = [threading.Thread(target=run, args=[ranks], daemon=True) for ranks in of(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()
    return [events[rank] for rank in range(count)], encoders


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A dataset with repeats and unreadable files, and the datasets of its store as one process makes it."""
    folder = tmp_path_factory.mktemp("alone")
    dataset = make_dataset(folder / "data", images=200, repeat_image_every=9, repeat_caption_every=5)
    (folder / "data" / "00005.png").unlink()
    (folder / "data" / "00070.png").write_bytes(b"<html>")
    *_, finished = extract(dataset, folder / "s.h5")
    return dataset, stored_datasets(folder / "s.h5"), finished.summary


@pytest.mark.parametrize("count", [2, 3])
def test_ranks_make_the_store_of_one_process_and_share_the_work(tmp_path, alone, count):
    dataset, expected, summary = alone
    events, encoders = together(dataset, tmp_path / "s.h5", count)
    assert differing(stored_datasets(tmp_path / "s.h5"), expected) == []
    assert [path.name for path in tmp_path.iterdir()] == ["s.h5"]
    pictures = [sum(vision.batches) for vision, _ in encoders]
    assert sum(pictures) == summary.distinct_images, "each distinct picture once, by one of them"
    assert sum(len(batch) for _, text in encoders for batch in text.batches) == summary.distinct_captions
    assert min(pictures) > 0
    for rank in events:
        if isinstance(rank[-1], Finished):
            assert rank[-1].summary.content_hash == summary.content_hash
            assert rank[-1].summary.rejected == 2


def test_a_rank_that_comes_when_all_is_done_leaves_at_once(tmp_path, alone):
    dataset, _, _ = alone
    together(dataset, tmp_path / "s.h5", 2)
    vision = FakeVision()
    assert extract(dataset, tmp_path / "s.h5", Ranks(1, 2, 1, 2), vision=vision) == []
    assert vision.batches == []
    assert [path.name for path in tmp_path.iterdir()] == ["s.h5"]


def test_what_one_rank_left_is_taken_up_by_any_number(tmp_path, alone):
    dataset, expected, _ = alone
    for count, lines in ((2, 4), (1, 30), (3, 60)):
        ranks = ALONE if count == 1 else Ranks(0, count, 0, count)
        running = run_extraction(dataset, FakeVision(), FakeText(), tmp_path / "s.h5", CONFIG, settings={}, ranks=ranks)
        for _ in range(lines):
            next(running)
        running.close()
    _, encoders = together(dataset, tmp_path / "s.h5", 2)
    assert 0 < sum(sum(vision.batches) for vision, _ in encoders) < 150
    assert differing(stored_datasets(tmp_path / "s.h5"), expected) == []


def test_ranks_that_take_up_work_on_pictures_that_have_changed_agree(tmp_path):
    """A content moves to an earlier shard, others change, go and come back: what a shard holds moves in later ones."""
    dataset, data = make_dataset(tmp_path / "data", images=200), tmp_path / "data"
    (data / "00010.png").rename(data / "00010.away")
    (data / "00150.png").write_bytes((data / "00020.png").read_bytes())
    running = run_extraction(dataset, FakeVision(), FakeText(), tmp_path / "s.h5", CONFIG, settings={}, ranks=of(2)[0])
    for event in running:
        if isinstance(event, Progress) and event.stage is Stage.texts and event.done > 200:
            break
    running.close()
    (data / "00010.away").rename(data / "00010.png")
    (data / "00005.png").write_bytes((data / "00190.png").read_bytes())
    (data / "00020.png").write_bytes(b"no picture")
    (data / "00100.png").unlink()
    events, encoders = together(dataset, tmp_path / "s.h5", 3)
    assert 0 < sum(sum(vision.batches) for vision, _ in encoders) < 200
    assert {rank[-1].summary.rejected for rank in events if isinstance(rank[-1], Finished)} == {2}
    extract(dataset, tmp_path / "whole.h5")
    assert differing(stored_datasets(tmp_path / "s.h5"), stored_datasets(tmp_path / "whole.h5")) == []


def test_an_error_in_one_rank_stops_no_other(tmp_path, alone):
    dataset, expected, _ = alone
    failing = run_extraction(
        dataset, FakeVision(poison="80-0-77"), FakeText(), tmp_path / "s.h5", CONFIG, settings={}, ranks=of(2)[0]
    )
    with pytest.raises(DataError, match="not finite"):
        list(failing)
    extract(dataset, tmp_path / "s.h5", of(2)[1])
    assert differing(stored_datasets(tmp_path / "s.h5"), expected) == []


def test_a_killed_rank_leaves_its_work_to_the_others(tmp_path):
    first = Killable(tmp_path, image_delay=0.02, ranks=2)
    dataset = first.dataset()
    dying, living = first.start(), replace(first, rank=1).start()
    for _ in range(20):
        dying.stdout.readline()
    dying.send_signal(signal.SIGKILL)
    output, _ = living.communicate(timeout=SECONDS)
    dying.wait()
    dying.stdout.close()
    assert living.returncode == 0
    assert "Finished" in output
    extract(dataset, tmp_path / "whole.h5")
    assert differing(stored_datasets(tmp_path / "s.h5"), stored_datasets(tmp_path / "whole.h5")) == []
    assert not (tmp_path / "s.h5.partial").exists()


def test_alone_and_shared_do_not_meet(tmp_path, alone):
    dataset, _, _ = alone
    shared = run_extraction(dataset, FakeVision(), FakeText(), tmp_path / "s.h5", CONFIG, settings={}, ranks=of(2)[0])
    next(shared)
    with pytest.raises(DataError, match="another process"):
        extract(dataset, tmp_path / "s.h5")
    shared.close()


def test_a_lone_process_keeps_ranks_out(tmp_path, alone, monkeypatch):
    dataset, _, _ = alone
    monkeypatch.setattr("alignvl_cli.extraction.shards.ENTRY_SECONDS", 0.5)
    running = run_extraction(dataset, FakeVision(), FakeText(), tmp_path / "s.h5", CONFIG, settings={})
    next(running)
    with pytest.raises(DataError, match="another process"):
        extract(dataset, tmp_path / "s.h5", of(2)[1])
    running.close()


@pytest.mark.parametrize("option", ["overwrite", "restart"])
def test_nobody_throws_away_what_others_may_be_using(tmp_path, alone, option):
    with pytest.raises(UsageError, match=r"remove .*s\.h5\.partial first"):
        extract(alone[0], tmp_path / "s.h5", of(2)[0], **{option: True})


def test_sharing_needs_locks(tmp_path, alone, monkeypatch):
    monkeypatch.setattr("alignvl_cli.artifacts.fcntl", None)
    with pytest.raises(DataError, match="one process"):
        extract(alone[0], tmp_path / "s.h5", of(2)[0])


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ALONE),
        ({"WORLD_SIZE": "1"}, ALONE),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, Ranks(1, 2, 1, 2)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, Ranks(1, 2, None, 2)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, Ranks(5, 8, 1, 4)),
    ],
)
def test_ranks_are_read_from_the_environment(environment, expected):
    assert ranks_here(environment) == expected


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "x"},
        {"WORLD_SIZE": "-1"},
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "2", "LOCAL_RANK": "1"},
        {"RANK": "0"},
        {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"},
    ],
)
def test_nonsense_in_the_environment_is_said(environment):
    with pytest.raises(UsageError, match="torchrun"):
        ranks_here(environment)


def test_torchrun_gives_the_store_of_one_process(tmp_path):
    """The command line itself, two ranks of torchrun against one process, with real tiny encoders."""
    for item in make_dataset(tmp_path / "data", images=90, repeat_image_every=7).items:
        (tmp_path / "data" / item.uri).with_suffix(".txt").write_text("\n".join(item.captions))
    tiny_models.save_dinov2(tmp_path / "vision")
    tiny_models.save_sentence_transformer(tmp_path / "text")
    arguments = [
        *("-m", "alignvl_cli", "extract", str(tmp_path / "data"), "--vision", str(tmp_path / "vision")),
        *("--text", str(tmp_path / "text"), "--device", "cpu", "--batch-size", "2", "--workers", "0"),
        *("--workspace", str(tmp_path / "w")),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    shared = tmp_path / "shared.h5"
    done = subprocess.run(
        [*torchrun, "-o", str(shared)], capture_output=True, text=True, env=environment, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(shared)], "rank 0 alone speaks"
    single = tmp_path / "single.h5"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert CliRunner().invoke(app, [*arguments[2:], "-o", str(single)]).exit_code == 0
    torch.set_num_threads(threads)
    assert differing(stored_datasets(shared), stored_datasets(single)) == []
    assert not Path(f"{shared}.partial").exists()
