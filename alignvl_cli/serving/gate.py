"""What is let in, in front of every route: token, host, how many at a time, how large, how long; and the headers that
every answer carries. Written for ASGI itself, so that nothing of a request is read before it is let in."""

import asyncio
import hmac
import json
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from alignvl_cli.serving.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/", "/docs", "/openapi.json", "/health"})
"""Answered without a token: they hold nothing of the index."""
NEVER_BUSY = frozenset({"/health", "/metrics"})
"""Answered however many requests run."""
BODIES = 8
"""Bodies of the largest size that may be held at a time."""
RETRY_S = 1
DRAIN_S = 5
"""For the rest of a body that is too large."""
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
"""Of every answer, unless it says otherwise itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What the gate goes by."""

    token: str | None
    """Wanted as `Authorization: Bearer TOKEN`; None: of nobody."""
    hosts: frozenset[str] | None
    """Names that a request may address; None: any. On loopback without a token, another name is a web page that has
    pointed its own name here (DNS rebinding)."""
    requests: int
    """At a time; more are answered 429."""
    body: int
    """Bytes."""
    seconds: float
    """From the first byte to the answer."""


class _Unread(Exception):
    """A body that is not read to its end: status, code, reason."""


class Gate:
    """ASGI middleware around the routes."""

    def __init__(self, app: App, admission: Admission, metrics: Metrics, warn: Callable[[str], None]) -> None:
        self._app, self._admission, self._metrics, self._warn = app, admission, metrics, warn
        self._running = 0
        self._held = 0
        """Bytes of bodies."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with self._metrics.timed(scope) as status:
            send = _with_headers(send, status)
            if (refusal := self._refusal(scope)) is not None:
                if refusal[0] == 413:
                    await self._drain(receive)
                await refuse(send, *refusal)
                return
            self._running += 1
            try:
                await self._let_in(scope, receive, send, status)
            finally:
                self._running -= 1

    def _refusal(self, scope: Scope) -> tuple[int, str, str] | None:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if self._admission.hosts is not None and name not in self._admission.hosts:
            return 421, "wrong_host", "this service answers as localhost alone; set ALIGNVL_TOKEN to serve other names"
        if self._admission.token is not None and scope["path"] not in OPEN_PATHS:
            wanted = f"Bearer {self._admission.token}".encode()
            if not hmac.compare_digest(headers.get(b"authorization", b""), wanted):
                return 401, "no_token", "this service wants a token: Authorization: Bearer TOKEN"
        if self._running >= self._admission.requests and scope["path"] not in NEVER_BUSY:
            return 429, "busy", f"{self._running} requests are running, and no more are taken; try again in a second"
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self._admission.body:
            return 413, "too_large", f"the body has {int(length[:20]):,} bytes, and {self._admission.body:,} are taken"
        return None

    async def _let_in(self, scope: Scope, receive: Receive, send: Send, status: list[int]) -> None:
        chunks: list[bytes] = []
        deadline = asyncio.get_running_loop().time() + self._admission.seconds
        try:
            async with asyncio.timeout_at(deadline):
                await self._read(receive, chunks)
                body = b"".join(chunks)
                chunks[:] = [body]
                await self._app(scope, _replay(body, receive), send)
        except _Unread as problem:
            if problem.args[0] == 413:
                await self._drain(receive)
            await refuse(send, *problem.args)
        except TimeoutError:
            self._metrics.timeouts.inc()
            if not status:
                await refuse(send, 504, "too_slow", f"no answer within {self._admission.seconds:g} seconds")
        except Exception:  # answered with 500 already
            self._warn(f"a bug in alignvl, answered with 500: {traceback.format_exc()}")
        finally:
            self._held -= sum(map(len, chunks))

    async def _read(self, receive: Receive, chunks: list[bytes]) -> None:
        """The body into `chunks`, which count as held from then on."""
        size, is_more = 0, True
        while is_more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Unread(400, "gone", "the body ended early")
            chunk = message.get("body", b"")
            is_more = message.get("more_body", False)
            size += len(chunk)
            if size > self._admission.body:
                raise _Unread(413, "too_large", f"the body is larger than the {self._admission.body:,} bytes taken")
            if self._held + len(chunk) > BODIES * self._admission.body:
                raise _Unread(429, "busy", "too much is being uploaded at a time; try again in a second")
            self._held += len(chunk)
            chunks.append(chunk)

    async def _drain(self, receive: Receive) -> None:
        """Read what follows, and drop it, up to as much again as a body may have: most clients read no answer before
        they have sent all."""
        left = self._admission.body
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return


async def refuse(send: Send, status: int, code: str, reason: str) -> None:
    """An answer that says why not, in JSON."""
    body = json.dumps({"error": {"code": code, "reason": reason}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 429:
        headers.append((b"retry-after", str(RETRY_S).encode()))
    if status in (400, 413, 429):  # the rest of the body is not read
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _with_headers(send: Send, status: list[int]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            status.append(message["status"])
            there = {name.lower() for name, _ in message["headers"]}
            more = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in there]
            message["headers"] = [*message["headers"], *more]
        await send(message)

    return sending


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body that was read, then whatever comes."""
    waiting = [body]

    async def replayed() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replayed
