import os
import pickle

import pytest

from alignvl_cli.datasets.dataset import ImageSource


def test_a_whole_file_and_a_stretch_of_it(tmp_path):
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(100)))
    assert ImageSource(path).read() == bytes(range(100))
    assert ImageSource(path, offset=10, size=3).read() == b"\x0a\x0b\x0c"


def test_a_stretch_beyond_the_end_is_an_error_not_a_short_image(tmp_path):
    path = tmp_path / "bytes"
    path.write_bytes(b"12345")
    with pytest.raises(OSError, match="ends inside"):
        ImageSource(path, offset=3, size=3).read()


def test_only_regular_files_are_read(tmp_path):
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)  # reading it would wait for ever
    for path in (pipe, tmp_path, tmp_path / "absent.png"):
        with pytest.raises(OSError, match=r"not a regular file|No such file"):
            ImageSource(path).read()


def test_a_source_travels_to_a_worker_process_without_the_bytes(tmp_path):
    path = tmp_path / "big"
    path.write_bytes(bytes(10**6))
    packed = pickle.dumps(ImageSource(path, 0, 10**6))
    assert len(packed) < 1000
    assert pickle.loads(packed).read() == bytes(10**6)
