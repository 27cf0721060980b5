"""Labelled pictures of three colours, with real code from file to index."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

QUICK = ["--epochs", "2", "--batch-size", "8", "--embed-dim", "8", "--device", "cpu"]
COLOURS = {"red": (230, 20, 20), "green": (20, 230, 20), "blue": (20, 20, 230)}


def train_on_colours(alignvl: Callable[..., Any], folder: Path, tiny_encoders: list[str]) -> None:
    """Sixty pictures, no two alike, extracted into the workspace of `alignvl`, trained on and indexed."""
    rows = []
    for number in range(60):
        name, colour = list(COLOURS.items())[number % 3]
        shade = tuple(min(255, value + number // 3) for value in colour)
        Image.new("RGB", (32, 32), shade).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "captions": [f"{name} square {number}", name], "label": name})
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for words in (["extract", folder / "own.jsonl", *tiny_encoders], ["train", *QUICK], ["index"]):
        result = alignvl(*words)
        assert result.exit_code == 0, result.output
