"""docs/store.md, executed: its Python blocks open a store that our writer made, and its tables name all there is."""

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.fakes import make_store

from alignvl_cli.settings import StoreDtype
from alignvl_cli.store.schema import ATTRIBUTES, DATASETS, Rejected

PAGE = (Path(__file__).parents[2] / "docs" / "store.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)


@pytest.fixture(params=list(StoreDtype))
def store_path(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rejected = [Rejected("lost", "lost.png", "No such file or directory")]
    return make_store(
        tmp_path / "store.h5",
        images=300,
        dim=1024,
        captions_per_image=(2, 0, 3),
        dtype=request.param,
        rejected=rejected,
    )


def run_page():
    """What the page's blocks, run one after the other as one program, leave behind."""
    names: dict[str, object] = {}
    for block in BLOCKS:
        exec(compile(block, "docs/store.md", "exec"), names)
    return names


def test_the_blocks_read_what_was_written(store_path, capsys):
    found = run_page()
    assert found["image_ID"].shape == (300, 1024)
    assert found["ids"][1] == "s0-item00001"
    assert found["image_of_T"][:5].tolist() == [0, 0, 2, 2, 2]
    assert [found["split_names"][code] for code in found["split_I"][[0, 299]]] == ["train", "test"]
    assert isinstance(found["mapped_ID"], np.memmap)
    assert len(found["gallery_nD"]) == 60
    assert sorted(found["checked"]) == sorted(DATASETS)
    assert "300 images in 1024 dimensions by fake" in capsys.readouterr().out


def test_the_block_on_checksums_finds_a_changed_value(store_path):
    with h5py.File(store_path, "r+") as file:
        file["text/image"][7] += 1
    with pytest.raises(AssertionError, match="text/image is damaged"):
        run_page()


def test_the_tables_name_every_dataset_and_attribute(store_path):
    tables = [set(re.findall(r"`/?([\w/]+)`", line.split("|")[1])) for line in PAGE.splitlines() if line[:3] == "| `"]
    named = set().union(*tables)
    assert named == {*DATASETS, "digest/NAME", *ATTRIBUTES, "digest"}
    with h5py.File(store_path) as file:
        assert set(file.attrs) == {*ATTRIBUTES, "digest"}
