"""The process that listens: from a socket to a clean leave."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import uvicorn

from alignvl_cli.errors import UsageError

STOPS = (signal.SIGTERM, signal.SIGINT)
CONNECTIONS = 1000
"""Open at a time; uvicorn answers 503 to more."""


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address, before anything slow begins. UsageError when it cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with ExitStack() as closing:
            place = closing.enter_context(socket.socket(family, socket.SOCK_STREAM))
            if os.name == "posix":  # elsewhere it would let two processes have one port
                place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            place.bind((host, port))
            place.listen()  # two sockets may be bound to a port, and one listen
            closing.pop_all()
    except (OSError, UnicodeError) as problem:
        why = getattr(problem, "strerror", None) or problem
        raise UsageError(
            f"cannot listen at {host}, port {port}: {why}; name others with --host and --port "
            "(--port 0 takes a free one)"
        ) from problem
    return place


def address(place: socket.socket) -> str:
    """The page's URL."""
    host, port = place.getsockname()[:2]
    return f"http://{as_in_url(host)}:{port}/"


def as_in_url(host: str) -> str:
    """An address of IPv6 stands in brackets there."""
    return f"[{host}]" if ":" in host else host


class Server(uvicorn.Server):
    """Leaves on SIGTERM and Ctrl-C when the running requests are answered; asked again, at once."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Uvicorn's own raises the signal again in the end, and what was asked for would look like a failure."""
        is_main = threading.current_thread() is threading.main_thread()  # the only one that Python tells of signals
        former = {number: signal.signal(number, self._stop) for number in STOPS if is_main}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


def make_server(app: Any, *, seconds: float, ready: Callable[[], None]) -> Server:
    """A server of `app`, to be `run` with a socket; `ready` is called once it answers, and requests that run when it is
    to leave have `seconds` to be answered."""
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        log_level="error",  # a request that is no HTTP is answered 400, and no news
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=int(seconds) + 1,
    )
    return Server(config, ready)
