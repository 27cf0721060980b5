"""Extraction, training and evaluation with all data behind URLs of servers that fail now and then: the same as of files
here, and no secret in anything that is printed or kept."""

import json
import logging
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.coloured_tar import write_tar
from support.command_line import QUICK, CommandLine
from support.object_server import BUCKET, SECRET_KEY, FaultyServer, files_of, put, s3_environment, s3_server, serving

from alignvl_cli import copy_artefact, extract, open_store, remote
from alignvl_cli.errors import DataError, UsageError

PAIRS = 120


@pytest.fixture(autouse=True)
def impatient(monkeypatch, tmp_path):
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user cache"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A manifest with pictures beside it, the same pairs in CSV, and tars."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for number in range(PAIRS):
        shade = (number * 2, 255 - number, 40 * (number % 5))
        Image.new("RGB", (32, 24), shade).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "captions": [f"square {number}", f"shade {number % 7}"]})
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number in range(3):
        write_tar(folder / f"{number}.tar", pairs=6)
    return folder


@pytest.fixture(scope="module")
def bucket(data):
    """An S3 server with the data, 5 % of whose answers are dropped, cut short or 503."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with s3_server(seed=4, share=0.05) as server:
        put(server, data, "set/")
        yield server


@pytest.fixture
def s3(bucket, monkeypatch):
    """The server, as this process's S3."""
    for name, value in s3_environment(bucket).items():
        monkeypatch.setenv(name, value)
    remote._filesystem.cache_clear()
    yield bucket
    bucket.refused.clear()
    remote._filesystem.cache_clear()


@pytest.fixture(scope="module")
def local(data, tiny_encoders, tmp_path_factory):
    """A workspace in which the data were extracted from files here and trained on."""
    alignvl = CommandLine(tmp_path_factory.mktemp("local") / "w")
    alignvl.succeeds("extract", data / "own.jsonl", *tiny_encoders)
    alignvl.succeeds("train", *QUICK)
    return alignvl


def latents(store):
    return [np.asarray(open_store(store).image_latent), np.asarray(open_store(store).text_latent)]


def the_store(alignvl: CommandLine) -> Path:
    (path,) = (alignvl.workspace / "stores").glob("*.h5")
    return path


def recalls(alignvl: CommandLine, *words: str | Path):
    return json.loads(alignvl.succeeds("eval", *words, "--split", "all", "--json"))["metrics"]


def test_all_data_behind_s3_give_what_files_here_give(s3, local, tiny_encoders, tmp_path):
    alignvl = CommandLine(tmp_path / "w")
    before = s3.faults.total()
    alignvl.succeeds("extract", f"s3://{BUCKET}/set/own.jsonl", *tiny_encoders)
    assert s3.faults.total() > before, "or nothing was tried"
    for one, other in zip(latents(the_store(alignvl)), latents(the_store(local)), strict=True):
        assert np.array_equal(one, other)
    alignvl.succeeds("train", *QUICK)
    assert recalls(alignvl) == recalls(local)
    s3.asked.clear()
    again = alignvl("extract", f"s3://{BUCKET}/set/own.jsonl", *tiny_encoders)
    assert "is up to date" in again.stderr
    assert not [asked for asked in s3.asked if asked.startswith("GET")], "sizes and ETags alone tell"
    _require_absent(SECRET_KEY, tmp_path)


def test_tars_of_a_folder_behind_s3(s3, data, tiny_encoders, tmp_path):
    url = f"s3://{BUCKET}/set/"
    here = extract(str(data / "{0..2}.tar"), output=tmp_path / "a.h5", **named(tiny_encoders))
    for name, room in (("kept", 1), ("parts", 0)):
        store = extract(
            *(url,),
            output=tmp_path / f"{name}.h5",
            cache_dir=tmp_path / name,
            cache_size=room,
            **named(tiny_encoders),
        )
        assert store.image_id == here.image_id
        assert np.array_equal(store.image_latent, here.image_latent)
        assert store.image_uri[0] == f"{url}0.tar/000.png"
        assert bool(list((tmp_path / name).rglob("*.tar"))) == bool(room)


def test_an_extraction_that_lost_its_server_resumes(s3, local, tiny_encoders, tmp_path, monkeypatch):
    alignvl, url = CommandLine(tmp_path / "w"), f"s3://{BUCKET}/set/own.jsonl"
    monkeypatch.setattr("alignvl_cli.extraction.plan.IMAGE_SHARD_BATCHES", 2)
    s3.refused[f"/{BUCKET}/set/100.png"] = 500
    said = alignvl.fails(3, "extract", url, *tiny_encoders, "--quiet")
    assert f"s3://{BUCKET}/set/100.png: cannot be read, tried 6 times" in said
    assert "run the same command again" in said
    s3.refused.clear()
    s3.asked.clear()
    alignvl.succeeds("extract", url, *tiny_encoders)
    fetched = {int(asked.split("/")[-1].partition(".")[0]) for asked in s3.asked if re.search(r"GET.*\.png", asked)}
    assert fetched == set(range(96, PAIRS)), "of the shards that were finished only sizes and ETags are asked"
    for one, other in zip(latents(the_store(alignvl)), latents(the_store(local)), strict=True):
        assert np.array_equal(one, other)


def test_a_missing_picture_is_rejected_and_a_forbidden_one_ends_it(s3, tiny_encoders, tmp_path):
    alignvl, url = CommandLine(tmp_path / "w"), f"s3://{BUCKET}/set/own.jsonl"
    s3.refused[f"/{BUCKET}/set/7.png"] = 404
    alignvl.succeeds("extract", url, *tiny_encoders)
    (rejected,) = open_store(the_store(alignvl)).rejected
    assert (rejected.uri, rejected.reason) == (f"s3://{BUCKET}/set/7.png", "no such object")
    s3.refused.clear()
    assert "could not be read then and can be now" in alignvl.fails(4, "extract", url, *tiny_encoders, "--quiet")
    s3.refused[f"/{BUCKET}/set/8.png"] = 403
    alignvl.fails(3, "data", "check", url, "--quiet")
    said = alignvl.fails(3, "extract", url, *tiny_encoders, "--overwrite", "--quiet", "-o", tmp_path / "other.h5")
    assert f"s3://{BUCKET}/set/8.png: not allowed (Forbidden); are the credentials right" in said


def test_wrong_credentials_are_said_and_not_shown(s3, tiny_encoders, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAWRONG")
    remote._filesystem.cache_clear()
    alignvl = CommandLine(tmp_path / "w")
    result = alignvl("extract", f"s3://{BUCKET}/set/own.jsonl", *tiny_encoders, "--verbose")
    assert result.exit_code == 3
    assert "not allowed" in result.stderr
    for secret in ("AKIAWRONG", SECRET_KEY):
        assert secret not in result.output
        _require_absent(secret, tmp_path)


def test_stores_runs_and_indexes_are_copied_and_read_back(s3, local, tmp_path):
    local.succeeds("index")
    run, index = (next((local.workspace / kind).iterdir()) for kind in ("runs", "indexes"))
    root = f"s3://{BUCKET}/kept"
    for path, mark in ((the_store(local), ""), (run, "result.json"), (index, "index.json")):
        assert local.succeeds("copy", path, f"{root}/{path.name}").strip() == f"{root}/{path.name}"
        puts = [asked for asked in s3.asked if asked.startswith(f"PUT /{BUCKET}/kept/{path.name}")]
        assert puts[-1].partition("?")[0].endswith(mark), "what makes it complete is written last"
        copy_artefact(f"{root}/{path.name}", tmp_path / path.name)
        there = tmp_path / path.name
        for file in [path] if path.is_file() else path.rglob("*.*"):
            assert (there / file.relative_to(path)).read_bytes() == file.read_bytes()
        assert "is there already" in local.fails(2, "copy", path, f"{root}/{path.name}")
        assert "is there already" in local.fails(2, "copy", f"{root}/{path.name}", there)
    copied = recalls(local, tmp_path / run.name, "--data", tmp_path / the_store(local).name)
    assert copied == recalls(local, run)
    key = f"/{BUCKET}/kept/{the_store(local).name}"
    _damage(s3, key)
    with pytest.raises(DataError):
        copy_artefact(f"s3:/{key}", tmp_path / "damaged.h5")
    assert not (tmp_path / "damaged.h5").exists()
    for source, target, problem in (
        (run, tmp_path / "r", UsageError),
        (run, "https://example.org/r", UsageError),
        (tmp_path / "none", f"{root}/none", DataError),
        (f"{root}/none", tmp_path / "none", DataError),
    ):
        with pytest.raises(problem):
            copy_artefact(source, target)


def _damage(server: FaultyServer, key: str) -> None:
    """One byte of an object is another, in its middle."""
    import boto3

    share, server.share = server.share, 0.0
    client = boto3.client("s3")
    data = bytearray(client.get_object(Bucket=BUCKET, Key=key.split("/", 2)[2])["Body"].read())
    data[len(data) // 2] ^= 1
    client.put_object(Bucket=BUCKET, Key=key.split("/", 2)[2], Body=bytes(data))
    server.share = share


def test_a_signed_url_is_nowhere_to_be_found_again(data, local, tiny_encoders, tmp_path):
    pytest.importorskip("aiohttp")
    alignvl = CommandLine(tmp_path / "w")
    with serving(files_of(data), seed=2, share=0.05) as server:
        url = server.url.replace("//", "//user:hunter2@")
        signed = f"{url}/own.jsonl?X-Amz-Signature=hunter2"
        said = [alignvl("data", "check", signed, "--json"), alignvl("extract", signed, *tiny_encoders, "--verbose")]
        assert [result.exit_code for result in said] == [0, 0], said[1].output
        said.append(alignvl("extract", signed, *tiny_encoders))
        said.append(alignvl("inspect", the_store(alignvl), "--json"))
        server.refused["/own.jsonl"] = 403
        said.append(alignvl("extract", signed, *tiny_encoders, "--verbose"))
        assert "not allowed" in said[-1].stderr
        said.append(alignvl("train", f"{url}/a.h5?signature=hunter2"))
        assert "http://.../a.h5: a URL, where a path is wanted; `alignvl copy URL a.h5`" in said[-1].stderr
    for result in said:
        assert "hunter2" not in result.output
    for one, other in zip(latents(the_store(alignvl)), latents(the_store(local)), strict=True):
        assert np.array_equal(one, other)
    _require_absent("hunter2", tmp_path)


def test_without_the_package_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    remote._filesystem.cache_clear()
    said = CommandLine(tmp_path / "w").fails(2, "extract", "s3://bucket/a.jsonl")
    assert said == "alignvl: s3:// needs the package s3fs: pip install 'alignvl[s3]'"


def test_flags_of_the_cache_act_on_urls_alone(tmp_path):
    said = CommandLine(tmp_path / "w").fails(2, "extract", "here.jsonl", "--cache-size", "3")
    assert said == "alignvl: --cache-size has no effect on here.jsonl, which is no URL; leave it out"


def named(flags: list[str]) -> dict[str, str]:
    return {flag.removeprefix("--"): value for flag, value in zip(flags[::2], flags[1::2], strict=True)}


def _require_absent(secret: str, folder: Path) -> None:
    """No file of `folder` has the secret in its bytes or its name."""
    for path in folder.rglob("*"):
        assert secret not in str(path)
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path
