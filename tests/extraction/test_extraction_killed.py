"""SIGKILL at any moment costs an unfinished shard and nothing else; no process outlives the main one."""

import os
import time
from pathlib import Path

import pytest
from support.fakes import FakeText, FakeVision
from support.killable import CONFIG, IMAGE_SHARD, TEXT_SHARD, Killable, kill
from support.stored import differing, stored_datasets

from alignvl_cli.extraction.run import run_extraction

pytestmark = pytest.mark.slow


def kill_after(process, lines):
    for _ in range(lines):
        assert process.stdout.readline()
    kill(process)


def test_killed_extractions_end_in_the_same_store(tmp_path):
    killable = Killable(tmp_path)
    for lines in (70, 80):  # in the image stage, and beyond it in the text stage
        kill_after(killable.start(), lines)
        assert not killable.output.exists()
    last = killable.start()
    output, _ = last.communicate(timeout=120)
    assert last.returncode == 0
    assert "Finished" in output

    whole = tmp_path / "whole.h5"
    *_, finished = run_extraction(killable.dataset(), FakeVision(), FakeText(), whole, CONFIG, settings={})
    assert differing(stored_datasets(killable.output), stored_datasets(whole)) == []
    assert not (tmp_path / "s.h5.partial").exists()

    encoded = killable.journal("images")
    assert len(set(encoded)) == killable.images
    assert len(encoded) <= killable.images + 2 * IMAGE_SHARD, "only the shard that a kill cut short is done again"
    assert len(killable.journal("texts")) <= finished.summary.distinct_captions + 2 * TEXT_SHARD
    shards = killable.journal("shards")
    assert len(shards) == len(set(shards))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds child processes by /proc")
def test_workers_do_not_outlive_a_killed_main_process(tmp_path):
    process = Killable(tmp_path, workers=2).start()
    for _ in range(5):
        assert process.stdout.readline()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 2
    kill_after(process, 1)
    deadline = time.monotonic() + 20
    while alive := [child for child in children if is_running(int(child))]:
        assert time.monotonic() < deadline, f"still running: {alive}"
        time.sleep(0.1)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
