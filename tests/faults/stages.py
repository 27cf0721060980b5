"""Stages of the pipeline in processes that may be killed: one interpreter loads everything once and forks for each.

`Stages` is what a test uses. As a program this file reads a request a line (JSON) on stdin, forks a child that
runs the stage behind alignvl's own error boundary, sends it a signal when it is time, and answers with its status.
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent


class Ended(NamedTuple):
    code: int
    """The exit code, or minus the signal that it died of."""
    seconds: float
    stdout: str
    stderr: str
    children: int
    """Processes of its group that were still there when it had ended."""


@dataclass
class Stages:
    """Runs `alignvl WORDS...`, or `extract FOLDER` with fake encoders, in a forked child."""

    process: "subprocess.Popen[str]"

    @classmethod
    def start(cls, temporary: Path | None = None) -> "Stages":
        """`temporary` is the folder for temporary files, if it is not the usual one."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        environment |= {"TMPDIR": str(temporary)} if temporary else {}
        environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), *filter(None, sys.path)])
        command = [sys.executable, "-W", "ignore", str(HERE / "stages.py")]
        return cls(subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment))

    def __call__(
        self, *words: Any, after: float | None = None, number: int = 0, most_bytes: int | None = None
    ) -> Ended:
        """Run to the end, or until signal `number` is sent `after` seconds; no file may grow beyond `most_bytes`."""
        request = {"words": [str(word) for word in words], "after": after, "number": number, "most_bytes": most_bytes}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return Ended(*json.loads(self.process.stdout.readline()))

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def fake_extraction(folder: Path) -> None:
    """`alignvl extract`, with fakes: FOLDER/data into FOLDER/s.h5."""
    from support.killable import CONFIG, Killable

    from alignvl_cli.errors import DataError

    killable = Killable(folder, image_delay=0.001, text_delay=0.001, images=120)
    assert CONFIG.workers == 0
    try:
        killable.run()
    except DataError:
        raise
    print(killable.output)


def run(words: list[str]) -> int:
    from alignvl_cli.cli import app as application

    if words[0] == "extract":

        def extract() -> None:
            with application.signals_unwind():
                raise SystemExit(
                    application.leave_with(lambda: fake_extraction(Path(words[1])), False, application.AGAIN)
                )

        return _code(extract)
    return _code(lambda: application.app(words, prog_name="alignvl"))


def _code(work: Callable[[], Any]) -> int:
    try:
        work()
    except SystemExit as left:
        return int(left.code or 0)
    except KeyboardInterrupt:  # the signal came before the command's own boundary, or after it
        return 143
    return 0


def serve() -> None:
    _load()
    for line in sys.stdin:
        print(json.dumps(_forked(**json.loads(line))), flush=True)


def _load() -> None:
    """What a stage would import."""
    import torch
    from support import (
        fakes,  # noqa: F401
        killable,  # noqa: F401
    )

    from alignvl_cli.retrieval.nearest import faiss

    torch.set_num_threads(1)
    faiss().omp_set_num_threads(1)


def _forked(words: list[str], after: float | None, number: int, most_bytes: int | None) -> Ended:
    pipes = [os.pipe() for _ in range(3)]  # stdout, stderr, and what was imported; no files, whose size is limited
    began = time.perf_counter()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        loaded = set(sys.modules)
        for (_, end), place in zip(pipes[:2], (1, 2), strict=True):
            os.dup2(end, place)
        if most_bytes is not None:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
        code = _flushed(run(words))
        os.write(pipes[2][1], "\n".join(name for name in sys.modules if name not in loaded).encode()[:60_000])
        os._exit(code)
    for _, end in pipes:
        os.close(end)
    if after is not None:
        time.sleep(after)
        os.kill(child, number)
    _, status = os.waitpid(child, 0)
    seconds = time.perf_counter() - began
    left = _left(child)
    texts = []
    for end, _ in pipes:
        with os.fdopen(end) as stream:
            texts.append(stream.read())
    for name in texts.pop().splitlines():  # so that the next child need not
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    return Ended(os.waitstatus_to_exitcode(status), seconds, *texts, left)


def _flushed(code: int) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _left(group: int) -> int:
    """Whether the group still has a process; what is left is ended."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return 0
    return 1


if __name__ == "__main__":
    serve()
