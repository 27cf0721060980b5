"""A service under load, and under attack: python benchmarks/serving.py INDEX [--seconds S] [--hostile N]

Starts `alignvl serve` on loopback with an index, and ends it. Text search by 1, 4 and 16 clients that ask without a
pause, S seconds each, beside the bare encoder and FAISS in this process, one text at a time and 16 at once; then 200
clients at a queue of 32: how many are told to come back (429), and what the memory does. Last, N hostile requests
(paths, methods, bodies, JSON, broken pictures, decompression bombs, odd Unicode, no HTTP at all): which codes came
back, and which files the service opened meanwhile, told by Python's audit hook. Exit 1 for a 500, a hang, a death, or a
file that is no picture of the index.

Clients and service share the machine's cores, with whatever else runs there: CPU milliseconds a query, of the bare
encoder's process and of the service's, are what to compare.
"""

import argparse
import http.client
import io
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

import numpy as np
from PIL import Image

from alignvl_cli.retrieval.dual_encoder import DualEncoder
from alignvl_cli.retrieval.index import open_index
from alignvl_cli.retrieval.nearest import nearest
from alignvl_cli.settings import Gallery

QUEUE, MAX_BODY, MAX_PIXELS = 32, 1_000_000, 4_000_000
PATIENCE_S = 60
HOOKED = """
import os, sys
log = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_APPEND)
def told(event, words):
    if event in ("open", "os.listdir", "os.scandir", "subprocess.Popen", "os.system", "socket.connect"):
        os.write(log, f"{event} {words[0]}".encode(errors="replace").replace(b"\\n", b"?") + b"\\n")
sys.addaudithook(told)
from alignvl_cli.__main__ import main
main()
"""


@contextmanager
def service(index: Path, log: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The process and its port; it leaves on SIGTERM with 0, or this raises."""
    words = ["serve", str(index), "--port", "0", "--queue", str(QUEUE), "--max-body", f"{MAX_BODY // 1000}kB"]
    words += ["--max-pixels", str(MAX_PIXELS), "--max-text", "500"]
    log.touch()
    process = subprocess.Popen([sys.executable, "-c", HOOKED, str(log), *words], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = urlsplit(process.stdout.readline().strip()).port
        assert port, "the service did not start"
        yield process, port
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0, f"left with {process.returncode}"
    finally:
        process.kill()
        process.wait()


def mebibytes(process: subprocess.Popen[str]) -> float:
    """Resident memory."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def cpu_seconds(process: subprocess.Popen[str]) -> float:
    """Of all its threads, so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load(port: int, texts: list[str], clients: int, seconds: float) -> tuple[Counter[int], np.ndarray]:
    """Answers by status, and the seconds that those with 200 took; each client on a connection that is kept."""
    statuses: Counter[int] = Counter()
    took: list[float] = []
    end = time.perf_counter() + seconds

    def client(number: int) -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)) as connection:
            draw = random.Random(number)
            while (began := time.perf_counter()) < end:
                text = f"{draw.choice(texts)} {draw.randrange(1000)}"
                connection.request("GET", f"/search?k=10&text={quote(text[:200])}")
                answer = connection.getresponse()
                answer.read()
                statuses[answer.status] += 1
                if answer.status == 200:
                    took.append(time.perf_counter() - began)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses, np.array(took)


def bare(index_path: Path, texts: list[str], at_once: int, seconds: float) -> str:
    """The encoder and FAISS alone."""
    index = open_index(index_path)
    encoder = DualEncoder.load(index.run_path)
    encoder.encode_text(["a picture"])
    draw, took, cpu = random.Random(0), [], time.process_time()
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        query_QE = encoder.encode_text([f"{draw.choice(texts)} {draw.randrange(1000)}" for _ in range(at_once)])
        encoded = time.perf_counter()
        nearest(index.vectors[Gallery.image], index.queries(query_QE), 20)
        took.append((encoded - began, time.perf_counter() - encoded))
    encode, find = np.median(took, axis=0) * 1000
    return (
        f"{at_once:>3} at once: {at_once * len(took) / np.sum(took):6.1f} queries/s; "
        f"encoder {encode:.1f} ms, FAISS {find:.2f} ms (medians); "
        f"{1000 * (time.process_time() - cpu) / (at_once * len(took)):.1f} ms of CPU a query"
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    """A PNG that is small and says that it is large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 500_000, 9)
    text = chunk(b"zTXt", b"x\0\0" + zlib.compress(b"\0" * 5_000_000, 9))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + text + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def picture(draw: random.Random, kind: str) -> bytes:
    out = io.BytesIO()
    Image.effect_noise((draw.randint(1, 60), draw.randint(1, 60)), 80).convert("RGB").save(out, kind)
    return out.getvalue()


ODD = [
    "\u202eevil",
    "é" * 30,
    "\U0001f468‍\U0001f469‍\U0001f467",
    "\x00\x01\x1b[31m",
    "ﷺ" * 20,
    "a\u0300" * 50,
    "\ufeff\u2028",
]
HTML = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{7*7}}", "${7*7}", "'; DROP TABLE items; --"]
PLACES = ["/etc/passwd", "../" * 8 + "etc/passwd", "file:///etc/passwd", "C:\\Windows\\win.ini", "/proc/self/environ"]
ROUTES = [
    "/search",
    "/search/image",
    "/search/like/x",
    "/items/x",
    "/thumbnails/x",
    "/embeddings/texts",
    "/indexes",
    "/",
]
VALUES = [None, True, -1, 0, 10**400, 1e308, "", "x" * 600, [], {}, [[]], "\ud800", "NaN", {"a": 1}, [None], ["x"] * 70]


def hostile(draw: random.Random, ids: list[str]) -> bytes:
    """One request, as bytes."""
    method, path, headers, body = "GET", "/", {"host": "localhost"}, b""
    kind = draw.choice(["path", "method", "json", "picture", "bomb", "query", "body", "garbage", "header"])
    if kind == "path":
        place = draw.choice(
            [*PLACES, *ODD, *HTML, "%00", "." * draw.randint(1, 400), "/" * 50, draw.choice(ids) + "/.."]
        )
        place = draw.choice(
            [quote(place), quote(place, safe=""), quote(quote(place, safe="")), quote(place) + "%ff%c0%af"]
        )
        path = draw.choice(["/items/", "/thumbnails/", "/search/like/", "/", "//", "/static/"]) + place
    elif kind == "method":
        method, path = (
            draw.choice(["PUT", "DELETE", "TRACE", "PATCH", "OPTIONS", "HEAD", "X" * 30]),
            draw.choice(ROUTES),
        )
    elif kind == "json":
        method, path = "POST", draw.choice(["/search", "/embeddings/texts"])
        headers["content-type"] = draw.choice(["application/json", "application/json; charset=utf-16", "text/plain"])
        fields = {name: draw.choice([*VALUES, *ODD, *HTML]) for name in ("texts", "k", "of", "threshold", "index", "x")}
        if draw.random() < 0.4:
            fields["texts"] = [draw.choice([*ODD, *HTML, " ", "red heart", "x" * 501])]
        kept = {name: value for name, value in fields.items() if name == "texts" or draw.random() < 0.3}
        body = json.dumps(kept, ensure_ascii=draw.random() < 0.5).encode(errors="surrogatepass")
        if draw.random() < 0.3:
            body = draw.choice(
                [body[:-5], body + b"}", b"[" * 100_000, b'{"a":' * 20_000, b"\xff\xfe" + body, b"NaN", b"1e999"]
            )
    elif kind == "picture":
        method, path = "POST", draw.choice(["/search/image", "/embeddings/image"])
        data = bytearray(picture(draw, draw.choice(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])))
        for _ in range(draw.randint(0, 20)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        body = bytes(data[: draw.randint(1, len(data))]) if draw.random() < 0.5 else bytes(data)
    elif kind == "bomb":
        method, path = "POST", "/search/image"
        body = draw.choice(
            [
                bomb(60_000, 60_000),
                bomb(2**31 - 1, 1),
                bomb(1999, 1999),
                bomb(0, 0),
                b"II*\0" + b"\xff" * 200,
                b"GIF89a\xff\xff\xff\xff\xf7\0\0" + b"," * 99,
                b"<svg><!ENTITY x SYSTEM 'file:///etc/passwd'>",
                b"PK\3\4" + bytes(99),
                b"%!PS (/etc/passwd) run",
                b"RIFF\xff\xff\xff\xffWEBPVP8X" + b"\xff" * 99,
            ]
        )
    elif kind == "query":
        names = [draw.choice(["text", "k", "of", "threshold", "index", "edge"]) for _ in range(draw.randint(1, 5))]
        values = [quote(str(draw.choice([*VALUES, *ODD, *HTML, *PLACES])), errors="replace") for _ in names]
        asked = "&".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
        path = draw.choice([*ROUTES, f"/thumbnails/{quote(draw.choice(ids), safe='')}"]) + "?" + asked
    elif kind == "body":
        method, path = "POST", draw.choice(ROUTES)
        headers["content-length"] = draw.choice(["1000000000000", "-1", "1e3", "9" * 300, "5, 7", "0x10", "1000001"])
        body = b"x" * draw.choice([0, 10, 1000])
    elif kind == "header":
        path = draw.choice(ROUTES)
        headers |= draw.choice(
            [
                {"x": "y" * 100_000},
                {"host": draw.choice(["evil.example", "", "localhost:x", "[::1"])},
                {"authorization": "Bearer " + "x" * 9000},
                {"transfer-encoding": "chunked, gzip"},
                {"content-encoding": "gzip"},
                {"expect": "100-continue"},
                {"upgrade": "websocket"},
                {"range": "bytes=0-" + "9" * 50},
                {f"h{n}": "v" for n in range(500)},
            ]
        )
    else:
        return bytes(draw.randrange(256) for _ in range(draw.randint(1, 300))) + b"\r\n\r\n"
    headers = {"content-length": str(len(body)), **headers} if body else headers
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode(errors="replace") + body


def is_whole(request: bytes) -> bool:
    """Whether the body is as long as the request says."""
    head, _, body = request.partition(b"\r\n\r\n")
    said = re.search(rb"content-length: (\S+)", head)
    return said is None or said[1] == str(len(body)).encode()


def ask(port: int, request: bytes) -> str:
    """The status that came back; `closed` without one, `hang` when nothing came."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
        try:
            connection.sendall(request)
            if b"content-length" in request[:300] and not is_whole(request):
                connection.shutdown(socket.SHUT_WR)  # or it would wait for the rest as long as it may
            head = connection.recv(65536)
        except TimeoutError:
            return "hang"
        except OSError:
            return "closed"
    return head.split(b" ")[1].decode(errors="replace")[:3] if head.startswith(b"HTTP/") else "closed"


def attack(port: int, ids: list[str], count: int) -> Counter[str]:
    """Answers by status, to requests from four sides at once."""
    found: Counter[str] = Counter()

    def side(number: int) -> None:
        draw = random.Random(number)
        for _ in range(count // 4):
            found[ask(port, hostile(draw, ids))] += 1

    threads = [threading.Thread(target=side, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def counted(found: Counter) -> str:
    return ", ".join(f"{status}: {number:,}" for status, number in sorted(found.items(), key=lambda pair: str(pair[0])))


def strangers(opened: list[str], uris: set[str], index: Path) -> list[str]:
    """What was opened that is neither a picture of the index, nor the index, nor code that Python loads late."""
    code = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[1] / "alignvl_cli"), str(index.resolve()))
    mine = {str(Path(uri).resolve()) for uri in uris}
    kernel = re.compile(
        r"/proc/(self|\d+)/(stat|status|limits|fd)$|/proc/stat$"
    )  # what the metrics tell of the process
    found = []
    for line in opened:
        _, _, place = line.partition(" ")
        whole = str(Path(place).resolve())
        tars = any(uri.startswith(whole + os.sep) for uri in mine)
        if not (
            whole == os.devnull
            or whole.startswith(code)
            or whole in mine
            or tars
            or place.isdigit()
            or kernel.match(place)
        ):
            found.append(line)
    return sorted(set(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--hostile", type=int, default=10_000)
    asked = parser.parse_args()
    items = open_index(asked.index).items
    texts, ids = sorted(set(items[Gallery.text].caption))[:5000], items[Gallery.image].id[:500]
    print(f"{len(items[Gallery.image].id):,} images; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} as it began")
    for at_once in (1, 16):
        print(f"bare, {bare(asked.index, texts, at_once, asked.seconds)}", flush=True)
    problems = []
    with tempfile.TemporaryDirectory() as folder, service(asked.index, Path(folder) / "opened") as (process, port):
        for clients in (1, 4, 16):
            cpu = cpu_seconds(process)
            statuses, took = load(port, texts, clients, asked.seconds)
            cpu = 1000 * (cpu_seconds(process) - cpu) / len(took)
            p50, p99 = np.percentile(took, [50, 99]) * 1000
            print(
                f"served, {clients:>2} clients: {len(took) / asked.seconds:6.1f} queries/s, p50 {p50:.1f} ms, p99 "
                f"{p99:.1f} ms; {cpu:.1f} ms of CPU a query; {counted(statuses)}",
                flush=True,
            )
        before = mebibytes(process)
        statuses, took = load(port, texts, 200, asked.seconds)
        after = mebibytes(process)
        print(
            f"overload, 200 clients: {len(took) / asked.seconds:6.1f} queries/s, p99 {np.percentile(took, 99):.2f} s; "
            f"{counted(statuses)}; resident memory {before:.0f} -> {after:.0f} MiB",
            flush=True,
        )
        problems += [f"overload was answered {status}" for status in statuses.keys() - {200, 429}]
        log = Path(folder) / "opened"
        ask(port, b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n")
        start, began = len(log.read_bytes()), time.perf_counter()
        found = attack(port, ids, asked.hostile)
        opened = log.read_bytes()[start:].decode().splitlines()
        other = strangers(opened, set(items[Gallery.image].uri), asked.index)
        print(
            f"hostile: {sum(found.values()):,} requests in {time.perf_counter() - began:.0f} s; {counted(found)}; "
            f"resident memory {after:.0f} -> {mebibytes(process):.0f} MiB; "
            f"{len(opened):,} files opened, {len(other)} outside the index"
        )
        problems += [f"hostile requests were answered {status}" for status in found if status in ("500", "hang", "503")]
        problems += [f"opened {line}" for line in other]
        if ask(port, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n") != "200":
            problems.append("it does not answer any more")
    print("left with 0 on SIGTERM", *problems, sep="\n")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
