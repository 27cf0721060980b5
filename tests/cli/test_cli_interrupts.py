"""Ctrl-C and SIGTERM, at moments when libraries would swallow them, and streams that take less than we say."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

PROGRAM = """
import os, signal, sys
from alignvl_cli.cli import app as application
from alignvl_cli.cli.interrupts import leave_at_once

leave_at_once()
def work():
    try:
        {work}
    except {caught}:
        {then}
with application.signals_unwind():
    code = application.leave_with(work, False)
sys.exit(code)
"""
ASKS = "os.kill(os.getpid(), signal.SIG{name})"


def ended(tmp_path, work: str, caught: str = "ValueError", then: str = "pass") -> subprocess.CompletedProcess[str]:
    (tmp_path / "careless.py").write_text(
        "import os, signal\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n    x = sum(range(100))\n"
        "except BaseException:\n    raise AttributeError('half loaded')\n"
    )
    code = PROGRAM.format(work=work, caught=caught, then=then)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(("name", "code", "word"), [("INT", 130, "interrupted"), ("TERM", 143, "terminated")])
@pytest.mark.parametrize(
    ("caught", "then"), [("ValueError", "pass"), ("BaseException", "pass"), ("BaseException", "1 / 0")]
)
def test_a_signal_is_one_line_whoever_swallows_it(tmp_path, name, code, word, caught, then):
    found = ended(tmp_path, ASKS.format(name=name), caught, then)
    assert (found.returncode, found.stderr) == (code, f"alignvl: {word}; run the same command again\n")


def test_a_signal_in_an_import_waits_until_it_is_over(tmp_path):
    found = ended(tmp_path, "import careless; import time; time.sleep(9)")
    assert (found.returncode, found.stderr) == (130, "alignvl: interrupted; run the same command again\n")


def test_a_signal_before_a_command_ends_the_process(tmp_path):
    code = f"import os, signal, alignvl_cli.__main__; {ASKS.format(name='INT')}; print('still here')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (130, "")
    assert found.stderr == "alignvl: interrupted; run the same command again\n"


def test_an_interrupt_that_is_ignored_stays_ignored(tmp_path):
    code = (
        "import os, signal; signal.signal(signal.SIGINT, signal.SIG_IGN); import alignvl_cli.__main__; "
        f"{ASKS.format(name='INT')}; print('still here')"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "still here\n")


@pytest.mark.parametrize("closed", ["", ">&-", "2>&-", "| true"])
def test_streams_that_are_narrow_ascii_or_closed_are_no_bug(alignvl, closed):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "12", "LANG": "C"}
    command = f"{sys.executable} -m alignvl_cli eval --workspace {alignvl.workspace} {closed}; exit ${{PIPESTATUS[0]}}"
    found = subprocess.run(["bash", "-c", command], capture_output=True, env=environment)
    assert found.returncode == 0, found.stderr
    assert b"Traceback" not in found.stderr
    assert b"bug" not in found.stderr
