"""Finds the blocks of a page that are marked as runnable, and runs them as its reader would."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

MARKED = re.compile(r"^<!-- runs -->\n```(bash|python)\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """Code of a page, and the line of the page on which it begins."""

    page: str
    line: int
    language: str
    code: str

    @property
    def padded(self) -> str:
        """The code, each line where the page has it, so that errors name the page's lines."""
        return "\n" * (self.line - 1) + self.code


def marked_blocks(name: str, text: str) -> list[Block]:
    """The marked blocks of a page, in order. A mark that no bash or python block follows is an error."""
    found = [
        Block(name, text.count("\n", 0, match.start(2)) + 1, match[1], match[2]) for match in MARKED.finditer(text)
    ]
    assert len(found) == len(re.findall(r"^\s*<!-- runs", text, re.M)), f"{name}: a mark without a block"
    return found


def run_blocks(blocks: list[Block], folder: Path, timeout: float = 600) -> str:
    """Run a page's blocks in `folder`, with `alignvl` of this environment; returns what they print on stdout.

    Shell blocks share their variables. The Python blocks are one program, run where the last of them stands.
    AssertionError names the block that fails, and has what it said.
    """
    variables = folder.parent / f"{folder.name}.variables"
    variables.write_text("", encoding="utf-8")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "VARIABLES": str(variables),
    }
    program = [block for block in blocks if block.language == "python"]
    printed = ""
    for block in blocks:
        if block.language == "bash":
            code = f'set -a; . "$VARIABLES"; {block.padded}export -p >"$VARIABLES"\n'
            words = ["bash", "-euo", "pipefail", "-c", code, block.page]
        elif block is program[-1]:
            pieces = [f"exec(compile({one.padded!r}, {one.page!r}, 'exec'))" for one in program]
            words = [sys.executable, "-c", "\n".join(pieces)]
        else:
            continue
        done = subprocess.run(words, capture_output=True, text=True, cwd=folder, env=environment, timeout=timeout)
        said = f"{block.page}, line {block.line}, exit {done.returncode}\n{block.code}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == 0, said
        printed += done.stdout
    return printed
