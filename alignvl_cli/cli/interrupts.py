"""Ctrl-C and SIGTERM: one line and exit 130 or 143, at whatever moment they come.

Before a command begins there is nothing to undo, and the process ends on the spot. While it works, they raise, so that
what can be resumed stays so; but not in the middle of an import, where libraries swallow the exception, or are left
half loaded and fail later with an error of their own.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

AGAIN = "run the same command again"
RETRY_S = 0.02
"""Until a signal that came during an import is looked at again."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: unwinds like Ctrl-C, so that what is resumable stays so, and leaves with 143."""


STOPS = {signal.SIGINT: ("interrupted", KeyboardInterrupt), signal.SIGTERM: ("terminated", Terminated)}
_asked: list[int] = []
"""Signals that the running command was sent."""


def leave_at_once() -> None:
    """From now on either signal ends the process with its line; one that is ignored (`nohup`) stays ignored."""
    for number in STOPS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, f"alignvl: {STOPS[signal.Signals(number)][0]}; {AGAIN}\n".encode())
    os._exit(128 + number)


def swallowed_stop() -> KeyboardInterrupt | None:
    """What the running command was asked to stop with, whoever swallowed it; None when it was not."""
    return STOPS[signal.Signals(_asked[0])][1]() if _asked else None


@contextmanager
def signals_unwind() -> Iterator[None]:
    """While the block runs, the signals raise KeyboardInterrupt or Terminated; afterwards the former handlers are back.

    For the main thread alone, which is the only one that Python tells of signals.
    """
    _asked.clear()
    handlers: dict[int, Any] = {signal.SIGTERM: _unwind}
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        handlers[signal.SIGINT] = _unwind
    if hasattr(signal, "setitimer"):  # not on Windows
        handlers[signal.SIGALRM] = _unwind
    former = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in former.items():
            signal.signal(number, handler)
        _asked.clear()


def _unwind(number: int, frame: FrameType | None) -> None:
    if number in STOPS:
        _asked.append(number)
        if len(_asked) > 1 and _must_not_raise(frame):  # asked again, and still loading
            _leave(number, frame)
    elif not _asked:  # an alarm that is not ours
        return
    if hasattr(signal, "setitimer") and _must_not_raise(frame):
        signal.setitimer(signal.ITIMER_REAL, RETRY_S)
        return
    raise STOPS[signal.Signals(_asked[-1])][1]


def _must_not_raise(frame: FrameType | None) -> bool:
    """Whether an import is under way, or a finaliser or a callback of a weak reference, which no exception leaves."""
    while frame is not None:
        code = frame.f_code
        file, name = code.co_filename, code.co_name
        if file.startswith("<frozen importlib") or name == "__del__" or file.endswith(("weakref.py", "_weakrefset.py")):
            return True
        frame = frame.f_back
    return False
