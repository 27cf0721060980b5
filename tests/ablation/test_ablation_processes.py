"""The processes that make a study's runs: what each gets, and how they end."""

import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import active_children
from pathlib import Path

import pytest
from support.fakes import make_store
from support.studies import write_study

from alignvl_cli.ablation.processes import _result, _started
from alignvl_cli.ablation.run import Begun, run_study
from alignvl_cli.ablation.setup import set_up
from alignvl_cli.ablation.study import load_study
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.settings import Device


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("stores") / "tiny.h5", images=60, dim=12, text_dim=10)


def long_study(store, folder):
    """One whose runs take minutes."""
    study = load_study(write_study(folder / "study.toml", epochs=20_000))
    return run_study(set_up(study, store, Device.cpu, 1), folder / "study", 2)


def training(folder):
    """Waits until two runs log their steps."""
    while len(list(folder.glob("study/arms/*/*/metrics.jsonl"))) < 2:
        time.sleep(0.05)


def is_there(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


def test_each_has_its_threads_and_its_gpu_before_torch_is_loaded_and_serves_several_runs():
    with _started(3, 5, ["7", "MIG-8"]) as pools:
        asked = "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUDA_VISIBLE_DEVICES"
        found = [[pool.submit(os.getenv, name).result() for name in asked] for pool in pools]
        assert found == [["5", "5", "7"], ["5", "5", "MIG-8"], ["5", "5", "7"]]
        loaded = "sorted({'torch', 'numpy'} & set(__import__('sys').modules))"
        assert [pool.submit(eval, loaded).result() for pool in pools] == [[], [], []]
        assert [pool.submit(os.getpid).result() for pool in pools] == [process.pid for process in pools.values()]
    assert "MIG-8" not in os.environ.get("CUDA_VISIBLE_DEVICES", "")
    assert not {process.pid for process in pools.values()} & {child.pid for child in active_children()}


class Job:
    arm, seed = "noisy", 3


def test_what_a_run_raises_reaches_the_study_and_says_which_run_it_was():
    with _started(1, 1, []) as pools:
        ((pool, process),) = pools.items()
        with pytest.raises(UsageError, match="as it was"):
            _result(pool.submit(_raise, UsageError("as it was")), Job, process)
        with pytest.raises(RuntimeError, match=r"KeyError: 'x' \(arm noisy, seed 3\)"):
            _result(pool.submit(_raise, KeyError("x")), Job, process)
        with pytest.raises(DataError, match=r"arm noisy, seed 3 is gone \(exit code 7\).*--jobs"):
            _result(pool.submit(os._exit, 7), Job, process)


def _raise(problem):
    raise problem


def test_a_killed_one_is_named_with_its_run_and_ends_the_others(store, tmp_path):
    def kill() -> None:
        training(tmp_path)
        os.kill(active_children()[0].pid, signal.SIGKILL)

    events = long_study(store, tmp_path)
    assert isinstance(next(events), Begun)
    threading.Thread(target=kill).start()
    with pytest.raises(DataError, match=r"arm .+, seed 0 is gone \(killed by SIGKILL\).*run the same command again"):
        list(events)
    assert active_children() == []


def test_a_study_that_is_abandoned_ends_its_processes_at_once(store, tmp_path):
    events = long_study(store, tmp_path)
    next(events)
    stopped: list[float] = []

    def interrupt() -> None:
        training(tmp_path)
        stopped.append(time.monotonic())
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        next(events)
    assert time.monotonic() - stopped[0] < 10
    assert active_children() == []


@pytest.mark.skipif(sys.platform != "linux", reason="children are looked up in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_they_do_not_outlive_a_study_that_is_killed(store, tmp_path, number):
    write_study(tmp_path / "study.toml", epochs=20_000)
    command = ["ablate", tmp_path / "study.toml", "--data", store, "-o", tmp_path / "study", "--jobs", "2"]
    parent = subprocess.Popen([sys.executable, "-m", "alignvl_cli", *map(str, command)], stderr=subprocess.DEVNULL)
    training(tmp_path)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    assert len(children) >= 2
    parent.send_signal(number)
    assert parent.wait(20) in (-signal.SIGKILL, 143)
    deadline = time.monotonic() + 10
    while any(map(is_there, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_there, children))
