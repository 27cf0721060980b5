"""How long the command line takes to answer: python benchmarks/startup.py [RUNS]

Prints the median wall time of `--help` calls, and of importing torch alone as the ratio's other side.
"""

import statistics
import subprocess
import sys
import time

CALLS = {
    "alignvl --help": ["-m", "alignvl_cli", "--help"],
    "alignvl train --help": ["-m", "alignvl_cli", "train", "--help"],
    "python -c 'import torch'": ["-c", "import torch"],
}


def seconds(arguments: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    times: dict[str, list[float]] = {name: [] for name in CALLS}
    for _ in range(runs):  # in turn, so that a busy moment of the machine hits all of them
        for name, arguments in CALLS.items():
            times[name].append(seconds(arguments))
    for name, taken in times.items():
        print(f"{name:<26} median {statistics.median(taken):.3f} s, {min(taken):.3f} to {max(taken):.3f}, {runs} runs")


if __name__ == "__main__":
    main()
