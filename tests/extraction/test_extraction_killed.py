"""SIGKILL at any moment costs an unfinished shard and nothing else; no process outlives the main one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes import FakeText, FakeVision, make_dataset

from alignvl_cli.config import ExtractConfig
from alignvl_cli.extraction.run import run_extraction
from alignvl_cli.store.reader import open_store

TESTS = Path(__file__).parents[1]
IMAGES, SHARD = 200, 32

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
if __name__ == "__main__":
    from fakes import FakeText, FakeVision, make_dataset
    from alignvl_cli.config import ExtractConfig
    from alignvl_cli.extraction.run import run_extraction
    folder = Path({folder!r})
    vision = FakeVision(delay=0.02, journal=folder / "images.log")
    text = FakeText(delay=0.01, journal=folder / "texts.log")
    config = ExtractConfig(batch_size=2, workers={workers})
    dataset = make_dataset(folder / "data", images={images})
    for event in run_extraction(dataset, vision, text, folder / "s.h5", config, settings={{}}):
        print(event, flush=True)
"""


@pytest.fixture
def start(tmp_path):
    """Start the extraction in a process of its own."""

    def _start(workers=0):
        script = tmp_path / "extract.py"
        script.write_text(SCRIPT.format(tests=str(TESTS), folder=str(tmp_path), workers=workers, images=IMAGES))
        return subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)

    return _start


def kill_after(process, lines):
    for _ in range(lines):
        assert process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()


def test_killed_extractions_end_in_the_same_store(tmp_path, start):
    for lines in (70, 80):  # in the image stage, and beyond it in the text stage
        kill_after(start(), lines)
        assert not (tmp_path / "s.h5").exists()
    last = start()
    output, _ = last.communicate(timeout=120)
    assert last.returncode == 0
    assert "Finished" in output

    dataset = make_dataset(tmp_path / "data", images=IMAGES)
    config = ExtractConfig(batch_size=2, workers=0)
    *_, finished = run_extraction(dataset, FakeVision(), FakeText(), tmp_path / "whole.h5", config, settings={})
    store, whole = open_store(tmp_path / "s.h5"), open_store(tmp_path / "whole.h5")
    assert store.content_hash == whole.content_hash
    assert store.image_block(slice(None)).tobytes() == whole.image_block(slice(None)).tobytes()
    assert store.text_block(slice(None)).tobytes() == whole.text_block(slice(None)).tobytes()
    assert not (tmp_path / "s.h5.partial").exists()

    encoded = (tmp_path / "images.log").read_text().splitlines()
    assert len(set(encoded)) == IMAGES
    assert len(encoded) <= IMAGES + 2 * SHARD, "only the shard that a kill cut short is done again"
    texts = (tmp_path / "texts.log").read_text().splitlines()
    assert len(texts) <= finished.summary.distinct_captions + 2 * 128


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds child processes by /proc")
def test_workers_do_not_outlive_a_killed_main_process(start):
    process = start(workers=2)
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
