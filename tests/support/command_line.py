"""The real command line, called in-process."""

from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner, Result

from alignvl_cli.cli.app import app

QUICK = ["--epochs", "40", "--lr", "3e-3", "--batch-size", "32", "--embed-dim", "16", "--device", "cpu"]


@dataclass(frozen=True)
class CommandLine:
    """Calls `alignvl` in-process, always in one workspace."""

    workspace: Path

    def __call__(self, *words: str | Path) -> Result:
        return CliRunner().invoke(app, [*map(str, words), "--workspace", str(self.workspace)])

    def fails(self, code: int, *words: str | Path) -> str:
        """The message of a command that must leave with `code`: one line or two, never a traceback."""
        result = self(*words)
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        assert result.stdout == ""
        return " ".join(result.stderr.split())

    def succeeds(self, *words: str | Path) -> str:
        """What the command printed on stdout."""
        result = self(*words)
        assert result.exit_code == 0, result.output
        return result.stdout
