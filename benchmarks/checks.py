"""What the checks cost: python benchmarks/checks.py [IMAGES [EPOCHS]]

Makes a store of IMAGES images with two captions each, trains EPOCHS epochs on it and evaluates the run, and prints the
share of the wall time that was spent in digests and hashes: every xxh3 block of the store, every SHA-256 of a file,
every digest of a record. The aim is at most 5 %.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.fakes import make_store

import alignvl_cli.retrieval.evaluate as evaluation
import alignvl_cli.retrieval.evaluate as saving
from alignvl_cli import artifacts as provenance
from alignvl_cli.recipes import resolve_train
from alignvl_cli.store import reader, schema
from alignvl_cli.training.run import count_pairs, train_run
from alignvl_cli.training.run_folder import load_run

CHECKS = {
    "store blocks": (reader.Store, "_verify_rows"),
    "store columns": (schema, "digest_array"),
    "store texts": (schema, "digest_strings"),
    "files": (provenance, "file_sha256"),
    "records": (provenance, "fingerprint"),
}


class Stopwatch:
    """Seconds inside each check; a check inside another counts once."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(CHECKS, 0.0)
        self._is_inside = False

    def measured(self, name: str, check: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*words: Any, **named: Any) -> Any:
            if self._is_inside:
                return check(*words, **named)
            self._is_inside, began = True, time.perf_counter()
            try:
                return check(*words, **named)
            finally:
                self.seconds[name] += time.perf_counter() - began
                self._is_inside = False

        return timed


def install(watch: Stopwatch) -> None:
    """Every module of ours that has imported a check gets the measured one."""
    for name, (owner, attribute) in CHECKS.items():
        check = getattr(owner, attribute)
        timed = watch.measured(name, check)
        setattr(owner, attribute, timed)
        for module in [module for key, module in sys.modules.items() if key.startswith("alignvl_cli")]:
            if getattr(module, attribute, None) is check:
                setattr(module, attribute, timed)


def main() -> None:
    images = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    epochs = int(sys.argv[2]) if len(sys.argv) > 2 else 10
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = make_store(folder / "s.h5", images=images, captions_per_image=(2,), dim=1280, text_dim=384)
        config = resolve_train({"epochs": epochs, "device": "cpu"}, pairs=count_pairs([store]))
        watch = Stopwatch()
        install(watch)
        for stage, work in {
            "train": lambda: list(train_run([store], folder / "run", config)),
            "eval": lambda: saving.save_evaluation(
                run := load_run(folder / "run"), evaluation.evaluate(run, reader.open_store(store), "test")
            ),
        }.items():
            watch.seconds = dict.fromkeys(CHECKS, 0.0)
            began = time.perf_counter()
            work()
            total, spent = time.perf_counter() - began, sum(watch.seconds.values())
            parts = ", ".join(f"{part} {seconds:.3f}" for part, seconds in watch.seconds.items())
            print(f"{stage:<6} {total:7.2f} s, checks {spent:.3f} s: {spent / total:.2%} ({parts})")


if __name__ == "__main__":
    main()
