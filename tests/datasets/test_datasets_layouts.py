"""Layouts and files as people have them: read, or refused with the cause and a way that is tried here."""

import json
import re
import shlex
import subprocess

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_datasets_folder import found, write
from test_datasets_tars import pack

from alignvl_cli.ablation.study import load_study
from alignvl_cli.artifacts import read_json
from alignvl_cli.datasets.check import DataReport, check_dataset
from alignvl_cli.datasets.dataset import require_pictures
from alignvl_cli.datasets.formats import open_dataset
from alignvl_cli.encoders.decoding import decode_image
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.recipes import read_settings
from alignvl_cli.settings import CheckSettings, DatasetFormat, DatasetOptions, declared

DEFAULT = DatasetOptions()


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def picture(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, 90, 40)).save(path)
    return path


def refused(spec, options=DEFAULT):
    with pytest.raises(DataError) as caught:
        open_dataset(str(spec), options)
    assert len(str(caught.value)) < 700
    return str(caught.value)


NULLS = {
    "jsonl": '{"image": "a.jpg", "caption": "x"}\n{"image": null, "caption": "y"}\n{"caption": "z"}\n',
    "json": '[{"image": "a.jpg", "caption": "x"}, {"image": null, "caption": "y"}, {"caption": "z"}]',
    "csv": "image,caption\na.jpg,x\n,y\n,z\n,\n,\n",
    "tsv": "image\tcaption\na.jpg\tx\n\ty\n\tz\n\t\n\t\n",
}


@pytest.mark.parametrize("kind", [*NULLS, "parquet", "embedded"])
def test_a_row_without_a_picture_costs_that_row(tmp_path, kind):
    """It is counted with the pictures that cannot be read; a row of nothing is left out."""
    data = picture(tmp_path / "a.jpg").read_bytes()
    path = tmp_path / f"m.{kind}"
    if kind in NULLS:
        path.write_text(NULLS[kind])
    else:
        path = tmp_path / "m.parquet"
        cells = pa.array([data, None, None], pa.binary()) if kind == "embedded" else ["a.jpg", None, None]
        pq.write_table(pa.table({"image": cells, "caption": ["x", "y", "z"]}), path)
    dataset = open_dataset(str(path), DEFAULT)
    *_, report = check_dataset(dataset, decode_image, max_pixels=1000, max_rejected=0.5, workers=0)
    assert isinstance(report, DataReport)
    assert (report.images, len(report.unreadable), report.captions.count) == (3, 2, 1)
    assert {bad.reason for bad in report.unreadable} == {"the row has no picture"}
    assert any("2 rows have no picture in column 'image'" in note for note in dataset.notes)
    assert any("2 rows are empty" in note for note in dataset.notes) == (kind in ("csv", "tsv"))


def test_a_split_missing_where_the_picture_is_missing_does_not_end_the_reading(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"image": "a.jpg", "caption": "x", "split": "train"}\n{"image": null, "caption": "y"}\n')
    assert len(open_dataset(str(path), DEFAULT).items) == 2


WRONG_TYPES = {
    "list": pa.array([[1], [2]]),
    "number": pa.array([1, 2]),
    "object": pa.array([{"url": "u"}] * 2),
    "date": pa.array([0, 1], pa.date32()),
    "truth": pa.array([True, False]),
    "list of bytes": pa.array([[b"x"], [b"y"]]),
    "fixed": pa.array([b"ab", b"cd"], pa.binary(2)),
}


@pytest.mark.parametrize("kind", WRONG_TYPES)
def test_an_image_column_of_another_type_is_named_with_its_type(tmp_path, kind):
    table = pa.table({"image": WRONG_TYPES[kind], "caption": ["x", "y"], "picture": [b"1", b"2"]})
    saved = tmp_path / "saved"
    datasets.Dataset(table).save_to_disk(str(saved))
    message = refused(saved)
    assert re.search(r"column 'image' is of type .*one picture a row is wanted there: bytes", message)
    column = re.search(r"--image-column '(\w+)'", message)[1]
    assert len(open_dataset(str(saved), DatasetOptions(image_column=column)).items) == 2


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_a_picture_in_base64_is_named_in_short(tmp_path, suffix):
    """A message, an id or a uri of 145 kB helps nobody."""
    row = {"image": "/9j/4AAQSkZJRg" + "A" * 145_000, "caption": "x"}
    text = {"jsonl": json.dumps(row), "json": json.dumps([row]), "csv": f"image,caption\n{row['image']},x\n"}[suffix]
    (tmp_path / f"m.{suffix}").write_text(text)
    assert "a picture in base64, which is not read" in refused(tmp_path / f"m.{suffix}")


@pytest.mark.parametrize("document", ["karpathy", "coco", "token"])
def test_a_name_longer_than_a_path_is_said_in_short_by_annotations_too(tmp_path, document):
    name = "iVBORw0KGgo" + "A" * 9000
    if document == "token":
        path = tmp_path / "d.token"
        path.write_text(f"{name}#0\tx\n")
    else:
        path = tmp_path / "d.json"
        image = {"id": 1, "file_name": name, "filename": name, "sentences": [{"raw": "x"}]}
        extra = {"annotations": [{"image_id": 1, "caption": "x"}]} if document == "coco" else {}
        path.write_text(json.dumps({"images": [image], **extra}))
    assert "a picture in base64" in refused(path)


def test_numbered_columns_are_captions_of_one_image_and_others_are_named(tmp_path):
    path = tmp_path / "five.csv"
    path.write_text("image,caption_10,caption_2,note,alt text\na.jpg,ten,two,n,alt\nb.jpg,,only,n,\n")
    assert found(str(path)) == {"a.jpg": ("two", "ten"), "b.jpg": ("only",)}
    assert found(str(path), DatasetOptions(caption_column="note, alt*")) == {"a.jpg": ("n", "alt"), "b.jpg": ("n",)}
    assert found(str(path), DatasetOptions(caption_column="caption_?")) == {"a.jpg": ("two",), "b.jpg": ("only",)}
    table = pa.table({"image": [b"1", b"2"], "caption_0": ["a", "b"], "caption_1": ["c", "d"]})
    pq.write_table(table, tmp_path / "five.parquet")
    assert [item.captions for item in open_dataset(str(tmp_path / "five.parquet"), DEFAULT).items] == [
        ("a", "c"),
        ("b", "d"),
    ]
    spec = write(tmp_path / "d", {"a.jpg": "", "a.json": '{"short": "s", "long": ["l", "m"]}'})
    assert found(spec, DatasetOptions(caption_column="short,long")) == {"a.jpg": ("s", "l", "m")}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_ids_of_captions_or_of_another_type_are_left_out_as_the_message_says(tmp_path, suffix):
    path = tmp_path / f"m.{suffix}"
    if suffix == "csv":
        path.write_text("id,image,caption,key\n0,a.jpg,x,k\n1,a.jpg,y,k\n")
    else:
        pq.write_table(
            pa.table({"id": [[0], [1]], "image": ["a.jpg"] * 2, "caption": ["x", "y"], "key": ["k"] * 2}), path
        )
    message = refused(path)
    flag, value = shlex.split(re.search(r"(--id-column \S+)", message)[1])
    assert flag == "--id-column"
    assert found(str(path), DatasetOptions(id_column=value)) == {"a.jpg": ("x", "y")}
    assert found(str(path), DatasetOptions(id_column="key")) == {"k": ("x", "y")}
    assert open_dataset(str(path), DatasetOptions(id_column="")).record["id_column"] == ""


def test_lists_in_json_as_blip_and_llava_have_them(tmp_path):
    blip = [{"image": "a.jpg", "caption": ["x", "y"]}, {"image": "b.jpg", "caption": "z", "image_id": "b_1"}]
    (tmp_path / "blip.json").write_text(json.dumps(blip), encoding="utf-8-sig")
    assert found(str(tmp_path / "blip.json")) == {"a.jpg": ("x", "y"), "b.jpg": ("z",)}
    talk = [{"from": "human", "value": "<image>\nDescribe."}, {"from": "gpt", "value": "a red kite"}]
    llava = [{"id": "7", "image": "a.jpg", "conversations": talk}, {"id": "8", "conversations": talk}]
    (tmp_path / "llava.json").write_text(json.dumps(llava))
    dataset = open_dataset(str(tmp_path / "llava.json"), DEFAULT)
    assert [(item.id, item.captions, bool(item.source.absent)) for item in dataset.items] == [
        ("7", ("a red kite",), False),
        ("8", ("a red kite",), True),
    ]
    assert dataset.record["format"] == "json"
    for text, cause in (("[1]", "entry 1: a int"), ("[{", "not valid JSON"), ("[]", "empty")):
        (tmp_path / "bad.json").write_text(text)
        assert cause in refused(tmp_path / "bad.json")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_folder_with_metadata_is_read(tmp_path, kind):
    rows = [{"file_name": f"{name}.jpg", "text": f"say {name}"} for name in "ab"]
    for name in "abc":
        picture(tmp_path / "d" / f"{name}.jpg")
    path = tmp_path / "d" / f"metadata.{kind}"
    if kind == "csv":
        path.write_text("file_name,text\n" + "".join(f"{row['file_name']},{row['text']}\n" for row in rows))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    dataset = open_dataset(str(tmp_path / "d"), DEFAULT)
    assert {item.id: item.captions for item in dataset.items} == {"a.jpg": ("say a",), "b.jpg": ("say b",)}
    assert dataset.items[0].source.read() == (tmp_path / "d" / "a.jpg").read_bytes()
    assert dataset.name == "d"
    assert any(f"metadata.{kind}, which names 2 of the 3 pictures" in note for note in dataset.notes)


def test_caption_files_are_sidecars_in_folders_and_tars(tmp_path):
    files = {"a.jpg": b"1", "a.caption": "kohya", "b.jpg": b"2", "b.caption": "no", "b.txt": "yes"}
    expected = {"a.jpg": ("kohya",), "b.jpg": ("yes",)}
    assert found(write(tmp_path / "d", files)) == expected
    assert found(pack(tmp_path / "t.tar", files.items())) == expected


def test_tars_in_folders_below_have_the_split_of_their_folder(tmp_path):
    for split, name in (("train", "a"), ("testing", "b")):
        pack(tmp_path / "wds" / split / "0.tar", [(f"{name}.jpg", b"1"), (f"{name}.txt", "x\ny")])
        (tmp_path / "wds" / split / "nshards.txt").write_text("1")
    items = open_dataset(str(tmp_path / "wds"), DEFAULT).items
    assert [(item.id, item.split, item.captions) for item in items] == [
        ("b.jpg", "test", ("x", "y")),
        ("a.jpg", "train", ("x", "y")),
    ]
    pack(tmp_path / "wds" / "other" / "0.tar", [("c.jpg", b"1"), ("c.txt", "x")])
    assert {item.split for item in open_dataset(str(tmp_path / "wds"), DEFAULT).items} == {None}


def test_the_way_to_a_spreadsheet_an_archive_or_a_part_is_said(tmp_path):
    for name, way in {
        "a.xlsx": "save its sheet as CSV",
        "a.ods": "save its sheet as CSV",
        "a.zip": "unpack it",
        "a.csv.gz": "unpack it",
        "a.arrow": "give the folder that holds it",
        "a.h5": "alignvl inspect",
    }.items():
        (tmp_path / name).write_bytes(b"PK")
        with pytest.raises(UsageError, match=way):
            open_dataset(str(tmp_path / name), DEFAULT)


def test_pictures_of_kinds_that_are_not_read_are_counted_and_their_captions_are_no_strays(tmp_path):
    files = {"a.jpg": b"1", "a.txt": "x", "b.HEIC": b"2", "b.txt": "y", "c.jxl": b"3", "c.txt": "z"}
    (note,) = open_dataset(write(tmp_path / "d", files), DEFAULT).notes
    assert note.startswith("pictures of kinds that are not read, and were left out: 1 .heic, 1 .jxl; convert")
    assert "1 .heic" in open_dataset(pack(tmp_path / "t.tar", files.items()), DEFAULT).notes[0]
    assert "not read (heic)" in refused(write(tmp_path / "e", {"a.heic": b"1", "a.txt": "x"}))


NO_CAPTION = {
    "latin-1": ({"a.txt": "caf\xe9".encode("latin-1")}, r"a\.txt: not UTF-8 text at byte 3"),
    "UTF-16": ({"a.txt": "a kite".encode("utf-16")}, r"a\.txt: not UTF-8 text at byte 0 but UTF-16"),
    "other key": ({"a.json": '{"prompt": "a kite"}'}, r"--caption-column.*a\.json: keys 'prompt'"),
    "number": ({"a.json": '{"caption": 3}'}, r"a\.json: 'caption' is neither text nor a list"),
    "broken": ({"a.json": "{"}, r"a\.json: not valid JSON"),
}


@pytest.mark.parametrize("case", NO_CAPTION)
@pytest.mark.parametrize("is_tar", [False, True])
def test_the_cause_of_not_one_caption_is_said(tmp_path, case, is_tar):
    files, cause = NO_CAPTION[case]
    files = {"a.jpg": b"1", **files}
    spec = pack(tmp_path / "t.tar", files.items()) if is_tar else write(tmp_path / "d", files)
    assert re.search(cause, refused(spec))
    if case == "other key":
        assert found(spec, DatasetOptions(caption_column="prompt")) == {"a.jpg": ("a kite",)}


def test_captions_of_other_images_are_the_cause_and_ids_may_be_text_or_numbers(tmp_path):
    images = [{"id": 1, "file_name": "a.jpg"}]
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"images": images, "annotations": [{"image_id": 9, "caption": "x"}]}))
    assert "1 captions are of images that the file does not list" in refused(path)
    path.write_text(json.dumps({"images": images, "annotations": [{"image_id": "1", "caption": "x"}]}))
    assert found(str(path)) == {"a.jpg": ("x",)}


def test_the_way_to_utf_8_that_is_said_is_the_way(tmp_path):
    for encoding in ("utf-16", "cp1252"):
        for name, text in (("m.csv", "image,caption\na.jpg,café\n"), ("m.token", "a.jpg#0\tcafé\n")):
            path = tmp_path / name
            path.write_bytes(text.encode(encoding))
            options = DatasetOptions(format=DatasetFormat.csv if name == "m.csv" else DatasetFormat.flickr_token)
            command = re.search(r"iconv .*", refused(path, options))[0].replace("NEW", str(tmp_path / f"new-{name}"))
            subprocess.run(command, shell=True, check=True)
            assert found(str(tmp_path / f"new-{name}"), options) == {"a.jpg": ("café",)}


PATHS = {
    "url": ("https://example.org/{}", "nothing is fetched"),
    "bucket": ("s3://bucket/{}", "nothing is fetched"),
    "file": ("file:///data/{}", "without file://"),
    "windows": ("img\\{}", "backslashes"),
    "absolute": ("/home/user/img/{}", "img/000.jpg is there: write the paths like that"),
    "suffix": ("img/{:.3}", "000.jpg is there: the name lacks its suffix"),
    "other suffix": ("img/{:.3}.png", "000.jpg is there: the suffix differs"),
    "case": ("img/{:.3}.JPG", "000.jpg is there: upper and lower case differ"),
    "space": ("img/{} ", "ends in white space, and without it the file is there"),
    "nothing near": ("nowhere/{}", "are the paths right?"),
}


@pytest.mark.parametrize("case", PATHS)
def test_paths_that_cannot_be_here_are_told_what_is_wrong_before_any_encoder(tmp_path, case):
    form, cause = PATHS[case]
    picture(tmp_path / "img" / "000.jpg")
    path = tmp_path / "m.jsonl"
    path.write_text(
        "".join(json.dumps({"image": form.format(f"{n:03d}.jpg"), "caption": "x"}) + "\n" for n in range(3))
    )
    dataset = open_dataset(str(path), DEFAULT)
    with pytest.raises(DataError) as early:
        require_pictures(dataset)
    with pytest.raises(DataError) as late:
        list(check_dataset(dataset, decode_image, max_pixels=1000, max_rejected=0, workers=0))
    assert cause in str(early.value)
    assert str(late.value) == str(early.value)


def test_an_image_root_that_is_advised_finds_the_pictures(tmp_path):
    picture(tmp_path / "data" / "img" / "000.jpg")
    for place, name in (("data", "000.jpg"), ("data/img", "img/000.jpg")):
        path = tmp_path / place / "m.csv"
        path.write_text(f"image,caption\n{name},x\n")
        with pytest.raises(DataError) as caught:
            require_pictures(open_dataset(str(path), DEFAULT))
        root = re.search(r"--image-root (\S+)", str(caught.value))[1]
        require_pictures(open_dataset(str(path), DatasetOptions(image_root=root)))
        path.unlink()


def test_one_picture_that_is_there_is_enough(tmp_path):
    picture(tmp_path / "b.jpg")
    (tmp_path / "m.csv").write_text("image,caption\nhttps://x.org/a.jpg,x\na.jpg,x\nb.jpg,x\n")
    require_pictures(open_dataset(str(tmp_path / "m.csv"), DEFAULT))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "karpathy", "token", "folder"])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path, suffix):
    texts = {
        "csv": "image,caption\na.jpg,x\n",
        "tsv": "image\tcaption\na.jpg\tx\n",
        "jsonl": '{"image": "a.jpg", "caption": "x"}\n',
        "json": '[{"image": "a.jpg", "caption": "x"}]',
        "karpathy": '{"images": [{"filename": "a.jpg", "sentences": [{"raw": "x"}]}]}',
        "token": "a.jpg#0\tx\n",
    }
    if suffix == "folder":
        path = tmp_path / "d"
        write(path, {"a.jpg": "", "a.json": '\ufeff{"caption": "x"}'})
    else:
        path = tmp_path / f"m.{'json' if suffix == 'karpathy' else suffix}"
        path.write_text(texts[suffix], encoding="utf-8-sig")
    assert found(str(path)) == {"a.jpg": ("x",)}


def test_a_byte_order_mark_in_settings_and_studies_is_no_part_of_them(tmp_path):
    (tmp_path / "set.toml").write_text("epochs = 3\n", encoding="utf-8-sig")
    assert read_settings(tmp_path / "set.toml") == {"epochs": 3}
    study = 'name = "s"\nreference = "a"\nseeds = "0-2"\n[arms.a]\n[arms.b]\nsmoothing = 0.3\n'
    (tmp_path / "s.toml").write_text(study, encoding="utf-8-sig")
    assert load_study(tmp_path / "s.toml").seeds == (0, 1, 2)
    (tmp_path / "r.json").write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_json(tmp_path / "r.json", "record") == {"a": 1}


def test_a_share_is_a_number_or_in_percent():
    read = declared(CheckSettings)["max_rejected"].said.read
    assert [read(text) for text in ("0.01", "1%", " 100 % ", "0.5", "0")] == [0.01, 0.01, 1.0, 0.5, 0.0]
    for text in ("1.5", "-1%", "nan", "%", "", "1 in 10", "101%"):
        with pytest.raises(UsageError, match=r"--max-rejected: wanted a (share from 0 to 1|finite number)"):
            CheckSettings(max_rejected=read(text))
