"""A small study on a small store, for the tests of studies and of the views of them."""

from pathlib import Path

STUDY = """
name = "tiny"
question = "Does it help?"
reference = "plain"
seeds = [0, 1]
[base]
recipe = "clip"
init = "random"
epochs = 2
batch-size = 16
embed-dim = 8
adapter-depth = 1
adapter-expansion = 1
lr = 3e-3
[arms.plain]
[arms.noisy]
noise-std = 0.5
[arms.'a"b<c']
smoothing = 0.2
"""


def write_study(path: Path, text: str = STUDY, **replaced: str) -> Path:
    """Write a study file; `replaced` gives new lines for keys, e.g. seeds="[0]"."""
    lines = [
        f"{key} = {replaced[key]}" if (key := line.partition(" = ")[0]) in replaced else line
        for line in text.splitlines()
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
