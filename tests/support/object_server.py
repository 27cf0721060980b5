"""Servers of objects on this machine that fail now and then: a web server of a folder, and an S3 server (moto's) with a
proxy before it. What goes wrong is decided by a seed, the request and how often it came: it is the same in whatever
order threads ask."""

import hashlib
import http.client
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit

ACCESS_KEY, SECRET_KEY = "AKIAALIGNVLTEST", "a-secret-that-nobody-may-see"
BUCKET = "data"


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


Answerer = Callable[[str, str, Mapping[str, str], bytes], Answer]
"""Of method, target, headers and body."""


class FaultyServer(ThreadingHTTPServer):
    """Hands out what `answerer` answers, `share` of it not well: dropped, cut short, or 503, each as often."""

    daemon_threads = True

    def __init__(self, answerer: Answerer, seed: int = 0, share: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answerer = answerer
        self.seed = seed
        self.share = share
        self.refused: dict[str, int] = {}
        """Path -> status that it is always answered with."""
        self.asked: list[str] = []
        """Method and target of each request."""
        self.faults: Counter[str] = Counter()
        self._seen: Counter[tuple[str, ...]] = Counter()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fault(self, *request: str) -> str:
        """What goes wrong with this request; empty for nothing."""
        with self._lock:
            self.asked.append(" ".join(request[:2]))
            self._seen[request] += 1
            drawn = hashlib.sha256(repr((self.seed, request, self._seen[request])).encode()).digest()
            number = int.from_bytes(drawn[:8], "big") / 2**64
            kind = ("drop", "cut", "busy")[drawn[9] % 3] if number < self.share else ""
            if kind:
                self.faults[kind] += 1
            return kind

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is nothing to print."""


class _Handler(BaseHTTPRequestHandler):
    server: FaultyServer
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet an answer: the other side waits 40 ms for the second one

    def log_message(self, *_: object) -> None:
        pass

    def handle_expect_100(self) -> bool:
        super().handle_expect_100()
        self.wfile.flush()
        return True

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = self.server.fault(self.command, self.path, self.headers.get("Range", ""))
        if kind == "drop":
            self.close_connection = True
            return
        path = unquote(urlsplit(self.path).path)
        if kind == "busy" or path in self.server.refused:
            answer = Answer(503 if kind == "busy" else self.server.refused[path], {}, b"")
        else:
            answer = self.server.answerer(self.command, self.path, dict(self.headers), body)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if "Content-Length" not in answer.headers:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if kind == "cut":
            self.wfile.write(answer.body[: len(answer.body) // 2])
            self.close_connection = True
            return
        self.wfile.write(answer.body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve


@contextmanager
def serving(answerer: Answerer, **faults: float) -> Iterator[FaultyServer]:
    """The server, for as long as the block lasts."""
    server = FaultyServer(answerer, **faults)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def files_of(folder: Path, *, validators: bool = True, ranges: bool = True) -> Answerer:
    """A web server of what lies in `folder`."""

    def answer(method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        path = folder / unquote(urlsplit(target).path).lstrip("/")
        if not path.is_file():
            return Answer(404, {}, b"")
        data = path.read_bytes()
        about = {"Content-Length": str(len(data))}
        if validators:
            about["ETag"] = f'"{hashlib.md5(data).hexdigest()}"'
            about["Last-Modified"] = formatdate(os.stat(path).st_mtime, usegmt=True)
        if ranges and (asked := headers.get("Range")):
            first, last = (int(part) for part in asked.removeprefix("bytes=").split("-"))
            part = data[first : last + 1]
            return Answer(206, about | {"Content-Length": str(len(part))}, part)
        return Answer(200, about, data)

    return answer


def forwarded(port: int) -> Answerer:
    """What the server at `port` answers to those who have the right key."""

    def answer(method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        if f"Credential={ACCESS_KEY}/" not in headers.get("Authorization", ""):
            return Answer(403, {"Content-Type": "application/xml"}, DENIED)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request(method, target, body, dict(headers))
            response = connection.getresponse()
            data = response.read()
            kept = {
                name: value
                for name, value in response.getheaders()
                if name.lower() not in ("connection", "transfer-encoding", "date", "server")
            }
            return Answer(response.status, kept, data)
        finally:
            connection.close()

    return answer


DENIED = b"<?xml version='1.0'?><Error><Code>InvalidAccessKeyId</Code><Message>No such key.</Message></Error>"


@contextmanager
def s3_server(**faults: float) -> Iterator[FaultyServer]:
    """moto's S3 server with the bucket BUCKET, behind a proxy with `faults`, for as long as the block lasts."""
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    try:
        _, port = moto.get_host_and_port()
        with serving(forwarded(port), **faults) as proxy:
            yield proxy
    finally:
        moto.stop()


def s3_environment(server: FaultyServer) -> dict[str, str]:
    """Of a process whose S3 is `server`."""
    return {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def put(server: FaultyServer, folder: Path, below: str = "") -> None:
    """All files of `folder`, in the bucket below a prefix, past all faults."""
    share, server.share = server.share, 0.0
    scope = f"Credential={ACCESS_KEY}/20260101/us-east-1/s3/aws4_request"
    headers = {"Authorization": f"AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=unchecked"}
    for path in [None, *sorted(folder.rglob("*"))]:
        if path is None or path.is_file():
            name = "" if path is None else quote(f"/{below}{path.relative_to(folder).as_posix()}")
            done = server.answerer("PUT", f"/{BUCKET}{name}", headers, path.read_bytes() if path else b"")
            assert done.status == 200, done
    server.share = share
