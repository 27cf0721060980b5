"""`alignvl store export` and `import`: the same pairs come back, and what does not fit is refused."""

import json
import shutil

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from support.fakes import make_store

from alignvl_cli.settings import StoreDtype
from alignvl_cli.store import exchange
from alignvl_cli.store.reader import open_store
from alignvl_cli.store.schema import CONTENT

ENCODERS = ["--vision", "some/vision", "--text", "some/text"]
QUICK = ["--epochs", "2", "--batch-size", "16", "--embed-dim", "8", "--device", "cpu"]


@pytest.fixture
def exported(empty, tmp_path):
    store = make_store(tmp_path / "fake.h5", images=40)
    assert empty.succeeds("store", "export", store, tmp_path / "out").strip() == str(tmp_path / "out")
    return tmp_path / "out"


def edit(path, change):
    array = np.load(path)
    np.save(path, change(array))


def write_clip_retrieval(folder, parts, captions=str):
    """Its folder: {number as it stands in the names: rows}; returns the latents of images and of texts."""
    rng = np.random.default_rng(0)
    count = max(rows.stop for rows in parts.values())
    image, text = rng.standard_normal((count, 6)).astype("f4"), rng.standard_normal((count, 5)).astype("f4")
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for number, rows in parts.items():
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", image[rows])
        np.save(folder / "text_emb" / f"text_emb_{number}.npy", text[rows])
        here = range(rows.start, rows.stop)
        table = pa.table({"image_path": [f"{row}.jpg" for row in here], "caption": [captions(row) for row in here]})
        pq.write_table(table, folder / "metadata" / f"metadata_{number}.parquet")
    return image, text


@pytest.mark.parametrize("dtype", list(StoreDtype))
@pytest.mark.parametrize("layout", ["npy", "safetensors"])
def test_a_store_comes_back_as_it_was(empty, tmp_path, layout, dtype):
    store = make_store(tmp_path / "fake.h5", images=40, text_dim=24, dtype=dtype)
    empty.succeeds("store", "export", store, tmp_path / "out", "--to", layout)
    again = tmp_path / "again.h5"
    assert empty.succeeds("store", "import", tmp_path / "out", "-o", again, *ENCODERS).strip() == str(again)
    with h5py.File(store) as before, h5py.File(again) as after:
        for name in {*CONTENT, "image/uri", "image/label"}:
            assert np.array_equal(before[name][:], after[name][:]), name
    assert open_store(again).content_hash == open_store(store).content_hash


def test_the_files_are_aligned_pair_by_pair(empty, tmp_path):
    path = make_store(tmp_path / "fake.h5", images=10, captions_per_image=(2, 0, 1))
    result = empty("store", "export", path, tmp_path / "npy")
    assert "3 images without a caption" in result.stderr
    empty("store", "export", path, tmp_path / "st", "--to", "safetensors")
    store = open_store(path)
    table = pq.read_table(tmp_path / "npy" / "metadata" / "metadata_0.parquet").to_pydict()
    image = np.load(tmp_path / "npy" / "img_emb" / "img_emb_0.npy")
    text = np.load(tmp_path / "npy" / "text_emb" / "text_emb_0.npy")
    assert table["caption"] == store.text_caption
    assert table["image_path"] == [store.image_uri[row] for row in store.text_image]
    assert np.array_equal(image, store.image_latent[store.text_image])
    assert np.array_equal(text, store.text_latent)
    tensors = load_file(tmp_path / "st" / "latents.safetensors")
    assert np.array_equal(tensors["img_emb"], image)
    assert np.array_equal(tensors["text_emb"], text)


def test_a_column_is_gone_through_once_however_many_images_there_are(empty, exported, tmp_path, monkeypatch):
    read, texts = [], exchange._texts

    def counted(folder, name, column):
        read.append(name)
        return texts(folder, name, column)

    monkeypatch.setattr(exchange, "_texts", counted)
    empty.succeeds("store", "import", exported, "-o", tmp_path / "again.h5", *ENCODERS)
    assert sorted(read) == ["caption", "image_id", "image_path"]


def test_parts_of_a_foreign_folder_are_joined(empty, tmp_path):
    image, text = write_clip_retrieval(tmp_path / "clip", {"2": slice(0, 12), "10": slice(12, 30)})
    empty.succeeds("store", "import", tmp_path / "clip", "-o", tmp_path / "s.h5", *ENCODERS)
    store = open_store(tmp_path / "s.h5")
    assert store.image_id == store.image_uri == [f"{row}.jpg" for row in range(30)]
    assert np.array_equal(store.image_block(slice(None)), image)
    assert np.array_equal(store.text_block(slice(None)), text)
    assert sum(store.split_sizes().values()) == 30
    assert store.dataset["sha256_of"] == "latent"


def test_numbers_of_parts_may_begin_with_zeros_as_clip_retrieval_writes_them(empty, tmp_path):
    image, text = write_clip_retrieval(tmp_path / "clip", {f"{n:02d}": slice(3 * n, 3 * n + 3) for n in range(12)})
    empty.succeeds("store", "import", tmp_path / "clip", "-o", tmp_path / "s.h5", *ENCODERS)
    store = open_store(tmp_path / "s.h5")
    assert store.image_id == [f"{row}.jpg" for row in range(36)]
    assert np.array_equal(store.image_block(slice(None)), image)
    assert np.array_equal(store.text_block(slice(None)), text)


@pytest.mark.parametrize("blank", ["", " ", None])
def test_rows_without_a_caption_are_images_of_the_gallery(empty, tmp_path, blank):
    parts = {"0": slice(0, 12), "1": slice(12, 20)}
    image, text = write_clip_retrieval(tmp_path / "clip", parts, lambda row: blank if row in (4, 15) else f"text {row}")
    result = empty("store", "import", tmp_path / "clip", "-o", tmp_path / "s.h5", *ENCODERS)
    assert result.exit_code == 0, result.output
    assert "2 rows have no caption" in " ".join(result.stderr.split())
    store, with_text = open_store(tmp_path / "s.h5"), [row for row in range(20) if row not in (4, 15)]
    assert np.array_equal(store.image_block(slice(None)), image)
    assert np.array_equal(store.text_block(slice(None)), text[with_text])
    assert store.text_image.tolist() == with_text
    assert store.text_caption == [f"text {row}" for row in with_text]


def test_an_import_without_any_caption_is_refused(empty, tmp_path):
    write_clip_retrieval(tmp_path / "clip", {"0": slice(0, 4)}, lambda row: "")
    assert "no caption" in empty.fails(3, "store", "import", tmp_path / "clip", "-o", tmp_path / "s.h5", *ENCODERS)


def test_imported_latents_train_but_nothing_new_is_encoded_to_fit_them(empty, exported, tmp_path):
    store = tmp_path / "again.h5"
    empty.succeeds("store", "import", exported, "-o", store, *ENCODERS)
    empty.succeeds("train", store, *QUICK)
    assert "text_to_image" in json.loads(empty.succeeds("eval", "--json"))["metrics"]
    message = empty.fails(4, "inspect", store, "--verify", 3)
    assert "imported" in message
    assert "some/vision" in message
    empty.succeeds("index", "--data", store)
    found = empty("search", "a dog")
    assert found.exit_code == 4, found.output
    assert "some/text" in " ".join(found.stderr.split())


def nan(array):
    array[3, 1] = np.nan
    return array


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("img_emb/img_emb_0.npy", nan, "not finite in row 3"),
        ("img_emb/img_emb_0.npy", lambda array: array[:-1], "differ"),
        ("text_emb/text_emb_0.npy", lambda array: array[0], "differ"),
        ("text_emb/text_emb_0.npy", lambda array: array.astype(int), "int64"),
        ("img_emb/img_emb_0.npy", lambda array: array + np.arange(len(array))[:, None].astype("f4"), "another latent"),
        ("text_emb/text_emb_0.npy", lambda array: array.astype(object), "cannot be read"),
    ],
)
def test_latents_that_do_not_fit_are_refused(empty, exported, tmp_path, file, change, said):
    edit(exported / file, change)
    assert said in empty.fails(3, "store", "import", exported, "-o", tmp_path / "s.h5", *ENCODERS)
    assert not (tmp_path / "s.h5").exists()


def test_metadata_that_do_not_fit_are_refused(empty, exported, tmp_path):
    place = exported / "metadata" / "metadata_0.parquet"
    table = pq.read_table(place)
    refused = ["store", "import", exported, "-o", tmp_path / "s.h5", *ENCODERS]
    pq.write_table(table.drop_columns(["caption"]), place)
    assert "'caption'" in empty.fails(3, *refused)
    ids = ["", *table["image_id"].to_pylist()[1:]]
    pq.write_table(table.drop_columns(["image_id"]).append_column("image_id", [ids]), place)
    assert "row 0 of the metadata has no image_id" in empty.fails(3, *refused)
    place.write_bytes(b"no parquet")
    assert str(exported) in empty.fails(3, *refused)
    shutil.rmtree(exported / "img_emb")
    assert "img_emb_0.npy" in empty.fails(3, *refused)


def test_encoders_must_be_named_and_nothing_is_replaced(empty, exported, tmp_path):
    assert "--vision" in empty.fails(2, "store", "import", exported, "-o", tmp_path / "s.h5", "--text", "some/text")
    kept = tmp_path / "fake.h5"
    before = kept.read_bytes()
    assert "there already" in empty.fails(2, "store", "import", exported, "-o", kept, *ENCODERS)
    assert kept.read_bytes() == before
    assert "there already" in empty.fails(2, "store", "export", kept, exported)
