"""Objects behind URLs: fetched whole or not at all from a server that fails, and nothing secret is ever said."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.object_server import Answer, FaultyServer, files_of, serving

from alignvl_cli import remote
from alignvl_cli.errors import AlignvlError, DataError, UsageError
from alignvl_cli.remote import Cache, RemoteFile, fetch, folder_of, inner_path, is_url, joined, look, redacted, shown

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)


@pytest.fixture
def web():
    """What a web server needs here."""
    pytest.importorskip("aiohttp")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://user:hunter2@host/a/b.tar?X-Amz-Signature=hunter2#hunter2", "https://host/a/b.tar"),
        ("https://us:hun@hunter2@host:81/a%20b", "https://host:81/a%20b"),
        ("https://host?key=hunter2", "https://host"),
        ("HTTPS://user:hunter2@host/", "https://host/"),
        ("s3://bucket/what?.jpg", "s3://bucket/what?.jpg"),
        ("https://a/x.tar?k=hunter2::https://u:hunter2@b/y.tar?k=hunter2", "https://a/x.tar::https://b/y.tar"),
        ("C:/a?b", "C:/a?b"),
    ],
)
def test_what_is_shown_of_a_url_has_no_secret(url, told):
    assert shown(url) == told
    assert redacted(f"cannot open '{url}', says it") == f"cannot open '{told}', says it"


def test_names_below_a_folder():
    assert joined("https://h/d/", "a b#.jpg") == "https://h/d/a%20b%23.jpg"
    assert joined("s3://b/d", "a b#.jpg") == "s3://b/d/a b#.jpg"
    assert folder_of("https://h/d/list.csv?sig=a/b") == "https://h/d"
    assert inner_path("https://h/d/a%20b.tar?x=y") == "/d/a b.tar"
    assert inner_path("s3://b/d/a?.tar") == "d/a?.tar"
    assert [text for text in ("s3://a", "S3://a", "hf:a/b", "hf://a", "ftp://a", "s3:a", "/a") if is_url(text)] == [
        *("s3://a", "S3://a", "hf://a")
    ]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://example.org/a.tar", "give it as https://"),
        (f"s3://key:{SECRET}@bucket/a.tar", "leave the credentials out"),
    ],
)
def test_urls_that_would_tell_a_secret_are_refused(url, said):
    with pytest.raises(UsageError, match=said) as problem:
        look(url)
    assert SECRET not in str(problem.value)


@pytest.mark.parametrize(("scheme", "module", "extra"), [("s3", "s3fs", "s3"), ("gs", "gcsfs", "gs")])
def test_a_package_that_is_missing_is_named_with_the_command(monkeypatch, scheme, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    remote._filesystem.cache_clear()
    with pytest.raises(
        UsageError, match=rf"^{scheme}:// needs the package {module}: pip install 'alignvl\[{extra}\]'$"
    ):
        look(f"{scheme}://bucket/a.tar")


def test_a_server_that_fails_now_and_then_gives_every_byte(web, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "BLOCK", 1000)
    contents = {f"{number}": bytes(range(256)) * number for number in range(40)}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    with serving(files_of(tmp_path), seed=3, share=0.2) as server:
        for name, data in contents.items():
            found, came = fetch(f"{server.url}/{name}")
            assert came == data
            assert found.size == len(data)
            found.download(tmp_path / "copy" / name)
            assert (tmp_path / "copy" / name).read_bytes() == data
        assert {"drop", "cut", "busy"} == server.faults.keys()
        assert server.faults.total() > 20
    assert {path.name for path in (tmp_path / "copy").iterdir()} == contents.keys()


@pytest.mark.parametrize("status", [None, 500, 429])
def test_a_server_that_never_answers_is_asked_a_few_times(web, tmp_path, status):
    (tmp_path / "a.jpg").write_bytes(b"a" * 100)
    with serving(files_of(tmp_path), share=0.0 if status else 1.0) as server:
        if status:
            server.refused["/a.jpg"] = status
        with pytest.raises(DataError, match=rf"^{server.url}/a.jpg: cannot be read, tried 6 times: ") as problem:
            fetch(f"{server.url}/a.jpg?signature={SECRET}")
        assert 6 <= len(server.asked) <= 24
    assert "run the same command again" in str(problem.value)
    _require_no_secret(problem.value)


@pytest.mark.parametrize("status", [401, 403])
def test_what_is_forbidden_is_not_asked_for_again(web, tmp_path, status):
    (tmp_path / "a.jpg").write_bytes(b"a")
    with serving(files_of(tmp_path)) as server:
        server.refused["/a.jpg"] = status
        url = server.url.replace("//", f"//user:{SECRET}@") + f"/a.jpg?signature={SECRET}"
        with pytest.raises(DataError, match=r"/a.jpg: not allowed \(.*are the credentials right") as problem:
            fetch(url)
        assert len(server.asked) <= 2
    _require_no_secret(problem.value)


def test_what_is_not_there_is_not_asked_for_again(web, tmp_path):
    with serving(files_of(tmp_path)) as server:
        with pytest.raises(FileNotFoundError) as problem:
            fetch(f"{server.url}/a.jpg?signature={SECRET}")
        assert len(server.asked) <= 2
    assert problem.value.filename == f"{server.url}/a.jpg"
    _require_no_secret(problem.value)


def test_more_than_is_wanted_is_not_fetched(web, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"a" * 100)
    with serving(files_of(tmp_path)) as server:
        assert fetch(f"{server.url}/a.jpg", 100)[1] == b"a" * 100
        server.asked.clear()
        with pytest.raises(OSError, match="100 bytes long, more than 99"):
            fetch(f"{server.url}/a.jpg", 99)
        assert server.asked == ["HEAD /a.jpg"]


def test_an_object_that_changes_is_never_put_together_from_two(web, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "BLOCK", 10)
    (tmp_path / "a.tar").write_bytes(b"a" * 25)
    with serving(files_of(tmp_path)) as server:
        before = look(f"{server.url}/a.tar")
        assert before.read(20, 5) == b"aaaaa"
        (tmp_path / "a.tar").write_bytes(b"b" * 25)
        with pytest.raises(DataError, match=r"/a.tar: changed while it was being read; run the same command again"):
            before.read(20, 5)
        with pytest.raises(DataError, match="changed while"):
            before.download(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    assert before.stamp != look_at(tmp_path, "a.tar").stamp


def look_at(folder: Path, name: str) -> RemoteFile:
    with serving(files_of(folder)) as server:
        return look(f"{server.url}/{name}")


def test_a_server_without_parts_is_told_from_one_that_cuts_short(web, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "BLOCK", 10)
    (tmp_path / "a.tar").write_bytes(b"a" * 25)
    with serving(files_of(tmp_path, ranges=False)) as server:
        with pytest.raises(DataError, match="the server gives whole files alone"):
            look(f"{server.url}/a.tar").download(tmp_path / "copy")
        monkeypatch.setattr(remote, "BLOCK", 100)
        look(f"{server.url}/a.tar").download(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"a" * 25


def test_the_cache_keeps_what_fits_and_is_asked_first(web, tmp_path):
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode() * 1000)
    said = []
    cache = Cache(tmp_path / "cache", 2500, lambda done, total: said.append((done, total)))
    with serving(files_of(tmp_path)) as server:
        urls = [f"{server.url}/{name}?signature={SECRET}" for name in "abc"]
        read = [(path, path.read_bytes()) for _, path in cache.copies(urls)]
        assert [data for _, data in read] == [name.encode() * 1000 for name in "abc"]
        assert [path.exists() for path, _ in read] == [True, True, False]
        assert said[-1] == (3000, 3000)
        assert sorted(path.name for path in cache.folder.rglob("*") if path.is_file()) == ["a", "b"]
        server.asked.clear()
        assert [path.read_bytes()[:1] for _, path in cache.copies(urls)] == [b"a", b"b", b"c"]
        assert sum(one.startswith("GET") for one in server.asked) == 1
        with pytest.raises(DataError, match=r"/c: its 1,000 bytes do not fit into --cache-size; .* from .*cache"):
            list(cache.copies(urls, keep_all=True))
        with pytest.raises(UsageError, match="named twice"):
            list(cache.copies([urls[0], urls[0]]))
        cache = Cache(cache.folder, 3000)
        (tmp_path / "a").write_bytes(b"x" * 1000)
        assert next(cache.copies(urls[:1]))[1].read_bytes() == b"x" * 1000
    assert not [path for path in cache.folder.rglob("*") if SECRET in str(path)]


def test_a_server_that_tells_no_version_is_refused_for_what_is_kept(web, tmp_path):
    (tmp_path / "a.tar").write_bytes(b"a")
    with serving(files_of(tmp_path, validators=False)) as server:
        assert look(f"{server.url}/a.tar").stamp == (-1, -1)
        assert fetch(f"{server.url}/a.tar")[1] == b"a"
        with pytest.raises(DataError, match="neither size nor ETag nor the time"):
            list(Cache(tmp_path / "cache", 100).copies([f"{server.url}/a.tar"]))


def test_a_time_alone_tells_versions_too(web):
    times = iter(["Mon, 02 Nov 2026 10:00:00 GMT", "Mon, 02 Nov 2026 10:00:01 GMT"])
    with serving(lambda *_: Answer(200, {"Last-Modified": next(times)}, b"a")) as server:
        assert look(f"{server.url}/a").stamp != look(f"{server.url}/a").stamp


def test_a_file_of_a_dataset_on_the_hub():
    pytest.importorskip("fsspec")
    data = b"image,caption\n" * 1000

    def hub(method, target, headers, body):
        if "/paths-info/" in target:
            about = {"type": "file", "path": "a/list.csv", "size": len(data), "oid": "f" * 40}
            found = [about] if b"list.csv" in body else []
            return Answer(200, {"Content-Type": "application/json"}, json.dumps(found).encode())
        if target.startswith("/api/datasets/org/set"):
            return Answer(200, {"Content-Type": "application/json"}, b'{"id": "org/set", "sha": "%s"}' % (b"c" * 40))
        if target.endswith("/a/list.csv"):
            first, last = map(int, next(headers[name] for name in headers if name.lower() == "range")[6:].split("-"))
            return Answer(206, {}, data[first : last + 1])
        return Answer(404, {}, b"")

    code = (
        "from alignvl_cli.remote import fetch, look; url = 'hf://datasets/org/set/a/list.csv'\n"
        "file, data = fetch(url); print(file.size, file.version, len(data), file.read(3, 4))\n"
        "try: look('hf://datasets/org/set/a/none.csv')\nexcept FileNotFoundError as problem: print(problem.filename)"
    )
    with serving(hub) as server:
        there = {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
        words = [sys.executable, "-c", code]
        done = subprocess.run(words, capture_output=True, text=True, check=True, env=os.environ | there)
    first, second = done.stdout.splitlines()
    assert first == f"{len(data)} {'f' * 40} {len(data)} {data[3:7]}"
    assert second == "hf://datasets/org/set/a/none.csv"


def _require_no_secret(problem: BaseException) -> None:
    """Neither what is said nor what a traceback of it would show."""
    seen = []
    one: BaseException | None = problem
    while one is not None and one not in seen:
        seen.append(one)
        assert SECRET not in str(one)
        one = one.__cause__ or one.__context__
    assert isinstance(problem, AlignvlError | FileNotFoundError)


def test_faults_are_the_same_for_the_same_seed(tmp_path):
    drawn = []
    for seed in (1, 1, 2):
        server = FaultyServer(files_of(tmp_path), seed, 0.5)
        drawn.append([server.fault("GET", "/a") for _ in range(40)])
        server.server_close()
    assert drawn[0] == drawn[1] != drawn[2]
