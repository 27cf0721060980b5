"""A copy to a bucket that failed half way is made whole by the same command; what else is there is left alone."""

import fsspec
import pytest
from support.fake_runs import make_run
from support.fakes import make_store

from alignvl_cli import copy_artefact, open_store, remote
from alignvl_cli.errors import UsageError
from alignvl_cli.export import copying


@pytest.fixture
def bucket(monkeypatch):
    """A file system in memory where S3's would be."""
    files = fsspec.filesystem("memory", skip_instance_cache=True)
    monkeypatch.setattr(files, "store", {})
    monkeypatch.setattr(files, "pseudo_dirs", [""])
    monkeypatch.setattr(remote, "_filesystem", lambda scheme: files)
    return files


def test_a_copy_that_failed_half_way_is_made_whole_by_the_same_command(bucket, monkeypatch, tmp_path):
    run = make_run(tmp_path / "run", open_store(make_store(tmp_path / "s.h5")))
    upload, sent = copying.upload, []

    def failing(path, url):
        if len(sent) == 2:
            raise OSError("the line is cut")
        sent.append(path)
        upload(path, url)

    monkeypatch.setattr(copying, "upload", failing)
    with pytest.raises(OSError, match="cut"):
        copy_artefact(run, "s3://bucket/run")
    monkeypatch.setattr(copying, "upload", upload)
    copy_artefact(run, "s3://bucket/run")
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert {*remote.list_names("s3://bucket/run")} == names
    with pytest.raises(UsageError, match="is there already"):
        copy_artefact(run, "s3://bucket/run")
    copy_artefact("s3://bucket/run", tmp_path / "back")
    assert all((tmp_path / "back" / name).read_bytes() == (run / name).read_bytes() for name in names)


def test_what_no_copy_sent_is_not_written_over(bucket, tmp_path):
    run = make_run(tmp_path / "run", open_store(make_store(tmp_path / "s.h5")))
    bucket.pipe_file("s3://bucket/run/notes.txt", b"mine")
    with pytest.raises(UsageError, match="is there already"):
        copy_artefact(run, "s3://bucket/run")
    assert remote.list_names("s3://bucket/run") == ["notes.txt"]
