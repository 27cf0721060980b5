"""One of several processes that train a few steps together; rank 0 saves the weights.

Arguments: STORE WEIGHTS SETTINGS (JSON).
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from alignvl_cli.recipes import resolve_train
from alignvl_cli.store.reader import open_store
from alignvl_cli.training.data_parallel import joined
from alignvl_cli.training.loop import fit
from alignvl_cli.training.prepare import prepare


def start(size: int, command: list[str]) -> "list[subprocess.Popen[str]]":
    """`size` processes of `command`, told of each other as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    return [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(size)
    ]


def train_together(size: int, store: Path, weights: Path, settings: dict[str, Any]) -> None:
    """Train with `size` processes, or in this one if that is all; the weights lie in `weights`."""
    if size == 1:
        main(store, weights, settings)
        return
    for process in start(size, [sys.executable, __file__, str(store), str(weights), json.dumps(settings)]):
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said


def main(path: Path, weights: Path, settings: dict[str, Any]) -> None:
    store = open_store(path)
    config = resolve_train(settings, pairs=len(store.rows("train").text))
    with joined("cpu") as parallel:
        plan, state, _ = prepare([store], store, config, "cpu", parallel)
        parallel.broadcast_weights(state.adapters)
        for _ in fit(plan, state):
            pass
        assert state.step == 20
        if parallel.is_main:
            save_file({name: tensor.contiguous() for name, tensor in state.judged.state_dict().items()}, weights)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
