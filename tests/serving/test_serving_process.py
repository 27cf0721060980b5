"""`alignvl serve` as a process: what it refuses before it listens, and how it leaves."""

import http.client
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support.command_line import CommandLine

from alignvl_cli.serving.server import address, listen


@pytest.fixture
def alignvl(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    monkeypatch.delenv("ALIGNVL_TOKEN", raising=False)
    return CommandLine(workplace / "workspace")


@contextmanager
def process(workplace: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The process and its port, once it answers; it is ended in any case."""
    command = [sys.executable, "-m", "alignvl_cli", "serve", str(workplace / "index"), "--port", "0", "--device", "cpu"]
    child = subprocess.Popen(
        [*command, "--workspace", str(workplace / "workspace"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        assert select.select([child.stdout], [], [], 120)[0]
        url = child.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), child.communicate()
        yield child, urlsplit(url).port or 0
    finally:
        child.kill()
        child.communicate()


@pytest.mark.slow
def test_it_leaves_once_the_running_request_is_answered(workplace):
    with process(workplace) as (child, port):
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            connection.putrequest("POST", "/embeddings/texts")
            body = b'{"texts": ["red square"]}'
            connection.putheader("content-type", "application/json")
            connection.putheader("content-length", str(len(body)))
            connection.endheaders(body[:10])
            time.sleep(0.3)
            child.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            assert child.poll() is None, "a request is running"
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=5)
            connection.send(body[10:])
            with connection.getresponse() as answer:
                assert answer.status == 200
        assert child.wait(30) == 0
        assert "Traceback" not in child.stderr.read()


@pytest.mark.slow
def test_asked_twice_it_leaves_at_once(workplace):
    with process(workplace) as (child, port):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as idle:
            idle.sendall(b"POST /search/image HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n")
            time.sleep(0.3)
            child.send_signal(signal.SIGINT)
            time.sleep(0.3)
            assert child.poll() is None
            child.send_signal(signal.SIGINT)
            assert child.wait(20) == 0


def test_other_machines_are_served_with_a_token_or_when_told_so(alignvl, monkeypatch):
    message = alignvl.fails(2, "serve", "--host", "0.0.0.0", "--port", 0)
    assert "set ALIGNVL_TOKEN" in message
    assert "--without-token" in message
    monkeypatch.setenv("ALIGNVL_TOKEN", "short")
    assert "at least 16 ASCII characters" in alignvl.fails(2, "serve", "--port", 0)


def test_an_address_that_cannot_be_had_is_told_before_anything_is_loaded(alignvl):
    with listen("127.0.0.1", 0) as place:
        assert address(place) == f"http://127.0.0.1:{place.getsockname()[1]}/"
        message = alignvl.fails(2, "serve", "--port", place.getsockname()[1])
    assert "cannot listen at 127.0.0.1" in message
    assert "--port 0 takes a free one" in message
    for host in ("no.such.host.invalid", "ex..ample", "x" * 64 + ".invalid"):
        assert "cannot listen" in alignvl.fails(2, "serve", "--host", host, "--without-token")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "70000"], "--port: wanted from 0 to 65535"),
        (["--max-body", "much"], "--max-body: wanted a size"),
        (["--timeout", "0"], "--timeout: wanted above 0"),
        (["--queue", "0"], "--queue"),
    ],
)
def test_limits_out_of_range_are_refused(alignvl, words, said):
    assert said in alignvl.fails(2, "serve", *words)


def test_what_is_no_index_is_told(alignvl, tmp_path):
    assert "not an index" in alignvl.fails(3, "serve", tmp_path, "--port", 0)


def test_without_the_extra_the_command_to_have_it_is_told(alignvl, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert 'serve needs uvicorn: pip install "alignvl[serve]"' in alignvl.fails(2, "serve")
