"""Hashes that tell records apart, files that are whole or absent, and locks that go with their process."""

import errno
import hashlib
import os
import subprocess
import sys
import threading

import pytest

from alignvl_cli.artifacts import (
    canonical_json,
    committed,
    file_sha256,
    fingerprint,
    held,
    made_by,
    read_json,
    write_json,
)
from alignvl_cli.errors import DataError, UsageError


def test_equal_records_have_equal_fingerprints_whatever_their_order():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert canonical_json({"é": 1.0}) == '{"é":1.0}'
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": float("nan")})


def test_file_sha256_reads_across_blocks(tmp_path):
    data = bytes(range(256)) * 8_200  # a little over two blocks
    (tmp_path / "f").write_bytes(data)
    assert file_sha256(tmp_path / "f") == hashlib.sha256(data).hexdigest()


def test_a_failed_write_leaves_the_former_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"version": 1})

    def fail_halfway():
        with committed(path) as scratch:
            scratch.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert read_json(path, "test file") == {"version": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"{", "not valid JSON"), (b"[1]", "JSON object"), (b"\xff", "not valid JSON"), (b"[" * 99999, "JSON")],
)
def test_broken_json_is_named(tmp_path, content, said):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_json(path, "thing")


def test_missing_json_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.json: cannot read this thing"):
        read_json(tmp_path / "gone.json", "thing")


def test_made_by_tells_versions_and_settings():
    record = made_by("train", {"seed": 3}, counter=7)
    assert record["settings"] == {"seed": 3}
    assert record["counter"] == 7
    assert record["libraries"]["torch"]


def test_a_write_that_fails_names_the_file_that_was_to_be(tmp_path):
    path = tmp_path / "made.json"
    with pytest.raises(OSError, match="No space left") as refused, committed(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert refused.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []


HOLDS = """
import sys
from pathlib import Path
from alignvl_cli.artifacts import held
with held(Path(sys.argv[1]), "busy; wait"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_says_who_holds_it_and_goes_with_a_killed_process(tmp_path):
    lock = tmp_path / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(DataError, match=rf"^x: another one \(process {holder.pid} on .*\); wait for it$"):
            with held(lock, "x: another one; wait for it"):
                pass
        holder.kill()
    with held(lock, "busy"):
        assert lock.read_text().startswith("process ")


def test_a_lock_is_held_against_this_process_too_and_given_up_by_any_thread(tmp_path):
    holding = held(tmp_path / "lock", "busy; wait")
    holding.__enter__()
    with pytest.raises(DataError, match="busy"):
        with held(tmp_path / "lock", "busy; wait"):
            pass
    other = threading.Thread(target=holding.__exit__, args=(None, None, None))
    other.start()
    other.join()
    with held(tmp_path / "lock", "busy"):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_nothing_can_be_locked_work_goes_on_without(tmp_path, monkeypatch, number):
    def no_locks(*_: object) -> bool:
        raise OSError(number, "no locks here")

    monkeypatch.setattr("filelock._unix.lock_fd_nonblocking", no_locks)
    with held(tmp_path / "lock", "busy"):
        pass


def test_a_lock_in_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        with held(tmp_path / "absent" / "lock", "busy"):
            pass


def test_a_link_stays_one_and_a_pipe_is_not_replaced(tmp_path):
    (tmp_path / "kept").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    with committed(tmp_path / "link") as scratch:
        scratch.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "kept").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="no regular file"), committed(tmp_path / "pipe"):
        pass
    assert (tmp_path / "pipe").is_fifo()
