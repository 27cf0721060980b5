"""A picture is found again from the uri that a store keeps, or is said to be gone."""

import tarfile
from pathlib import Path

import pytest

from alignvl_cli.datasets.formats import open_dataset, picture_bytes
from alignvl_cli.settings import DatasetOptions


def test_pictures_are_found_in_files_tars_and_the_demo(tmp_path):
    (tmp_path / "a.png").write_bytes(b"one")
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        archive.add(tmp_path / "a.png", "folder/a.png")
    assert picture_bytes(str(tmp_path / "a.png")) == b"one"
    assert picture_bytes(str(tmp_path / "b.tar" / "folder" / "a.png")) == b"one"
    item = open_dataset("demo:emoji", DatasetOptions()).items[5]
    assert picture_bytes(item.uri) == item.source.read()


@pytest.mark.parametrize("uri", ["gone.png", "demo:emoji/none", "demo:none/x", "", "/", "train.arrow#3"])
def test_a_picture_that_is_gone_has_no_bytes(uri):
    assert picture_bytes(uri) is None


def test_a_member_that_is_gone_has_no_bytes(tmp_path):
    Path(tmp_path / "b.tar").write_bytes(b"no tar")
    assert picture_bytes(str(tmp_path / "b.tar" / "a.png")) is None
