"""`alignvl completion`: the script with which a shell completes commands and flags."""

from enum import StrEnum
from typing import Annotated

import typer

from alignvl_cli.cli.console import Session


class Shell(StrEnum):
    """What `alignvl completion` prints a script for."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


def completion(
    session: Session, shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="Shell to print it for.")]
) -> None:
    """Print a shell's completion script.

    Keep it where the shell looks:

    \b
    bash  ~/.local/share/bash-completion/completions/alignvl
    zsh   _alignvl in a folder of $fpath, such as ~/.zfunc
    fish  ~/.config/fish/completions/alignvl.fish
    """
    from typer.completion import get_completion_script

    print(get_completion_script(prog_name="alignvl", complete_var="_ALIGNVL_COMPLETE", shell=shell.value).strip())
