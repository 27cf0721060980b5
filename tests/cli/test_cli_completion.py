"""Shell completion: the script that is printed completes, in the shell itself where it is installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import CommandLine

from alignvl_cli.cli.app import Shell

pytestmark = pytest.mark.slow


@pytest.fixture
def script(tmp_path):
    def printed(shell: Shell) -> str:
        return CommandLine(tmp_path).succeeds("completion", shell.value)

    return printed


@pytest.mark.parametrize(("typed", "wanted"), [("ex", {"extract", "export"}), ("train --noise-u", {"--noise-units"})])
def test_bash_completes_commands_and_flags(script, tmp_path, typed, wanted):
    words = ["alignvl", *typed.split()]
    (tmp_path / "alignvl").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m alignvl_cli "$@"\n')
    (tmp_path / "alignvl").chmod(0o755)
    code = (
        f"{script(Shell.bash)}\nCOMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}\n"
        '_alignvl_completion alignvl; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        [shutil.which("bash") or "bash", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
    )
    assert set(done.stdout.split()) == wanted, done.stderr


@pytest.mark.parametrize("shell", list(Shell))
def test_every_script_asks_this_program(script, shell):
    assert f"_ALIGNVL_COMPLETE=complete_{shell.value}" in script(shell)


def test_zsh_finds_its_mark_in_the_first_line(script):
    assert script(Shell.zsh).splitlines()[0] == "#compdef alignvl"


def test_the_help_names_the_place_for_each_shell_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = [line.strip() for line in CommandLine(tmp_path).succeeds("completion", "--help").splitlines()]
    assert "bash  ~/.local/share/bash-completion/completions/alignvl" in lines
    assert "zsh   _alignvl in a folder of $fpath, such as ~/.zfunc" in lines
    assert "fish  ~/.config/fish/completions/alignvl.fish" in lines


def test_an_unknown_shell_is_a_usage_error(tmp_path):
    assert "bash" in CommandLine(tmp_path).fails(2, "completion", "tcsh")


def test_the_version_is_stated_once():
    root = Path(__file__).parents[2]
    version = next(
        line.split('"')[1] for line in (root / "pyproject.toml").read_text().splitlines() if line.startswith("version")
    )
    done = subprocess.run(
        [sys.executable, "-m", "alignvl_cli", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"alignvl {version}\n"
    assert not [
        path for path in (root / "alignvl_cli").rglob("*.py") if f'"{version}"' in path.read_text(encoding="utf-8")
    ]
