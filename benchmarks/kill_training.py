"""What a crash costs a training run: python benchmarks/kill_training.py [KILLS [SEED]]

Kills a small training run at random moments with SIGKILL and goes on with it in another process, as often as asked; a
run that is complete before its kill comes is followed by another. Fails unless every run ends with the weights of an
undisturbed one, byte for byte, and with its metrics and result, apart from times. Prints the counts.
"""

import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.killable_training import begin, end, outcome, small_store

from alignvl_cli.training.checkpoint import read_checkpoint
from alignvl_cli.training.run_folder import CONFIG, is_complete_run

LONGEST = 2.0
"""Seconds from the first record, before any step, to a kill, at most."""
PAUSE = 0.05
"""Seconds that the run rests after each record, so that it lasts."""


def main() -> None:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    chance = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = small_store(folder)
        assert begin(store, folder / "undisturbed").communicate() is not None
        wanted = outcome(folder / "undisturbed")
        runs: list[Path] = []
        steps: list[int] = []
        while len(steps) < kills:
            if not runs or is_complete_run(runs[-1]):
                runs.append(folder / f"run-{len(runs)}")
            process = begin(store, runs[-1], PAUSE)
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(chance.uniform(0, LONGEST))
            if process.poll() is None:
                assert end(process, signal.SIGKILL) == -signal.SIGKILL
                point = read_checkpoint(runs[-1])
                steps.append(point[1]["step"] if point else 0)
            else:
                process.communicate()
                assert process.returncode == 0
        for run in runs:
            if not is_complete_run(run):
                assert (run / CONFIG).exists()
                begin(store, run).communicate()
            assert outcome(run) == wanted, f"{run.name} is not as undisturbed"
    print(
        f"{kills} kills (checkpoints at steps {', '.join(map(str, steps))}): {len(runs)} runs, weights, metrics and "
        "results all equal to the undisturbed"
    )


if __name__ == "__main__":
    main()
