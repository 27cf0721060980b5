"""Writes docs/cli.md from commands and settings: `python -m alignvl_cli.cli.reference > docs/cli.md`."""

from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from alignvl_cli.cli.app import app

HEAD = """# Commands

Each command with its arguments and options: what `alignvl COMMAND --help` says. Written by
`python -m alignvl_cli.cli.reference > docs/cli.md` from the table of settings, `alignvl_cli/settings.py`.

A setting of `train` has the same name in a `--config` file and in a study: `--noise-std 0.3` is `noise-std = 0.3`.
Flags beat the file, the file beats the recipe and the size, and these beat the default.

Every command has the options of the last section.
"""
COMMON = ("workspace", "quiet", "verbose", "help")


def page() -> str:
    """The whole of docs/cli.md."""
    root = get_command(app)
    commands = list(_commands(root, "alignvl"))
    parts = [HEAD]
    for name, command in commands:
        context = command.context_class(command, info_name=name)
        parts.append(f"## {name}\n\n{_prose(command.help)}")
        own = [one for one in command.get_params(context) if one.name not in COMMON]
        parts += _tables(own, context)
    name, command = commands[0]
    context = command.context_class(command, info_name=name)
    parts.append("## Options of every command\n")
    parts += _tables([one for one in command.get_params(context) if one.name in COMMON], context)
    return "\n".join(parts).rstrip() + "\n"


def _commands(group: Any, name: str) -> Iterator[tuple[str, Any]]:
    for key, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{name} {key}")
        else:
            yield f"{name} {key}", command


def _prose(text: str) -> str:
    """The help text of a command, what it lays out itself as it is."""
    parts = [part for part in text.split("\n\n") if part.strip() != "\b"]
    return (
        "\n\n".join(
            "```text\n" + part.partition("\b\n")[2] + "\n```" if part.startswith("\b\n") else part for part in parts
        )
        + "\n"
    )


def _tables(parameters: list[Any], context: Any) -> Iterator[str]:
    """A table a panel, in the order of the help."""
    panels: dict[str, list[str]] = {}
    for one in parameters:
        kind = "Arguments" if one.param_type_name == "argument" else "Options"
        what, said = one.get_help_record(context)
        panels.setdefault(getattr(one, "rich_help_panel", None) or kind, []).append(
            f"| `{_cell(what)}` | {_cell(said)} |"
        )
    for heading, rows in panels.items():
        yield "\n".join([f"| {heading} | |", "|---|---|", *rows, ""])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
