"""`alignvl map` with real, tiny encoders, and a layout in place of UMAP."""

import pyarrow.parquet
import pytest

from alignvl_cli import write_map
from alignvl_cli.errors import UsageError
from alignvl_cli.report import map as mapping
from alignvl_cli.retrieval.layout import principal_axes


@pytest.fixture
def without_umap(monkeypatch):
    monkeypatch.setattr(mapping, "umap", lambda: None)
    places = mapping.make_map.__kwdefaults__
    monkeypatch.setitem(places, "layout", lambda unit_NE, cosine_NK, row_NK, seed: principal_axes(unit_NE))


def test_a_map_of_the_newest_index_lies_in_the_workspace(coloured, tmp_path, without_umap):
    path = tmp_path / "map.parquet"
    result = coloured("map", "-o", path)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{path}\n"
    assert f"drew {tmp_path / 'map.png'}" in result.stderr
    table = pyarrow.parquet.read_table(path)
    assert table["kind"].to_pylist() == ["image"] * 60 + ["text"] * 120
    assert table["image"].null_count == 120
    assert "map.parquet: something is there already" in coloured.fails(2, "map", "-o", path)
    coloured.succeeds("map", "-o", path, "--of", "text", "--neighbours", "3", "--overwrite")
    assert len(pyarrow.parquet.read_table(path)["neighbors"][0]["ids"]) == 3


def test_python_writes_the_same_file(coloured, tmp_path, without_umap):
    (index,) = (coloured.workspace / "indexes").iterdir()
    coloured.succeeds("map", index, "-o", tmp_path / "told.parquet", "--of", "image")
    assert write_map(index, output=tmp_path / "made.parquet", of="image") == tmp_path / "made.parquet"
    assert (tmp_path / "made.parquet").read_bytes() == (tmp_path / "told.parquet").read_bytes()
    assert (tmp_path / "made.png").read_bytes() == (tmp_path / "told.png").read_bytes()
    with pytest.raises(UsageError, match="neighbours"):
        write_map(index, output=tmp_path / "other.parquet", neighbours=1)


@pytest.mark.slow
def test_umap_places_an_index(coloured, tmp_path):
    pytest.importorskip("umap")
    for name in ("one", "again"):
        coloured.succeeds("map", "-o", tmp_path / f"{name}.parquet")
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "again.parquet").read_bytes()


def test_out_of_range_is_a_usage_error(coloured, tmp_path, without_umap):
    for words in (["--neighbours", "1"], ["--seed", "-1"], ["--of", "both"]):
        assert words[0] in coloured.fails(2, "map", "-o", tmp_path / "map.parquet", *words)
