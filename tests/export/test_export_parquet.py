"""`alignvl export --to parquet`: the run's embeddings, as other engines read them, find what the run finds."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from support.command_line import QUICK, CommandLine
from support.fakes import make_store

from alignvl_cli.export import parquet
from alignvl_cli.retrieval.embeddings import embed_split
from alignvl_cli.store.reader import open_store
from alignvl_cli.training.run_folder import load_run

FILE = "vectors/embeddings.parquet"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A run of 120 fake images with no to seven captions each, and of 16 dimensions."""
    folder = tmp_path_factory.mktemp("parquet")
    (folder / "stores").mkdir()
    make_store(folder / "stores" / "fake.h5", images=120, counter=1, captions_per_image=(0, 1, 2, 3))
    CommandLine(folder).succeeds("train", *QUICK)
    return folder


@pytest.fixture
def export(workspace, tmp_path):
    """The command; gives the path of the file."""

    def call(*words):
        alignvl = CommandLine(workspace)
        assert alignvl.succeeds("export", "-o", tmp_path / "vectors", "--to", "parquet", *words)
        return tmp_path / FILE

    return call


def wanted(workspace, split="all"):
    """Rows of images, then of captions: id, uri, caption, split, modality; and their vectors (N, E)."""
    store = open_store(workspace / "stores" / "fake.h5")
    run = load_run(next((workspace / "runs").iterdir()), "cpu")
    embeddings = embed_split(run, store, split, "cpu")
    rows = []
    for modality, row_N in (("image", embeddings.rows.image), ("text", embeddings.rows.text)):
        for row in row_N.tolist():
            image = row if modality == "image" else int(store.text_image[row])
            own = np.flatnonzero(store.text_image == image)
            caption = store.text_caption[row if modality == "text" else own[0]] if len(own) else ""
            split_name = store.split_names[store.image_split[image]]
            rows.append((store.image_id[image], store.image_uri[image], caption, split_name, modality))
    return rows, np.concatenate([embeddings.img_IE.numpy(), embeddings.txt_TE.numpy()])


@pytest.mark.parametrize("split", ["all", "test"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_pyarrow_reads_rows_and_vectors(workspace, export, monkeypatch, split, dtype):
    monkeypatch.setattr(parquet, "GROUP_ROWS", 7)  # several row groups
    table = pyarrow.parquet.read_table(export("--split", split, "--dtype", dtype))
    rows, vectors = wanted(workspace, split)
    kind = {"float32": pyarrow.float32(), "float16": pyarrow.float16()}[dtype]
    assert table.schema.field("vector").type == pyarrow.list_(kind, 16)
    assert list(zip(*(table[name].to_pylist() for name in table.column_names[:-1]), strict=True)) == rows
    found = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, 16)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, vectors.astype(dtype), atol=1e-6 if dtype == "float32" else 5e-4)
    about = json.loads(table.schema.metadata[b"alignvl"])
    assert about["split"] == split
    assert about["store_content_hash"] == open_store(workspace / "stores" / "fake.h5").content_hash


def nearest(workspace, query):
    """Ids of the five images that the run finds first for the captions at `query`, best first."""
    rows, vectors = wanted(workspace)
    images = [number for number, row in enumerate(rows) if row[4] == "image"]
    order = np.argsort(-(vectors[images] @ vectors[query]), kind="stable")[:5]
    return [rows[images[one]][0] for one in order]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_duckdb_finds_what_the_run_finds(workspace, export, dtype):
    duckdb = pytest.importorskip("duckdb")
    path, (_, vectors) = export("--dtype", dtype), wanted(workspace)
    for query in (130, 200):
        found = duckdb.execute(
            "SELECT id FROM read_parquet($path) WHERE modality = 'image' "
            "ORDER BY list_cosine_similarity(vector::FLOAT[], $query::FLOAT[]) DESC LIMIT 5",
            {"path": str(path), "query": vectors[query].tolist()},
        ).fetchall()
        assert [row[0] for row in found] == nearest(workspace, query)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_lancedb_finds_what_the_run_finds(workspace, export, tmp_path, dtype):
    lancedb = pytest.importorskip("lancedb")
    table = pyarrow.parquet.read_table(export("--dtype", dtype))
    table = lancedb.connect(str(tmp_path / "lance")).create_table("embeddings", table)
    _, vectors = wanted(workspace)
    for query in (130, 200):
        search = table.search(vectors[query].tolist(), vector_column_name="vector").distance_type("cosine")
        found = search.where("modality = 'image'", prefilter=True).limit(5).to_list()
        assert [row["id"] for row in found] == nearest(workspace, query)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_qdrant_finds_what_the_run_finds(workspace, export, dtype):
    qdrant = pytest.importorskip("qdrant_client")
    models = qdrant.models
    rows = pyarrow.parquet.read_table(export("--dtype", dtype)).to_pylist()
    client = qdrant.QdrantClient(":memory:")
    client.create_collection("embeddings", vectors_config=models.VectorParams(size=16, distance=models.Distance.COSINE))
    client.upsert(
        "embeddings",
        [
            models.PointStruct(id=number, vector=[float(value) for value in row.pop("vector")], payload=row)
            for number, row in enumerate(rows)
        ],
    )
    is_image = models.Filter(must=[models.FieldCondition(key="modality", match=models.MatchValue(value="image"))])
    _, vectors = wanted(workspace)
    for query in (130, 200):
        found = client.query_points("embeddings", query=vectors[query].tolist(), query_filter=is_image, limit=5).points
        assert [point.payload["id"] for point in found] == nearest(workspace, query)


def test_it_is_refused_without_its_store_and_with_flags_that_do_not_act(workspace, tmp_path):
    alignvl, out = CommandLine(workspace), tmp_path / "vectors"
    run = next((workspace / "runs").iterdir())
    assert "--dtype acts on --to parquet alone" in alignvl.fails(
        2, "export", "-o", out, "--to", "safetensors", "--dtype", "float16"
    )
    make_store(tmp_path / "other.h5", encoders="other")
    said = alignvl.fails(4, "export", run, "-o", out, "--to", "parquet", "--data", tmp_path / "other.h5")
    assert "holds latents of" in said
    assert "no image in a split 'dev'" in alignvl.fails(
        3, "export", "-o", out, "--to", "parquet", "--split", "dev", "-q"
    )
    assert not out.exists()


def test_embeddings_that_differ_are_not_written(workspace, tmp_path, monkeypatch):
    write = pyarrow.parquet.ParquetWriter.write_batch

    def damaged(writer, batch, **options):
        vector = batch.column("vector")
        moved = pyarrow.FixedSizeListArray.from_arrays(
            pyarrow.compute.add(vector.flatten(), pyarrow.scalar(1e-3, "float32")), 16
        )
        write(writer, batch.set_column(5, batch.schema.field("vector"), moved), **options)

    monkeypatch.setattr(pyarrow.parquet.ParquetWriter, "write_batch", damaged)
    said = CommandLine(workspace).fails(3, "export", "-o", tmp_path / "vectors", "--to", "parquet", "-q")
    assert "differs from the run by up to 0.001" in said
    assert list(tmp_path.iterdir()) == []
