"""A golden run: refactoring must leave the losses of every recipe where they were.

Renew the file with `PYTHONPATH=tests python tests/training/test_training_golden.py`, and say under "Changed
numbers" why it moved.
"""

import json
import tempfile
from pathlib import Path

import pytest
from support.fakes import make_store

from alignvl_cli.recipes import resolve_train
from alignvl_cli.training.run import train_run
from alignvl_cli.training.state import Step, Validated

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "golden" / "losses.json"
PAPER = {"noise-std": 0.01, "noise-units": "absolute"}
ARMS = {
    "alignvl": PAPER,
    "fusemix": {"recipe": "fusemix"},
    "clip": {"recipe": "clip"},
    "alignvl-from-cca": PAPER | {"init": "cca"},
    "no-mix-uniform": {"mix": False, "noise": "uniform", "noise-std": 0.3, "noise-units": "absolute"},
    "pair-coefficient-output-noise": {
        "mix-coefficient": "pair",
        "noise-std": 0.3,
        "noise-units": "absolute",
        "noise-position": "output",
    },
    "masked-standardized-linear": {"mask-duplicates": True, "latent-norm": "standardize", "adapter": "linear"} | PAPER,
}
SIZE = {
    "size": "pairs",
    "latent-norm": "none",
    "init": "random",
    "epochs": 12,
    "batch-size": 24,
    "embed-dim": 8,
    "lr": 3e-3,
    "device": "cpu",
    "precision": "fp32",
}


def losses(folder: Path, arm: str) -> dict[str, list[float]]:
    """Loss and hard-target loss of each logged step, and the validation mean recalls."""
    store = make_store(folder / "store.h5", images=40, captions_per_image=(1, 2, 3), dim=12, text_dim=10)
    config = resolve_train(SIZE | ({} if "adapter" in ARMS[arm] else {"dropout": 0.6}) | ARMS[arm], pairs=48)
    records = list(train_run([store], folder / "run", config))
    steps = [record for record in records if isinstance(record, Step)]
    return {
        "loss": [step.loss for step in steps],
        "hard_loss": [step.hard_loss for step in steps],
        "mean_recall": [record.metrics["mean_recall"] for record in records if isinstance(record, Validated)],
    }


@pytest.mark.parametrize("arm", ARMS)
def test_losses_are_where_they_were(tmp_path, arm):
    golden = json.loads(GOLDEN.read_text())[arm]
    found = losses(tmp_path, arm)
    assert found["loss"] == pytest.approx(golden["loss"], rel=1e-4)
    assert found["hard_loss"] == pytest.approx(golden["hard_loss"], rel=1e-4)
    assert found["mean_recall"] == pytest.approx(golden["mean_recall"], abs=100 / 12)  # one query of a tiny split


def main() -> None:
    found = {}
    for arm in ARMS:
        with tempfile.TemporaryDirectory() as folder:
            found[arm] = losses(Path(folder), arm)
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
