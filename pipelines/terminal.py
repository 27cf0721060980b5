"""What a command shows in a terminal, as an SVG: the command is run under a pseudo-terminal, nothing is typed by hand.

    python pipelines/terminal.py docs/images/eval.svg alignvl eval

The picture holds what the command printed on stdout, colours included, below the line that was typed. Progress and
notes, which go to stderr, are left out. Text stays text, in the reader's own monospaced font: nothing is loaded.
"""

import argparse
import fcntl
import io
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from pathlib import Path
from tempfile import TemporaryFile

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

FONTS = 'ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace'
FONT_FACE = re.compile(r"@font-face \{\{.*?\}\}\s*", re.S)
"""Rich's format loads its font from a server."""


def shown(command: list[str], columns: int) -> str:
    """What `command` prints on a terminal of `columns`, escape codes included; SystemExit if it fails."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 1000, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    for name in ("NO_COLOR", "COLUMNS"):
        environment.pop(name, None)
    printed = b""
    with TemporaryFile() as aside:
        process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=aside, env=environment)
        os.close(theirs)
        while piece := _read(ours):
            printed += piece
        os.close(ours)
        if process.wait():
            aside.seek(0)
            sys.stderr.write(aside.read().decode())
            raise SystemExit(f"{shlex.join(command)}: exit {process.returncode}, no picture written")
    return printed.decode().replace("\r\n", "\n")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # Linux says EIO when the other side has gone
        return b""


def picture(typed: str, printed: str, columns: int, most: int | None = None) -> str:
    """An SVG of a terminal window in which `typed` was entered and `printed` came, its first `most` lines."""
    lines = printed.strip("\n").splitlines()
    if most is not None and len(lines) > most:
        lines = [*lines[:most], "\x1b[2m...\x1b[0m"]
    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.assemble(("$ ", "bold green"), (typed, "bold")))
    console.print(Text.from_ansi("\n".join(lines)))
    frame = FONT_FACE.sub("", CONSOLE_SVG_FORMAT).replace("Fira Code, monospace", FONTS)
    frame = frame.replace("font-family: Fira Code", f"font-family: {FONTS}")
    return console.export_svg(title="", code_format=frame, unique_id="terminal")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the SVG")
    parser.add_argument("--columns", type=int, default=100, help="width of the terminal (default 100)")
    parser.add_argument("--lines", type=int, help="cut after so many, and show dots (default: all)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run, with its flags")
    given = parser.parse_args()
    printed = shown(given.command, given.columns)
    given.output.write_text(picture(shlex.join(given.command), printed, given.columns, given.lines), encoding="utf-8")


if __name__ == "__main__":
    main()
