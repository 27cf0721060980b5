"""Every `alignvl` line in the README, the docs and the pipelines is one that the command line accepts, values too."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from alignvl_cli.cli.app import app

ROOT = Path(__file__).parents[1]
SHELL_BLOCK = re.compile(r"^```(?:bash|sh|shell|console)\n(.*?)^```", re.M | re.S)
IN_A_SENTENCE = re.compile(r"`((?:\w+=\$\()?alignvl [a-z]+ [^`]+)`")
OPERATORS = {"&&", "||", ";", "|", "then", ">", "2>"}
STAND_IN = "1"
"""For what the shell would fill in: a path, a name and a number at once."""

(WRONG_USAGE,) = typer.BadParameter.__bases__


def shell_text(path: Path) -> str:
    """The shell code in a file: all of a script, of a page the fenced blocks and the commands within a sentence."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".sh":
        return text
    sentences = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S).replace("\\|", "|")
    return "\n".join(
        [*SHELL_BLOCK.findall(text), *(" ".join(code.split()) for code in IN_A_SENTENCE.findall(sentences))]
    )


def alignvl_lines(text: str) -> list[list[str]]:
    """The arguments of each call of `alignvl` or `-m alignvl_cli`, with a stand-in for each substitution."""
    text = re.sub(r"\\\n\s*", " ", text)
    text = re.sub(r"\$\((alignvl [^()]*)\)", r"; \1 ;", text)  # RUN=$(alignvl ...)
    text = re.sub(r"\"?\$@\"?", "", text)
    text = re.sub(r"\"?\$\{?\w+(\[[@\w]+\])?(:[-?][^}]*)?\}?\"?", STAND_IN, text)
    calls = []
    for line in text.splitlines():
        words = shlex.split(line.replace(";", " ; ").replace("(alignvl", "( alignvl"), comments=True)
        for start, word in enumerate(words):
            if word == "alignvl" or (word == "alignvl_cli" and words[start - 1] == "-m"):
                rest = words[start + 1 :]
                end = next(
                    (n for n, other in enumerate(rest) if other in OPERATORS or other.startswith(("#", ")"))), None
                )
                calls.append(rest[:end])
    return calls


def commands(group: object = None, name: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The words of every command."""
    subcommands = getattr(group or get_command(app), "commands", None)
    if subcommands is None:
        return [name]
    return [words for key, command in subcommands.items() for words in commands(command, (*name, key))]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_the_help_of_every_command_names_arguments_in_capitals_and_exits(words, capsys):
    parse([*words, "--help"])
    text = capsys.readouterr().out
    usage = text.splitlines()[0].removeprefix("Usage: alignvl " + " ".join(words)).replace("STUDY.toml", "STUDY")
    assert usage == usage.upper()
    assert "message and exit" in text
    assert not re.search(r"\bleaves? with\b|and leave\b", text)


def parse(words: list[str]) -> str:
    """The command that `words` call, after each argument was converted and checked; nothing is run."""
    name, command, context = "alignvl", get_command(app), None
    while True:
        try:
            context = command.make_context(name, list(words), parent=context)
        except typer.Exit:  # --version and --help speak while they are parsed
            return name
        if not hasattr(command, "resolve_command"):
            return context.command_path
        name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])


PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("pipelines/*.sh")])
CALLS = [(path.name, call) for path in PAGES for call in alignvl_lines(shell_text(path))]


def test_the_reader_of_pages_finds_calls(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("""Say `alignvl inspect RUN
--check` to `alignvl`, or `RUN=$(alignvl train --init cca\\|random)`.

```bash
RUN=$(alignvl train "$STORE" --no-mix)
alignvl eval "${RUNS[@]}" "$@" | cat  # why
torchrun -m alignvl_cli train a.h5
alignvl search "red heart" && echo
```

```python
alignvl no shell
```
""")
    assert alignvl_lines(shell_text(page)) == [
        ["train", STAND_IN, "--no-mix"],
        ["eval", STAND_IN],
        ["train", "a.h5"],
        ["search", "red heart"],
        ["inspect", "RUN", "--check"],
        ["train", "--init", "cca|random"],
    ]
    assert len(CALLS) > 150


@pytest.mark.parametrize(
    ("page", "call"), CALLS, ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_documented_command_parses(page, call):
    assert parse(call).startswith("alignvl")


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (["train", "--no-mixx"], "No such option: --no-mixx"),
        (["train", "--noise", "gausian"], "'gausian' is not one of 'gaussian'"),
        (["train", "--epochs", "many"], "valid integer"),
        (["ablate", "--plan"], "Missing parameter: study"),
        (["eval", "--split"], "requires an argument"),
        (["data", "check", "one.csv", "two.csv"], "unexpected extra argument"),
        (["trane"], "No such command 'trane'"),
        (["data", "chekc", "one.csv"], "No such command 'chekc'"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_what_is_wrong_does_not_parse(call, why):
    with pytest.raises(WRONG_USAGE) as refused:
        parse(call)
    assert why in f"{refused.value} {refused.value.format_message()}"


def test_a_path_need_not_be_there():
    assert parse(["eval", "none/run", "--data", "none.h5"]) == "alignvl eval"


SCRIPT = re.compile(r"\b(?:bash|python) ((?:pipelines|benchmarks)/[\w./-]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_documented_scripts_are_there(page):
    for script in SCRIPT.findall(" ".join(page.read_text(encoding="utf-8").split())):
        assert (ROOT / script).is_file(), script
