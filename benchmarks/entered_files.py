"""How deep the bare commands go: python benchmarks/entered_files.py [COMMAND ...]

Runs a bare `alignvl extract`, `train` and `eval` on the demo in an empty folder, each in a process of its own, and
prints how many files and functions of ours each enters (sys.setprofile, in all threads; what an import runs is not
counted). Give the path of another tree in PYTHONPATH to measure that. A trailing `+` repeats a command.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ENTERED = """
import os, sys, threading
import alignvl_cli
package = os.path.dirname(os.path.abspath(alignvl_cli.__file__)) + os.sep
entered = set()
def profile(frame, event, argument):
    code = frame.f_code
    if event == "call" and code.co_filename.startswith(package) and code.co_name != "<module>":
        entered.add((code.co_filename[len(package):], code.co_qualname))
threading.setprofile(profile)
sys.setprofile(profile)
from alignvl_cli.__main__ import main
sys.argv = ["alignvl", *sys.argv[1:]]
code = 0
try:
    main()
except SystemExit as end:
    code = end.code or 0
finally:
    sys.setprofile(None)
    with open(os.environ["ENTERED_TO"], "w") as stream:
        stream.writelines(f"{name}\\t{function}\\n" for name, function in sorted(entered))
sys.exit(code)
"""


def main() -> None:
    commands = sys.argv[1:] or ["extract", "extract+", "train", "eval"]
    print(f"{'command':<12} {'files':>6} {'functions':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for command in commands:
            told = Path(folder, "entered.txt")
            done = subprocess.run(
                [sys.executable, "-c", ENTERED, command.rstrip("+")],
                cwd=folder,
                env={**os.environ, "ENTERED_TO": str(told)},
                capture_output=True,
                text=True,
            )
            if done.returncode:
                sys.exit(f"{command}: {done.stderr}")
            pairs = [line.split("\t") for line in told.read_text().splitlines()]
            # Class bodies and comprehensions of a module are entered by importing it.
            functions = {(name, function) for name, function in pairs if "<" not in function.replace("<locals>", "")}
            print(f"{command:<12} {len({name for name, _ in functions}):>6} {len(functions):>10}", flush=True)
            if os.environ.get("ENTERED_NAMES"):
                print(*sorted({name for name, _ in functions}), sep="\n")


if __name__ == "__main__":
    main()
