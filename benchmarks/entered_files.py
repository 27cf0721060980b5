"""How much of this package a bare command goes through: python benchmarks/entered_files.py [COMMAND ...]

Gives `extract`, `extract` again, `train` and `eval`, or the COMMANDs, without options in an empty folder, each in a
process of its own, and prints how many files and functions of alignvl_cli each of them entered. Importing a module or
making a class enters no function. Of another tree: PYTHONPATH=TREE python benchmarks/entered_files.py
"""

import json
import subprocess
import sys
import tempfile

COMMANDS = ("extract", "extract", "train", "eval")
ENTERED = """
import inspect, json, sys, threading
import alignvl_cli
root = alignvl_cli.__path__[0]
entered = set()
def heard(frame, event, argument):
    if event == "call":
        entered.add(frame.f_code)
threading.setprofile(heard)
sys.setprofile(heard)
code = 0
try:
    import runpy
    sys.argv = ["alignvl", *sys.argv[2:]]
    runpy.run_module("alignvl_cli", run_name="__main__")
except SystemExit as left:
    code = left.code or 0
finally:
    sys.setprofile(None)
ours = [one for one in entered if one.co_filename.startswith(root) and one.co_flags & inspect.CO_OPTIMIZED]
with open(WHERE, "w") as stream:
    json.dump({"files": len({one.co_filename for one in ours}), "functions": len(ours), "code": code}, stream)
"""


def main() -> None:
    print(f"{'command':<10} {'files':>6} {'functions':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for command in sys.argv[1:] or COMMANDS:
            where = f"{folder}/entered.json"
            code = ENTERED.replace("WHERE", repr(where))
            done = subprocess.run(
                [sys.executable, "-c", code, "-", command], cwd=folder, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            with open(where, encoding="utf-8") as stream:
                found = json.load(stream)
            assert found["code"] == 0, f"{command}: {done.stderr}"
            print(f"{command:<10} {found['files']:>6} {found['functions']:>10}", flush=True)


if __name__ == "__main__":
    main()
