"""Data behind URLs are read as the same files here are, and nothing is fetched that no URL of the user's names."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.coloured_tar import write_tar
from support.data_samples import SAMPLES, write_pictures, write_sample
from support.object_server import files_of, serving

from alignvl_cli import remote
from alignvl_cli.datasets.dataset import image_folder, load_each, located, require_pictures
from alignvl_cli.datasets.formats import open_dataset, picture_bytes
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.remote import Cache
from alignvl_cli.settings import DatasetFormat, DatasetOptions

pytest.importorskip("aiohttp")
DEFAULT = DatasetOptions()
LISTED = [sample for sample in SAMPLES if sample.format not in (DatasetFormat.folder, DatasetFormat.huggingface)]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)


@pytest.fixture
def web(tmp_path):
    (tmp_path / "web").mkdir()
    with serving(files_of(tmp_path / "web"), seed=1, share=0.05) as server:
        yield server


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache", 1 << 30)


def contents(dataset):
    """Each picture's bytes, by id."""
    return {item.id: item.source.read() for item in dataset.items}


@pytest.mark.parametrize("sample", LISTED, ids=lambda sample: sample.name)
def test_each_layout_gives_the_same_items_as_from_files(web, cache, tmp_path, sample):
    path = write_sample(sample, tmp_path / "web")
    here, there = open_dataset(str(path), DEFAULT), open_dataset(f"{web.url}/{sample.name}", DEFAULT, cache)
    for one, other in zip(here.items, there.items, strict=True):
        assert (one.id, one.captions, one.split, one.label) == (other.id, other.captions, other.split, other.label)
        assert other.uri == one.uri.replace(str(tmp_path / "web"), web.url)
        assert other.source.read() == one.source.read()
        assert other.source.is_unchanged(other.source.stamp())
        assert picture_bytes(other.uri) is None, "nothing is fetched for a page"
    assert (there.name, there.record["sha256"]) == (here.name, here.record["sha256"])
    require_pictures(there)
    web.asked.clear()
    again = open_dataset(f"{web.url}/{sample.name}", DEFAULT, cache)
    assert contents(again) == contents(here)
    assert not [asked for asked in web.asked if asked == f"GET /{sample.name}"], "the copy is read"


def test_parquet_with_pictures_in_it(web, cache, tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    write_pictures(tmp_path)
    pictures = [(tmp_path / name).read_bytes() for name in ("kite.jpg", "dog.jpg", "snow.jpg")]
    for name, some in (("0", pictures[:2]), ("1", pictures[2:])):
        pq.write_table(pa.table({"image": some, "caption": ["a"] * len(some)}), tmp_path / "web" / f"{name}.parquet")
    one = open_dataset(f"{web.url}/0.parquet", DEFAULT, cache)
    both = open_dataset(f"{web.url}/{{0,1}}.parquet", DEFAULT, cache)
    assert [*contents(one).values()] == pictures[:2]
    assert [*contents(both).values()] == pictures


def test_parquet_files_named_by_splits_are_split_as_here(web, cache, tmp_path):
    pytest.importorskip("datasets")
    write_pictures(tmp_path)
    folder = tmp_path / "web" / "named"
    folder.mkdir()
    for name, picture in (("train", "kite.jpg"), ("validation", "dog.jpg"), ("test", "snow.jpg")):
        table = pa.table({"image": [(tmp_path / picture).read_bytes()], "caption": ["a"]})
        pq.write_table(table, folder / f"{name}-00000-of-00001.parquet")
    here = open_dataset(str(folder), DEFAULT)
    pattern = f"{web.url}/named/{{train,validation,test}}-00000-of-00001.parquet"
    there = open_dataset(pattern, DEFAULT, cache)
    assert [(item.id, item.split) for item in there.items] == [(item.id, item.split) for item in here.items]
    assert [item.split for item in there.items] == ["train", "val", "test"]
    pq.write_table(table, folder / "more.parquet")
    with pytest.raises(DataError, match="of 2 Parquet files 1 have no split in their names"):
        open_dataset(f"{web.url}/named/{{train-00000-of-00001,more}}.parquet", DEFAULT, cache)


@pytest.mark.parametrize("room", [1 << 30, 0], ids=["kept", "read in parts"])
def test_tars_of_a_pattern(web, tmp_path, room):
    for number in range(5):
        write_tar(tmp_path / "web" / f"{number:04d}.tar", pairs=2 + number)
    cache = Cache(tmp_path / "cache", room)
    here = open_dataset(str(tmp_path / "web" / "{0000..0004}.tar"), DEFAULT)
    there = open_dataset(f"{web.url}/{{0000..0004}}.tar?signature=x", DEFAULT, cache)
    assert contents(there) == contents(here)
    assert there.record == here.record
    assert [item.uri for item in there.items[:1]] == [f"{web.url}/0000.tar/000.png"]
    assert len(list((tmp_path / "cache").rglob("*.tar"))) == (5 if room else 0)


def test_a_tar_that_changes_after_it_was_listed(web, tmp_path):
    path = write_tar(tmp_path / "web" / "a.tar")
    listed = open_dataset(f"{web.url}/a.tar", DEFAULT, Cache(tmp_path / "cache", 0))
    stamp = listed.items[0].source.stamp()
    write_tar(path, pairs=7)
    with pytest.raises(DataError, match=rf"^{web.url}/a.tar: changed while it was being read"):
        listed.items[0].source.read()
    again = open_dataset(f"{web.url}/a.tar", DEFAULT, Cache(tmp_path / "cache", 0))
    assert not again.items[0].source.is_unchanged(stamp)


def test_pictures_that_are_missing_and_that_change(web, cache, tmp_path):
    write_sample(LISTED[0], tmp_path / "web")
    items = open_dataset(f"{web.url}/photos.jsonl", DEFAULT, cache).items
    stamp = items[0].source.stamp()
    (tmp_path / "web" / "dog.jpg").unlink()
    Image.new("RGB", (16, 12), "green").save(tmp_path / "web" / "kite.jpg")
    assert not items[0].source.is_unchanged(stamp)
    loaded = list(load_each([item.source for item in items], 1 << 20))
    assert [type(one) for one in loaded] == [tuple, FileNotFoundError, tuple, tuple, tuple]
    assert loaded[0][1] == (tmp_path / "web" / "kite.jpg").read_bytes()
    web.refused["/snow.jpg"] = 403
    with pytest.raises(DataError, match=r"snow\.jpg: not allowed"):
        list(load_each([item.source for item in items], 1 << 20))


def test_addresses_are_fetched_below_a_root_that_the_user_names_and_nowhere_else(web, tmp_path):
    write_pictures(tmp_path / "web" / "in")
    shutil.copy(tmp_path / "web" / "in" / "kite.jpg", tmp_path / "web" / "a b.jpg")
    names = [
        *(f"{web.url}/in/kite.jpg", "in/dog.jpg", f"{web.url}/a%20b.jpg"),
        *("http://127.0.0.1:9/kite.jpg", "../kite.jpg", "/kite.jpg", "s3://bucket/kite.jpg", f"{web.url}x/kite.jpg"),
    ]
    path = tmp_path / "list.csv"
    path.write_text("image,caption\n" + "".join(f"{name},a\n" for name in names))
    items = open_dataset(str(path), DatasetOptions(image_root=f"{web.url}/")).items
    assert [bool(item.source.absent) for item in items] == [False] * 3 + [True] * 5
    assert [item.source.exists() for item in items] == [True] * 3 + [False] * 5
    assert items[3].source.absent.startswith(f"not below {web.url}, and only what is below it is fetched")
    web.asked.clear()
    items = open_dataset(str(path), DEFAULT).items
    assert [item.source.exists() for item in items] == [False] * len(items)
    assert web.asked == []


def test_what_is_wrong_is_told_of_the_url(web, cache, tmp_path):
    (tmp_path / "web" / "odd.csv").write_text("image,caption\na,b,c\n")
    (tmp_path / "web" / "odd.tar").write_bytes(b"no tar" * 1000)
    (tmp_path / "web" / "odd.tar.gz").write_bytes(b"\x1f\x8b" * 1000)
    (tmp_path / "web" / "odd.xyz").write_bytes(b"\x1f\x8b" * 1000)
    for name, said in (
        ("odd.csv", ", line 2: 3 fields under a header of 2"),
        ("odd.tar", ": not a tar, or a damaged one"),
        ("odd.tar.gz", ": compressed with gzip"),
        ("odd.xyz", ": cannot tell the format"),
        ("none.csv", ": cannot read this dataset: no such object"),
    ):
        with pytest.raises((DataError, UsageError)) as problem:
            open_dataset(f"{web.url}/{name}?signature=secret", DEFAULT, cache)
        assert str(problem.value).startswith(f"{web.url}/{name}{said}")
    for spec, options, said in (
        ("/folder/", DEFAULT, "what lies in a folder of a web server cannot be asked"),
        ("/{odd,even}.csv", DEFAULT, "no such object"),
        ("/odd.tar", DatasetOptions(image_root="x"), "--image-root has no effect"),
    ):
        with pytest.raises((DataError, UsageError), match=said):
            open_dataset(web.url + spec, options, cache)


def test_the_record_of_the_data_has_no_secret(web, cache, tmp_path):
    write_sample(LISTED[0], tmp_path / "web")
    url = web.url.replace("//", "//user:hunter2@")
    dataset = open_dataset(f"{url}/photos.jsonl?signature=hunter2", DEFAULT, cache)
    assert len(contents(dataset)) == 5
    assert dataset.record["image_root"] == web.url
    assert "hunter2" not in repr(dataset)


@pytest.mark.parametrize(
    ("root", "name", "wanted"),
    [
        ("https://u:PW@h/d", "https://h/d/a.jpg", "https://u:PW@h/d/a.jpg"),  # the list need not know the password
        ("https://h/d", "https://h/d/a%20b.jpg", "https://h/d/a%20b.jpg"),
        ("https://h/d", "a%20b.jpg", "https://h/d/a%2520b.jpg"),  # a name, not an address
        ("s3://b/d", "s3://b/d/a%20b.jpg", "s3://b/d/a%20b.jpg"),
        ("s3://b/d", "a%20b.jpg", "s3://b/d/a%20b.jpg"),
    ],
)
def test_the_object_that_is_named_is_the_one_that_is_asked_for(root, name, wanted):
    uri, source = located(root, name)
    assert source.remote is not None
    assert source.remote.url == wanted
    assert "PW" not in uri


def test_a_folder_has_no_query():
    with pytest.raises(UsageError, match="https://h/d: a query signs one file") as caught:
        image_folder(Path("x.csv"), "https://h/d?sig=SECRET")
    assert "SECRET" not in str(caught.value)
