import builtins
import io
import os

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from alignvl_cli.datasets.formats import open_dataset
from alignvl_cli.datasets.huggingface import HUB_ID, read_batches
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.settings import DatasetFormat, DatasetOptions

DEFAULT = DatasetOptions()


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def png(value):
    stream = io.BytesIO()
    Image.new("RGB", (4, 3), (value, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def picture(value, path=None):
    return {"bytes": png(value), "path": path}


def make(rows, **features):
    """A datasets.Dataset whose image column is one of pictures."""
    kinds = {"image": datasets.Image(decode=False)} | features
    made = datasets.Dataset.from_list(rows)
    for name, kind in kinds.items():
        made = made.cast_column(name, kind)
    return made


def saved(path, data):
    data.save_to_disk(str(path))
    return str(path)


def found(spec, options=DEFAULT):
    return {item.id: (item.captions, item.split, item.source.read()) for item in open_dataset(str(spec), options).items}


def test_bytes_are_read_in_place_in_every_batch_and_shard(tmp_path):
    rows = [{"image": picture(n % 256, f"{n}.png"), "captions": [f"c{n}"]} for n in range(2500)]
    made = make(rows)
    made.save_to_disk(str(tmp_path / "d"), num_shards=2)
    items = open_dataset(str(tmp_path / "d"), DEFAULT).items
    assert len({item.source.path for item in items}) == 2
    assert len(items) == 2500
    for n, item in enumerate(items):
        assert (item.id, item.captions, item.source.read()) == (f"{n}.png", (f"c{n}",), rows[n]["image"]["bytes"])


def test_saved_splits_are_declared_and_begin_the_ids(tmp_path):
    parts = {"train": make([{"image": picture(1, "a.png"), "caption": "x"}, {"image": picture(2), "caption": "y"}])}
    parts["validation"] = make([{"image": picture(3, "a.png"), "caption": "z"}])
    assert found(saved(tmp_path / "d", datasets.DatasetDict(parts))) == {
        "train/a.png": (("x",), "train", png(1)),
        "train/2": (("y",), "train", png(2)),
        "validation/a.png": (("z",), "val", png(3)),
    }


def test_train_alone_is_undivided_and_a_column_beats_the_splits(tmp_path):
    alone = datasets.DatasetDict(train=make([{"image": picture(1), "caption": "x"}]))
    assert found(saved(tmp_path / "d", alone)) == {"1": (("x",), None, png(1))}
    column = datasets.DatasetDict(test=make([{"image": picture(1), "caption": "x", "split": "train"}]))
    assert found(saved(tmp_path / "e", column)) == {"1": (("x",), "train", png(1))}


def test_a_folder_and_a_file_of_parquet(tmp_path):
    (tmp_path / "d" / "data").mkdir(parents=True)
    rows = [{"image": picture(n, f"{n}.png"), "caption": [f"c{n}", "again"]} for n in range(4)]
    make(rows[:3]).to_parquet(str(tmp_path / "d" / "data" / "train-00000-of-00001.parquet"))
    make(rows[3:]).to_parquet(str(tmp_path / "d" / "data" / "test-00000-of-00001.parquet"))
    expected = {f"train/{n}.png": ((f"c{n}", "again"), "train", png(n)) for n in range(3)}
    assert found(tmp_path / "d") == expected | {"test/3.png": (("c3", "again"), "test", png(3))}
    make(rows).to_parquet(str(tmp_path / "one.parquet"))
    assert list(found(tmp_path / "one.parquet")) == ["0.png", "1.png", "2.png", "3.png"]


def test_no_file_of_a_folder_of_parquet_is_passed_over(tmp_path):
    (tmp_path / "d").mkdir()
    for number, name in enumerate(("train", "holdout")):
        rows = [{"image": picture(number, f"{number}.png"), "caption": ["c"]}]
        make(rows).to_parquet(str(tmp_path / "d" / f"{name}.parquet"))
    with pytest.raises(DataError, match="of 2 Parquet files 1 have no split in their names"):
        open_dataset(str(tmp_path / "d"), DatasetOptions())


def test_a_parquet_file_of_plain_bytes_is_told_from_a_manifest(tmp_path):
    pq.write_table(pa.table({"jpg": [png(1), png(2)], "txt": ["a", "b"]}), tmp_path / "laion.parquet")
    options = DatasetOptions(image_column="jpg", caption_column="txt")
    assert found(tmp_path / "laion.parquet", options) == {"1": (("a",), None, png(1)), "2": (("b",), None, png(2))}


def test_rows_of_single_captions_are_grouped_by_equal_bytes_alone(tmp_path):
    rows = [
        {"image": picture(1, "image.png"), "caption": "one"},
        {"image": picture(2, "image.png"), "caption": "other"},
        {"image": picture(1, "image.png"), "caption": "one again"},
        {"image": picture(2, "image.png"), "caption": "other again"},
        {"image": picture(3), "caption": "nameless"},
        {"image": picture(3), "caption": "nameless again"},
    ]
    expected = {
        "image.png": (("one", "one again"), None, png(1)),
        "image.png#2": (("other", "other again"), None, png(2)),
        "5": (("nameless", "nameless again"), None, png(3)),
    }
    assert found(saved(tmp_path / "d", make(rows))) == expected
    numbered = [row | {"id": f"caption {n}"} for n, row in enumerate(rows)]
    assert list(found(saved(tmp_path / "e", make(numbered))).values()) == list(expected.values())


def test_rows_with_lists_are_images_of_their_own(tmp_path):
    rows = [{"image": picture(1, "same.png"), "captions": [f"c{n}"]} for n in range(2)]
    assert found(saved(tmp_path / "d", make(rows))) == {
        "same.png": (("c0",), None, png(1)),
        "same.png#2": (("c1",), None, png(1)),
    }


def test_a_list_in_text_is_a_list_here_too(tmp_path):
    rows = [{"image": picture(1, "same.png"), "caption": f'["c{n}", "again"]'} for n in range(2)]
    assert found(saved(tmp_path / "d", make(rows))) == {
        "same.png": (("c0", "again"), None, png(1)),
        "same.png#2": (("c1", "again"), None, png(1)),
    }


def test_class_labels_become_their_names(tmp_path):
    names = datasets.ClassLabel(names=["cat", "dog"])
    rows = [{"image": picture(n), "caption": "x", "label": n} for n in range(2)]
    items = open_dataset(saved(tmp_path / "d", make(rows, label=names)), DEFAULT).items
    assert [item.label for item in items] == ["cat", "dog"]
    plain = make([{"image": picture(n), "caption": "x", "label": label} for n, label in enumerate([7.0, None])])
    assert [item.label for item in open_dataset(saved(tmp_path / "e", plain), DEFAULT).items] == ["7", ""]
    vectors = make([{"image": picture(1), "caption": "x", "label": [0.5, 0.5]}])
    assert open_dataset(saved(tmp_path / "f", vectors), DEFAULT).items[0].label == ""


def test_paths_in_place_of_bytes_start_from_the_folder_or_the_image_root(tmp_path):
    data = datasets.Dataset.from_list([{"image": "a.png", "caption": "x"}, {"image": "a.png", "caption": "y"}])
    spec = saved(tmp_path / "d", data)
    (item,) = open_dataset(spec, DEFAULT).items
    assert (item.id, item.captions, str(item.source.path)) == ("a.png", ("x", "y"), f"{spec}/a.png")
    (item,) = open_dataset(spec, DatasetOptions(image_root=tmp_path)).items
    assert str(item.source.path) == f"{tmp_path}/a.png"


def test_errors_name_columns_and_rows(tmp_path):
    spec = saved(tmp_path / "d", make([{"image": picture(1), "caption": "x"}]))
    with pytest.raises(
        DataError, match=r"no column 'img' \(columns: 'image', 'caption'\); did you mean --image-column 'image'"
    ):
        open_dataset(spec, DatasetOptions(image_column="img"))
    with pytest.raises(DataError, match=r"not one caption for 1 images in column 'text'"):
        open_dataset(spec, DatasetOptions(caption_column="text"))
    empty = saved(
        tmp_path / "e",
        make([{"image": {"bytes": b"x", "path": None}, "caption": "x"}, {"image": None, "caption": "y"}]),
    )
    dataset = open_dataset(empty, DEFAULT)
    assert [item.source.absent for item in dataset.items] == ["", "the row has no picture"]
    with pytest.raises(OSError, match="the row has no picture"):
        dataset.items[1].source.read()
    assert dataset.notes == (
        "1 rows have no picture in column 'image' (the first: row 2): they count as pictures that cannot be read",
    )
    none = saved(tmp_path / "n", make([{"image": None, "caption": "x"}] * 2))
    with pytest.raises(DataError, match=r"column 'image': not one of 2 rows has a picture"):
        open_dataset(none, DEFAULT)


def test_a_dataset_that_cannot_be_loaded_is_one_message(tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "state.json").write_text("{")
    with pytest.raises(DataError, match="cannot load this Hugging Face dataset") as caught:
        open_dataset(str(folder), DEFAULT)
    assert "\n" not in str(caught.value)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError):
        open_dataset(str(tmp_path / "bad.parquet"), DatasetOptions(format=DatasetFormat.huggingface))


def test_hub_ids_are_passed_on_whole(tmp_path, monkeypatch):
    asked = []
    data = datasets.load_from_disk(saved(tmp_path / "d", make([{"image": picture(1), "caption": "x"}])))

    def load_dataset(name, configuration=None, *, revision=None):
        asked.append((name, configuration, revision))
        return datasets.DatasetDict(train=data)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for spec in ("hf:org/name", "hf:org/name:small", "hf:name@refs/pr/1", "hf:org/na.me:small@v1.0"):
        dataset = open_dataset(spec, DEFAULT)
        assert [item.captions for item in dataset.items] == [("x",)]
    assert asked == [
        ("org/name", None, None),
        ("org/name", "small", None),
        ("name", None, "refs/pr/1"),
        ("org/na.me", "small", "v1.0"),
    ]
    assert open_dataset("hf:org/name", DEFAULT).name == "org-name"


def test_a_hub_id_offline_or_malformed(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"hf:no-such-org/no-such-name: cannot load this Hugging Face dataset: .*"):
        open_dataset("hf:no-such-org/no-such-name", DEFAULT)
    with pytest.raises(UsageError, match="wanted hf:org/name"):
        open_dataset("hf:org/name/more", DEFAULT)
    with pytest.raises(UsageError, match="--format csv does not fit"):
        open_dataset("hf:org/name", DatasetOptions(format=DatasetFormat.csv))
    assert not HUB_ID.fullmatch("hf:../etc/passwd")


def test_without_the_library_the_way_to_get_it_is_said(tmp_path, monkeypatch):
    spec = saved(tmp_path / "d", make([{"image": picture(1), "caption": "x"}]))
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"pip install 'alignvl\[data\]'"):
        open_dataset(spec, DEFAULT)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_slices_nulls_and_wide_offsets_keep_their_places(tmp_path, kind):
    path = tmp_path / "f.arrow"
    cells = pa.array([b"skipped", b"one", None, b"", b"three"], kind).slice(1)
    batch = pa.record_batch({"image": cells})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
        writer.write_batch(pa.record_batch({"image": pa.array([None, None], kind)}))
    pictures = [picture for batch in read_batches(path, "image") for picture in batch.pictures]
    assert [picture.source and picture.source.read() for picture in pictures] == [
        b"one",
        None,
        b"",
        b"three",
        None,
        None,
    ]


def test_a_compressed_or_broken_arrow_file_is_refused(tmp_path):
    path = tmp_path / "f.arrow"
    batch = pa.record_batch({"image": pa.array([os.urandom(8) * 1000])})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    with pytest.raises(DataError, match="a compressed Arrow file"):
        list(read_batches(path, "image"))
    path.write_bytes(b"no arrow at all" * 10)
    with pytest.raises(DataError, match="not a readable Arrow file"):
        list(read_batches(path, "image"))
