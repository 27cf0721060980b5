"""A small training run in a process of its own, which may be killed at any moment.

A checkpoint follows every log line. Prints a line a record: its kind and its step.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from alignvl_cli.artifacts import SEAL
from alignvl_cli.recipes import resolve_train
from alignvl_cli.settings import TrainConfig
from alignvl_cli.training.run import resume_run, train_run
from alignvl_cli.training.run_folder import ADAPTERS, CONFIG, METRICS
from alignvl_cli.training.state import Started
from support.fakes import make_store

SETTINGS = {
    "size": "pairs",
    "epochs": 5, "batch-size": 24, "embed-dim": 8, "lr": 3e-3, "ema": 0.9, "noise-std": 0.3, "mask-duplicates": True,
    "device": "cpu", "precision": "fp32",
}  # fmt: skip


def settings() -> TrainConfig:
    return resolve_train(SETTINGS, pairs=144)


def small_store(folder: Path) -> Path:
    return make_store(folder / "store.h5", images=60, dim=12, text_dim=10)


def begin(store: Path, run: Path, pause_s: float = 0.0) -> "subprocess.Popen[str]":
    """Train into `run`, or go on if something is there; `pause_s` seconds after each record."""
    command = [sys.executable, __file__, str(store), str(run), str(pause_s)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def end(process: "subprocess.Popen[str]", number: signal.Signals) -> int:
    """Send the signal, wait, and return the process's exit status."""
    process.send_signal(number)
    assert process.stdout is not None
    process.stdout.close()
    return process.wait(timeout=60)


def outcome(run: Path) -> tuple[bytes, list[dict[str, Any]], dict[str, Any]]:
    """What must be equal: the weights, and metrics and result without what a clock measured."""
    lines = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    result = json.loads((run / "result.json").read_text())
    measured = ("pairs_per_s", "share_of_peak", "wall_s", "peak_memory_bytes", "sha256", SEAL)
    timeless = [{key: value for key, value in line.items() if key not in measured} for line in [*lines, result]]
    return (run / ADAPTERS).read_bytes(), timeless[:-1], timeless[-1]


def require_resumed_alike(store: Path, folder: Path, config: TrainConfig, after: int) -> None:
    """A run that is abandoned after step `after` and resumed ends as one that never stopped."""
    list(train_run([store], folder / "whole", config))
    records = train_run([store], folder / "stopped", config, checkpoint_s=0.0)
    for record in records:
        if not isinstance(record, Started) and getattr(record, "step", 0) >= after:
            break
    records.close()
    list(resume_run(folder / "stopped"))
    assert outcome(folder / "stopped") == outcome(folder / "whole")


def main(store: Path, run: Path, pause_s: float) -> None:
    if (run / CONFIG).exists():
        records = resume_run(run, checkpoint_s=0.0)
    else:
        records = train_run([store], run, settings(), checkpoint_s=0.0)
    for record in records:
        print(type(record).__name__, getattr(record, "step", 0), flush=True)
        time.sleep(pause_s)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
