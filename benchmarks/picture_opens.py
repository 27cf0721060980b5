"""How often `alignvl extract` opens a picture file: python benchmarks/picture_opens.py [PICTURES]

Makes so many small pictures (70 by default) with a caption each, and a store of them by the bundled encoders; then
extracts once more, and once more without the record of file states, as a store of an earlier version has none. Prints
opens of picture files (counted by an audit hook, in the one process: `--workers 0`) and seconds of each command, and of
`alignvl --help`. Give the path of another tree in PYTHONPATH to measure that.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

COUNTED = """
import os, sys
opens = 0
def count(event, arguments):
    global opens
    if event == "open" and str(arguments[0]).endswith(".png") and PLACE in str(arguments[0]):
        opens += 1
PLACE = sys.argv.pop(1)
sys.addaudithook(count)
from alignvl_cli.cli.app import app
try:
    app(sys.argv[1:], standalone_mode=False)
finally:
    print("opens", opens, file=sys.stderr)
"""


def run(place: Path, *words: str) -> tuple[int, float, str]:
    """Opens of the pictures below `place` by a command, its seconds, and the last line that it says before."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, str(place), *words], capture_output=True, text=True, cwd=place.parent
    )
    seconds = time.perf_counter() - began
    *said, last = done.stderr.splitlines()
    assert done.returncode == 0, done.stderr
    return int(last.split()[1]), seconds, said[-1] if said else ""


def main() -> None:
    pictures = int(sys.argv[1]) if len(sys.argv) > 1 else 70
    with tempfile.TemporaryDirectory() as name:
        place = Path(name, "photos")
        place.mkdir()
        for number in range(pictures):
            colour = (number % 256, number // 256 % 256, 77)
            Image.new("RGB", (24, 24), colour).save(place / f"{number:06d}.png")
            (place / f"{number:06d}.txt").write_text(f"picture {number % 50}")
        words = ("extract", str(place), "-o", str(Path(name, "s.h5")), "--workers", "0")
        print(f"{pictures:,} pictures, load {os.getloadavg()[0]:.1f}")
        for what, forget in (("first", False), ("second", False), ("without file states", True), ("after that", False)):
            if forget:
                Path(name, "s.h5.files.json").unlink(missing_ok=True)
            opens, seconds, said = run(place, *words)
            print(f"{what:<20} {opens:>7,} opens {seconds:8.2f} s  {said.split('/')[-1]}", flush=True)
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "alignvl_cli", "--help"], capture_output=True, check=True)
        print(f"{'--help':<20} {'':>13} {time.perf_counter() - began:8.2f} s")


if __name__ == "__main__":
    main()
