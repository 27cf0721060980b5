"""Every `alignvl` line in the README, the docs and the pipelines is one that the command line accepts."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from alignvl_cli.app import app

ROOT = Path(__file__).parents[1]
SHELL_BLOCK = re.compile(r"^```(?:bash|sh|shell|console)\n(.*?)^```", re.M | re.S)
OPERATORS = {"&&", "||", ";", "|", "then", ">", "2>"}


def shell_text(path: Path) -> str:
    """The shell code in a file: all of a script, the fenced blocks of a page."""
    text = path.read_text(encoding="utf-8")
    return text if path.suffix == ".sh" else "\n".join(SHELL_BLOCK.findall(text))


def alignvl_lines(text: str) -> list[list[str]]:
    """The arguments of each call of `alignvl`, substitutions replaced by a word."""
    text = re.sub(r"\\\n\s*", " ", text)
    text = re.sub(r"\$\((alignvl [^()]*)\)", r"; \1 ;", text)  # RUN=$(alignvl ...)
    text = re.sub(r"\"?\$\{?\w+(\[[@\w]+\])?(:[-?][^}]*)?\}?\"?", "word", text)
    calls = []
    for line in text.splitlines():
        words = shlex.split(line.replace(";", " ; ").replace("(alignvl", "( alignvl"), comments=True)
        for start, word in enumerate(words):
            if word == "alignvl":
                rest = words[start + 1 :]
                end = next(
                    (n for n, other in enumerate(rest) if other in OPERATORS or other.startswith(("#", ")"))), None
                )
                calls.append(rest[:end])
    return calls


PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("pipelines/*.sh")])
CALLS = [(path.name, call) for path in PAGES for call in alignvl_lines(shell_text(path))]


def test_the_reader_of_pages_finds_calls():
    text = """RUN=$(alignvl train "$STORE" --no-mix)
        alignvl eval "${RUNS[@]}" | cat  # why
        alignvl search "red heart" && echo"""
    assert alignvl_lines(text) == [["train", "word", "--no-mix"], ["eval", "word"], ["search", "red heart"]]
    assert len(CALLS) > 20


@pytest.mark.parametrize(
    ("page", "call"), CALLS, ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_documented_command_parses(page, call):
    result = CliRunner().invoke(app, call if "--version" in call else [*call, "--help"])
    assert result.exit_code == 0, result.output


def test_an_unknown_flag_does_not_parse():
    assert CliRunner().invoke(app, ["train", "--no-mixx", "--help"]).exit_code == 2
