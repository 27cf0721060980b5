"""Command lines that nobody meant: flags drawn from the commands' own parameters, with values that do and do not do.

Whatever is typed, a command ends well or refuses with a sentence: exit 1, "a bug in alignvl", never.
"""

import os
import random
import shutil
import typing
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from alignvl_cli.cli.app import app

pytestmark = pytest.mark.slow

LINES = int(os.environ.get("ALIGNVL_COMMAND_LINES", "40"))
"""`make test-faults` tries 2,000."""
LEFT_OUT = {"open_page", "show_help", "version", "workspace", "verbose"}
"""Opens a browser, or is not of the command; `workspace` is given to every line."""
ENDED = {0, 2, 3, 4, 5, 6}
QUICK = {
    "train": ["--epochs", "1", "--batch-size", "16", "--embed-dim", "8"],
    "extract": ["--workers", "0"],
}
"""So that a line that does ends soon; what is drawn comes after, and counts."""
NUMBERS = ["0", "1", "2", "3", "-1", "0.5", "1e-3", "nan", "inf", "-inf", "1e400", "1%", "x", "10000000000000000000000"]
WORDS = "test val all none ../.. 1,5,10 3,7 0 {} - auto"
TEXTS = ["", " ", "é\u202e\x1b[31m", "a" * 5000, *WORDS.split()]
FACTORIES = ["Flat", "IVF2,Flat", "IVF0,Flat", "HNSW1", "HNSW4", "PQ2", "SQ8", "LSH", "flat", "IVF2,PQ0"]
HEAVY = {"workers", "jobs", "epochs", "threads", "dim", "size", "width", "depth", "expansion", "batch", "seeds"}
"""Words in the names of numbers that cost time or memory as they grow: no large ones for these."""


def commands() -> dict[tuple[str, ...], Any]:
    """Every command, by the words that call it."""
    root = typer.main.get_command(app)
    found: dict[tuple[str, ...], Any] = {}
    for name, command in root.commands.items():
        inner = getattr(command, "commands", None)
        found.update({(name, sub): one for sub, one in inner.items()} if inner else {(name,): command})
    return found


class Lines:
    """Draws command lines over the artefacts in a folder."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.draw = random.Random(seed)
        there = "store.h5 run index study tiny.toml unfinished data pairs.jsonl pairs.tar x.h5 absent empty empty.h5"
        self.places = [str(folder / name) for name in [*there.split(), "run/config.json", "data/00000.png"]]

    def line(self) -> list[str]:
        every = commands()
        words = self.draw.choice(sorted(every.keys() - {("doctor",), ("completion",)}))
        flags: list[str] = []
        arguments: list[str] = []
        for parameter in every[words].params:
            if parameter.name in LEFT_OUT:
                continue
            if parameter.param_type_name == "argument":
                if self.draw.random() < 0.7:
                    arguments += [self.value(parameter) for _ in range(self.draw.choice([1, 1, 1, 2]))]
            elif parameter.required or self.draw.random() < 0.12:
                flags += self.option(parameter)
        if words == ("extract",) and not arguments:  # which would be the whole demo
            arguments.append(str(self.folder / "pairs.jsonl"))
        return [*words, *QUICK.get(words[0], []), *flags, "--", *arguments]

    def option(self, parameter: Any) -> list[str]:
        name = self.draw.choice([*parameter.opts, *parameter.secondary_opts])
        return [name] if parameter.is_flag else [name, self.value(parameter)]

    def value(self, parameter: Any) -> str:
        name, kind = str(parameter.name), parameter.type_descriptor.annotation
        kind = (typing.get_args(kind) or (kind,))[0]  # of list[Path], Path
        if self.draw.random() < 0.1:
            return self.draw.choice(TEXTS)
        if isinstance(kind, type) and issubclass(kind, Enum):
            return str(self.draw.choice(list(kind)).value)
        if "factory" in name:
            return self.draw.choice(FACTORIES)
        if "output" in name or name in ("html", "csv"):
            return str(self.folder / "made" / f"{self.draw.randrange(10**9)}")
        if kind is Path or name in ("path", "dataset", "data"):
            return self.draw.choice(self.places)
        numbers = [number for number in NUMBERS if len(number) < 6 or not HEAVY & set(name.split("_"))]
        return self.draw.choice([*numbers, *TEXTS, *self.places] if kind is str else numbers)


@pytest.mark.parametrize("block", range(4))
def test_no_command_line_is_a_bug(copied: Path, block: int, tried, monkeypatch: pytest.MonkeyPatch) -> None:
    (copied / "empty").mkdir()
    (copied / "empty.h5").write_bytes(b"")
    shutil.copytree(copied, copied.parent / "kept")
    monkeypatch.setattr("logging.raiseExceptions", False)  # some keep the stderr of the line before, now closed
    monkeypatch.chdir(copied)  # what is written by a relative name stays here
    lines = Lines(copied, seed=block)
    for _ in range(-(-LINES // 4)):
        line = lines.line()
        ended = CliRunner(env={"ALIGNVL_WORKSPACE": str(copied / "w"), "COLUMNS": "80"}).invoke(app, line)
        tried["command line", line[0]] += 1
        assert ended.exit_code in ENDED, (line, ended.output[-2000:], ended.exception)
        assert "bug in alignvl" not in ended.output, line
        assert "Traceback" not in ended.output, line
        for name in ("store.h5", "run", "index", "study"):  # --overwrite replaces what stands at --output alone
            if not (copied / name).exists():
                shutil.copytree(copied.parent / "kept", copied, dirs_exist_ok=True)
