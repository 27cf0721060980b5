"""What is refused, with which code and which words; and what a page may load."""

import base64
import hashlib
import io
import json
import re
import shutil
import socket
import struct
import threading
import time
import zlib
from urllib.parse import quote

import pytest
from PIL import Image
from support.service import service, source_of

from alignvl_cli.retrieval.index import open_index
from alignvl_cli.serving import app as application
from alignvl_cli.settings import Gallery


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes that says it has so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1_000_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


JSON = {"content_type": "application/json"}


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "said"),
    [
        ("/search", {"texts": []}, {}, 422, "texts"),
        ("/search", {"texts": [" "]}, {}, 422, "blank"),
        ("/search", {"texts": ["x" * 101]}, {}, 422, "101 characters; 100 are taken"),
        ("/search", {"texts": ["x"] * 65}, {}, 422, "64"),
        ("/search", {"texts": ["x"], "k": 0}, {}, 422, "k"),
        ("/search", {"texts": ["x"], "k": 10**30}, {}, 422, "k"),
        ("/search", {"texts": ["x"], "threshold": 1.5}, {}, 422, "at most 1"),
        ("/search", {"texts": ["x"], "min_precision": 0}, {}, 422, "min_precision"),
        ("/search", {"texts": ["x"], "min_precision": 0.5, "of": "text"}, {}, 422, "words find captions"),
        ("/search", {"texts": ["x"], "of": "sound"}, {}, 422, "of"),
        ("/search", {"texts": ["x"], "thresold": 0.5}, {}, 422, "thresold"),
        ("/search", {"texts": ["x"], "index": "none"}, {}, 404, "there is index"),
        ("/search", b'{"texts": ["x"], "threshold": NaN}', JSON, 422, "threshold"),
        ("/search", b'{"texts": ["\\ud800"]}', JSON, 422, "surrogate"),
        ("/search", b'{"texts": ', JSON, 422, "JSON"),
        ("/search", b"\xff\xfe", JSON, 422, ""),
        ("/search", b"[" * 50_000, JSON, 400, "body"),
        ("/search", b"x" * 100_001, JSON, 413, "100,000 are taken"),
        ("/search/image", b"", {}, 422, "empty"),
        ("/search/image", b"<html>", {}, 422, "HTML"),
        ("/search/image", bomb(60_000, 60_000), {}, 422, "60000 x 60000 pixels, above --max-pixels 10000"),
        ("/embeddings/image", bomb(101, 100), {}, 422, "pixels"),
        ("/embeddings/texts", {"texts": [""]}, {}, 422, "blank"),
        ("/nowhere", {}, {}, 404, "/docs"),
        ("/health", {}, {}, 405, "Not Allowed"),
    ],
)
def test_a_request_that_cannot_be_answered_says_why(client, path, body, headers, status, said):
    reply = client.post(path, body, **headers)
    assert reply.status == status, reply.body
    assert said in reply.reason
    assert reply.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/items/none",
            "/items/..%2f..%2fetc%2fpasswd",
            "/thumbnails/%2Fetc%2Fpasswd",
            "/thumbnails/../../etc/passwd",
        ),
        *("/items/%00", "/items/%ff%fe", "/items/", "/search/like/none", "/thumbnails/file:%2F%2F%2Fetc%2Fpasswd"),
        *("/static/x", "/.git/config", "//etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/index.json"),
    ],
)
def test_nothing_is_served_by_path(client, path):
    reply = client.get(path)
    assert reply.status == 404
    assert b"root:" not in reply.body


def test_a_body_without_a_length_is_read_no_further_than_it_may(client):
    reply = client.post("/search/image", iter([b"x" * 60_000] * 3))
    assert reply.status == 413
    assert "larger than the 100,000 bytes" in reply.reason


def test_the_first_pictures_of_a_batch_are_answered_though_another_is_broken(client, workplace):
    good = (workplace / "1.png").read_bytes()
    alone = client.post("/search/image?k=2", good).json["results"]
    replies: dict[int, object] = {}
    bodies = [good, b"broken", good, bomb(9000, 9000), good[:50]]

    def ask(number: int) -> None:
        replies[number] = client.post("/search/image?k=2", bodies[number])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [replies[number].status for number in range(5)] == [200, 422, 200, 422, 422]
    assert replies[0].json["results"] == replies[2].json["results"] == alone


class Held:
    """The work of a service that waits to be let go, and counts its batches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.batches, answer = threading.Event(), [], application.answers.answer

        def held(questions, **more):
            self.batches.append(len(questions))
            assert self.go.wait(60)
            return answer(questions, **more)

        monkeypatch.setattr(application.answers, "answer", held)


def together(client, count, path="/search?text=red"):
    """Requests in threads of their own; the list takes their replies."""
    replies = []
    threads = [threading.Thread(target=lambda: replies.append(client.get(path))) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, replies


def until(holds):
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def waiting(client):
    return float(re.search(rb"^alignvl_waiting_requests (\S+)", client.get("/metrics").body, re.M)[1])


def test_requests_that_arrive_together_are_one_call_of_the_encoder(workplace, monkeypatch):
    held = Held(monkeypatch)
    with service(source_of(workplace / "index")) as client:
        calls = []
        encoder = client.catalog.served["index"].encoder
        encode = encoder.encode_text
        monkeypatch.setattr(encoder, "encode_text", lambda texts: calls.append(list(texts)) or encode(texts))
        first, one = together(client, 1)
        until(lambda: held.batches == [1])
        later, others = together(client, 8, "/search?text=blue")
        until(lambda: waiting(client) == 8)
        held.go.set()
        for thread in [*first, *later]:
            thread.join()
    assert held.batches == [1, 8]
    assert calls == [["red"], ["blue"]]
    assert {reply.status for reply in one + others} == {200}


def test_more_than_the_queue_holds_is_busy_and_what_waits_is_answered(workplace, monkeypatch):
    held = Held(monkeypatch)
    with service(source_of(workplace / "index"), queue=3) as client:
        first, one = together(client, 1)
        until(lambda: held.batches == [1])
        later, others = together(client, 3)
        until(lambda: waiting(client) == 3)
        busy = client.get("/search?text=red")
        assert (busy.status, busy.headers["retry-after"]) == (429, "1")
        assert "3 requests are waiting" in busy.reason
        assert client.get("/health").status == 200
        held.go.set()
        for thread in [*first, *later]:
            thread.join()
    assert [reply.status for reply in one + others] == [200] * 4


def test_what_takes_too_long_is_given_up_and_not_worked_for(workplace, monkeypatch):
    held = Held(monkeypatch)
    with service(source_of(workplace / "index"), timeout=0.3) as client:
        slow = client.get("/search?text=red")
        assert (slow.status, slow.reason) == (504, "no answer within 0.3 seconds")
        assert client.get("/search?text=red").status == 504  # behind it in the queue
        held.go.set()
        until(lambda: client.get("/search?text=red").status == 200)
    assert sum(held.batches) == 2, "the one that was given up while it waited cost nothing"


def test_a_body_that_never_comes_is_given_up(workplace):
    with service(source_of(workplace / "index"), timeout=0.3) as client:
        with socket.create_connection(("127.0.0.1", client.port), timeout=30) as slow:
            slow.sendall(b"POST /search/image HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\nx")
            assert slow.recv(100).startswith(b"HTTP/1.1 504")


def test_a_token_opens_everything_but_the_empty_page(workplace):
    with service(source_of(workplace / "index"), token="a secret of many letters") as client:
        assert [client.get(path).status for path in ("/", "/docs", "/openapi.json", "/health")] == [200] * 4
        for path in ("/search?text=red", "/indexes", "/metrics", "/items/x", "/thumbnails/x", "/search/like/x"):
            assert client.get(path).status == 401
            assert client.get(path, authorization="Bearer a secret of many letter").status == 401
            assert client.get(path, authorization="Bearer a secret of many letters").status in (200, 404)
        assert client.get("/indexes").headers["www-authenticate"] == "Bearer"
        assert client.get("/health", host="any.name").status == 200


def test_without_a_token_loopback_answers_to_its_own_names_alone(client):
    assert client.get("/health", host="localhost:1234").status == 200
    assert client.get("/health", host="[::1]").status == 200
    rebound = client.get("/search?text=red", host="pictures.example.com")
    assert (rebound.status, rebound.json["error"]["code"]) == (421, "wrong_host")


def test_another_loopback_address_answers_to_its_own_name(workplace):
    with service(source_of(workplace / "index"), host="127.0.0.2") as client:
        assert client.get("/health", host="127.0.0.2:1234").status == 200
        assert client.get("/health", host="127.0.0.3").status == 421


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_loads_nothing_and_runs_its_own_script_alone(client, path):
    reply = client.get(path)
    html, policy = reply.body.decode(), reply.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "http:" not in policy + html
    assert not re.search(r"<link[^>]+href=\"(?!data:)|<[^>]+\ssrc=|@import|url\(|<[^>]+\sstyle=|<[^>]+\son\w+=", html)
    for kind, tag in (("script", "script"), ("style", "style")):
        hashes = [
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
            for text in re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.S)
        ]
        assert f"{kind}-src {' '.join(hashes) or chr(39) + 'none' + chr(39)};" in policy


def test_the_page_sets_no_html(client):
    script = re.search(r"<script>(.*)</script>", client.get("/").body.decode(), re.S)[1]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(|srcdoc", script)


@pytest.fixture
def changeable(workplace, tmp_path):
    """Index and client of pictures that a test may change."""
    index = open_index(workplace / "index")
    name = index.items[Gallery.image].id[5]
    path = workplace / "5.png"
    kept = path.read_bytes()
    yield name, path
    path.write_bytes(kept)


def test_a_picture_that_vanished_or_changed_is_told_in_words(changeable, workplace):
    name, path = changeable
    address = quote(name, safe="")
    with service(source_of(workplace / "index")) as client:
        Image.new("RGB", (32, 32), "pink").save(path)
        reply = client.get(f"/thumbnails/{address}")
        assert (reply.status, reply.json["error"]["code"]) == (410, "gone")
        assert "another picture is in its place" in reply.reason
        path.unlink()
        assert "moved, removed" in client.get(f"/thumbnails/{address}").reason
        item = client.get(f"/items/{address}").json
        assert (item["has_picture"], "moved, removed" in item["missing"]) == (False, True)
        path.mkdir()
        assert client.get(f"/thumbnails/{address}").status == 410
        path.rmdir()
        path.symlink_to("/etc/passwd")
        reply = client.get(f"/thumbnails/{address}")
        assert reply.status == 410
        assert b"root:" not in reply.body
        path.unlink()
        assert name in [hit["id"] for hit in client.get("/search?text=blue&k=60").json["results"][0]["hits"]]


def test_a_new_index_at_the_path_is_served_and_no_request_is_dropped(workplace, own, monkeypatch):
    from alignvl_cli import build_index
    from alignvl_cli.serving import catalog

    monkeypatch.setattr(catalog, "RELOAD_S", 0.05)
    record = open_index(own).record
    with service(source_of(own)) as client:
        statuses, stop = [], threading.Event()

        def ask() -> None:
            while not stop.is_set():
                statuses.append(client.get("/search?text=red&k=3").status)

        asking = threading.Thread(target=ask)
        asking.start()
        build_index(record.run, record.store, output=own, split="test", overwrite=True)
        images = open_index(own).record.images
        until(lambda: client.get("/indexes").json["indexes"][0]["images"] == images < 60)
        (own / "image.faiss").write_bytes(b"damaged")
        newer = own / "newer.json"
        newer.write_bytes((own / "index.json").read_bytes() + b" ")
        newer.replace(own / "index.json")  # never seen half written
        until(lambda: client.get("/indexes").json["indexes"][0]["problem"])
        assert len(client.get("/search?text=red&k=60").json["results"][0]["hits"]) == images
        shutil.rmtree(own)
        time.sleep(0.2)
        stop.set()
        asking.join()
        assert client.get("/search?text=red").status == 200
        assert "image.faiss is missing or damaged" in client.warned[0]
        client.warned.clear()
    assert set(statuses) == {200}


def test_a_caption_of_html_stays_text(workplace, own, tmp_path):
    import pyarrow
    import pyarrow.parquet

    from alignvl_cli.artifacts import file_sha256, read_json, write_json

    evil = "</script><script>alert(1)</script>\u202e\x1b[31m"
    items = pyarrow.parquet.read_table(own / "items.parquet")
    captions = pyarrow.array([evil] * len(items))
    items = items.set_column(items.column_names.index("caption"), "caption", captions)
    pyarrow.parquet.write_table(items, own / "items.parquet")
    record = read_json(own / "index.json", "index")
    record["sha256"]["items.parquet"] = file_sha256(own / "items.parquet")
    write_json(own / "index.json", record)
    with service(source_of(own)) as client:
        reply = client.get("/search?text=red&k=1")
        assert reply.headers["content-type"] == "application/json"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert json.loads(reply.body)["results"][0]["hits"][0]["caption"] == evil
        assert b"alert" not in client.get("/").body


def test_a_bug_is_a_500_that_tells_the_operator_alone(workplace, monkeypatch):
    def broken(questions, **more):
        raise ZeroDivisionError("the secret path /home/me")

    monkeypatch.setattr(application.answers, "answer", broken)
    with service(source_of(workplace / "index")) as client:
        reply = client.get("/search?text=red")
        assert (reply.status, reply.json["error"]["code"]) == (500, "bug")
        assert b"secret" not in reply.body
        assert client.get("/health").status == 200
        until(lambda: client.warned)
        assert "ZeroDivisionError" in client.warned.pop()


def test_a_large_picture_is_made_small(client, workplace):
    out = io.BytesIO()
    Image.new("RGB", (99, 101)).save(out, "PNG")
    assert client.post("/search/image", out.getvalue()).status == 200
