"""Several processes train as one does: same loss, same draws, same weights; the first alone writes and speaks."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from support.distributed_training import start, train_together
from support.fakes import make_store

from alignvl_cli.align.adapters import StreamDropout
from alignvl_cli.distributed import ranks_here, use_own_gpu
from alignvl_cli.errors import UsageError
from alignvl_cli.training.data_parallel import DataParallel, joined

pytestmark = pytest.mark.slow

SETTINGS = {
    "size": "pairs", "latent-norm": "none", "noise-units": "absolute",
    "batch-size": 24, "epochs": 4, "embed-dim": 8, "lr": 3e-3, "dropout": 0.5, "noise-std": 0.3, "ema": 0.5,
    "mix-coefficient": "pair", "mask-duplicates": True, "device": "cpu", "precision": "fp32",
}  # fmt: skip
ARMS = {
    "infonce": ({}, 1e-5),
    "sigmoid": ({"loss": "sigmoid", "es-target": "similarity", "noise-position": "output"}, 1e-5),
    "bf16": ({"precision": "bf16"}, 2e-3),  # of steps of 3e-3: rounded sums, taken in another order
}
"""Settings, and how far the weights of two processes may be from those of one."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("stores") / "s.h5", images=60, dim=12, text_dim=10)


@pytest.mark.parametrize("arm", ARMS)
def test_two_processes_of_half_the_rows_are_one_of_all(store, tmp_path, arm):
    asked, tolerance = ARMS[arm]
    for size in (1, 2):
        train_together(size, store, tmp_path / f"{size}.safetensors", SETTINGS | asked)
    one, two = (load_file(tmp_path / f"{size}.safetensors") for size in (1, 2))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], rtol=0, atol=tolerance), name


def test_shares_are_the_rows_in_order():
    whole = torch.arange(12).reshape(6, 2)
    assert torch.equal(torch.cat([DataParallel(rank, 3).own_rows(whole) for rank in range(3)]), whole)
    assert torch.equal(DataParallel().own_rows(whole), whole)
    alone = DataParallel()
    assert alone.all_gather(whole) is whole
    assert alone.broadcast(1.25) == 1.25
    with pytest.raises(UsageError, match=r"--batch-size 10: 4 processes .* multiple of 4, as 8 is"):
        DataParallel(0, 4).require_shares(10)


def test_every_process_has_a_gpu_of_its_own_or_none_begins(monkeypatch):
    used: list[int] = []
    monkeypatch.setattr("torch.cuda.set_device", used.append)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    two = {"RANK": "1", "WORLD_SIZE": "2"}
    use_own_gpu(ranks_here(two | {"LOCAL_RANK": "1"}))
    assert used == [1]
    with pytest.raises(UsageError, match="LOCAL_RANK is not set"):
        use_own_gpu(ranks_here(two))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(UsageError, match="process 1 of this machine has no GPU: it has 1"):
        use_own_gpu(ranks_here(two | {"LOCAL_RANK": "1"}))
    assert used == [1]


@pytest.mark.parametrize("environment", [{"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}])
def test_training_refuses_nonsense_in_the_environment(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="torchrun"), joined("cpu"):
        pass


def test_masks_are_those_of_the_whole_batch():
    x = torch.ones(8, 13)

    def masks(parts: int) -> torch.Tensor:
        rows = []
        for part in range(parts):
            dropout = StreamDropout(0.5)
            dropout.generator = torch.Generator().manual_seed(1)
            dropout.part, dropout.parts = part, parts
            rows.append(dropout(x[: len(x) // parts]))
        return torch.cat(rows)

    assert torch.equal(masks(2), masks(1))
    assert torch.equal(masks(4), masks(1))


def alignvl(*words: object) -> list[str]:
    return [sys.executable, "-m", "alignvl_cli", "train", *map(str, words)]


FLAGS = [f"--{key}={value}" for key, value in SETTINGS.items() if key != "mask-duplicates"]


@pytest.mark.skipif(os.name == "nt", reason="no such signals")
def test_a_process_that_dies_ends_the_others_and_the_run_goes_on(store, tmp_path):
    run = tmp_path / "run"
    flags = [*(flag for flag in FLAGS if not flag.startswith("--epochs")), "--epochs=2000"]
    leader, follower = start(2, alignvl(store, "-o", run, *flags))
    deadline = time.monotonic() + 60
    while not (run / "metrics.jsonl").is_file() or not (run / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline
        assert leader.poll() is None
        time.sleep(0.05)
    follower.kill()
    _, message = leader.communicate(timeout=60)
    follower.communicate()
    assert leader.returncode == 1
    assert "another process of this training is gone" in message
    assert "--resume" in message
    assert "Traceback" not in message
    assert not (run / "result.json").exists()


def test_torchrun_makes_one_run_and_the_leader_alone_speaks(store, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["-m", "alignvl_cli", "train", store, "--workspace", tmp_path / "w", *FLAGS]
    done = subprocess.run([*launcher, *map(str, words)], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "w" / "runs").iterdir()
    assert done.stdout == f"{run}\n"
    assert done.stderr.count("kept ") == 1
    assert json.loads((run / "result.json").read_text())["steps"] == 20


def test_a_closed_form_shares_no_batch(store, tmp_path):
    """Three processes, a number that no automatic batch is a multiple of."""
    run = tmp_path / "run"
    processes = start(3, alignvl(store, "-o", run, "--method", "procrustes", "--device", "cpu"))
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert json.loads((run / "result.json").read_text())["steps"] == 0
