import json
import os

import pytest

from alignvl_cli.datasets.folders import IMAGE_SUFFIXES
from alignvl_cli.datasets.formats import open_dataset
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.settings import DatasetFormat, DatasetOptions

DEFAULT = DatasetOptions()


def write(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(root)


def found(spec, options=DEFAULT):
    return {item.id: item.captions for item in open_dataset(spec, options).items}


def test_every_suffix_in_either_case_pairs_with_its_stem(tmp_path):
    files = {}
    for number, suffix in enumerate(sorted(IMAGE_SUFFIXES)):
        files |= {f"{number}.{suffix}": "", f"{number}.txt": f"low {number}"}
        files |= {f"up/{number}.{suffix.upper()}": "", f"up/{number}.TXT": f"high {number}"}
    expected = {f"{number}.{suffix}": (f"low {number}",) for number, suffix in enumerate(sorted(IMAGE_SUFFIXES))}
    expected |= {
        f"up/{number}.{suffix.upper()}": (f"high {number}",) for number, suffix in enumerate(sorted(IMAGE_SUFFIXES))
    }
    assert found(write(tmp_path / "d", files)) == expected


def test_stems_are_paths_up_to_the_last_dot(tmp_path):
    files = {
        "a/x.jpg": "",
        "a/x.txt": "ax",
        "b/x.jpg": "",
        "b/x.txt": "bx",
        "x.v2.png": "",
        "x.v2.json": '{"caption": "v2"}',
    }
    assert found(write(tmp_path / "d", files)) == {"a/x.jpg": ("ax",), "b/x.jpg": ("bx",), "x.v2.png": ("v2",)}


def test_img2dataset_files_are_read_as_they_are(tmp_path):
    about = {
        "caption": "from json",
        "url": "http://x",
        "status": "success",
        "width": 3,
        "exif": "{}",
        "key": "000000000",
    }
    files = {
        "00000/000000000.jpg": "",
        "00000/000000000.txt": "from txt",
        "00000/000000000.json": json.dumps(about),
        "00000/000000001.jpg": "",
        "00000/000000001.json": json.dumps(about | {"caption": None}),
        "00000.parquet": b"PAR1",
        "00000_stats.json": "{}",
    }
    dataset = open_dataset(write(tmp_path / "d", files), DEFAULT)
    assert {item.id: item.captions for item in dataset.items} == {
        "00000/000000000.jpg": ("from txt",),
        "00000/000000001.jpg": (),
    }
    assert dataset.notes == ("1 .txt or .json files have no picture beside them, and were left out",)
    assert dataset.record["format"] == "folder"
    assert dataset.name == "d"
    assert found(str(tmp_path / "d"), DatasetOptions(caption_column="url")) == {
        "00000/000000000.jpg": ("http://x",),
        "00000/000000001.jpg": ("http://x",),
    }


def test_a_txt_holds_one_caption_a_line_and_a_json_may_say_split_and_label(tmp_path):
    spec = write(tmp_path / "d", {"a.jpg": "", "a.txt": "\ufeffone\r\n  \r\ntwo \n", "b.jpg": ""})
    assert found(spec) == {"a.jpg": ("one", "two"), "b.jpg": ()}
    spec = write(
        tmp_path / "e", {"a.jpg": "", "a.json": '{"captions": ["x", "y"], "caption": "z", "split": "dev", "label": 3}'}
    )
    (item,) = open_dataset(spec, DEFAULT).items
    assert (item.captions, item.split, item.label) == (("x", "y"), "val", "3")


def test_pictures_without_a_sidecar_and_sidecars_that_cannot_be_read_are_kept_and_said(tmp_path):
    bad = {"b.json": "{", "c.txt": b"\xff\xfe", "d.json": "[1]", "e.json": '{"caption": 3}'}
    files = {f"{name}.jpg": "" for name in "abcdef"} | {"a.txt": "fine"} | bad
    dataset = open_dataset(write(tmp_path / "d", files), DEFAULT)
    assert [item.captions for item in dataset.items] == [("fine",), (), (), (), (), ()]
    bare, broken = dataset.notes
    assert bare == "1 images have no .txt or .json beside them: kept, without captions"
    assert broken == (
        "4 images have a sidecar that cannot be used "
        "(b.json: not valid JSON; c.txt: not UTF-8 text at byte 0; d.json: no JSON object; ...)"
    )


def test_a_label_that_is_none_leaves_the_captions(tmp_path):
    labels = {"a": "beach", "b": ["beach", "sea"], "c": 3.0, "d": float("nan"), "e": "\ud800"}
    files = {f"{name}.jpg": "" for name in labels}
    files |= {f"{name}.json": json.dumps({"caption": name, "label": label}) for name, label in labels.items()}
    dataset = open_dataset(write(tmp_path / "d", files), DEFAULT)
    assert [item.captions for item in dataset.items] == [("a",), ("b",), ("c",), ("d",), ("e",)]
    assert [item.label for item in dataset.items] == ["beach", "", "3", "", ""]
    assert dataset.notes == (
        "2 images have a label that is not text, and are read without it (b.json: ['beach', 'sea']; e.json: '\\ud800')",
    )


def test_a_split_that_is_none_is_refused_since_another_would_be_drawn(tmp_path):
    files = {"a.jpg": "", "a.json": '{"caption": "x", "split": ["train"]}', "b.jpg": "", "b.txt": "y"}
    with pytest.raises(DataError, match=r"/d/a\.jpg: a\.json has \['train'\] under 'split', not the name of a split"):
        open_dataset(write(tmp_path / "d", files), DEFAULT)


def test_a_sidecar_that_is_a_pipe_or_huge_or_dangling_does_not_hang(tmp_path):
    spec = write(tmp_path / "d", {f"{name}.jpg": "" for name in "abcd"} | {"a.txt": "fine"})
    os.mkfifo(tmp_path / "d" / "b.txt")
    with open(tmp_path / "d" / "c.txt", "wb") as stream:
        stream.truncate(1 << 30)
    os.symlink("/absent", tmp_path / "d" / "d.txt")
    dataset = open_dataset(spec, DEFAULT)
    assert [item.captions for item in dataset.items] == [("fine",), (), (), ()]
    (note,) = dataset.notes
    assert "not a regular file" in note
    assert "more than" in note
    assert "No such file" in note


def test_links_to_folders_and_hidden_files_are_passed_over(tmp_path):
    spec = write(tmp_path / "d", {"a.jpg": "", "a.txt": "x", ".git/b.jpg": "", ".git/b.txt": "y", "._a.jpg": ""})
    os.symlink(tmp_path / "d", tmp_path / "d" / "again")
    assert found(spec) == {"a.jpg": ("x",)}


def test_a_name_pairs_however_its_accents_are_encoded(tmp_path):
    files = {"e\u0301.jpg": "", "\u00e9.txt": "x", "a\u0308/b.jpg": "", "\u00e4/b.json": '{"caption": "y"}'}
    dataset = open_dataset(write(tmp_path / "d", files), DEFAULT)
    assert {item.id: item.captions for item in dataset.items} == {"e\u0301.jpg": ("x",), "a\u0308/b.jpg": ("y",)}
    assert dataset.notes == ()


def test_a_name_that_is_not_utf8_is_storable(tmp_path):
    (tmp_path / "d").mkdir()
    for suffix, content in ((b"jpg", b"picture"), (b"txt", b"x")):
        with open(os.fsencode(tmp_path / "d") + b"/caf\xe9." + suffix, "wb") as stream:
            stream.write(content)
    (item,) = open_dataset(str(tmp_path / "d"), DEFAULT).items
    assert item.id == "caf\ufffd.jpg"
    assert item.uri.encode().endswith(b".jpg")
    assert item.source.read() == b"picture"


def test_the_record_moves_with_what_is_listed(tmp_path):
    spec = write(tmp_path / "d", {"a.jpg": "", "a.txt": "x"})
    first = open_dataset(spec, DEFAULT).record
    assert open_dataset(spec, DEFAULT).record == first
    write(tmp_path / "d", {"a.txt": "y"})
    assert open_dataset(spec, DEFAULT).record != first


BAD = {
    "two pictures of a stem": ({"a.jpg": "", "a.PNG": "", "a.txt": "x"}, "a.PNG and a.jpg share the stem 'a'"),
    "sidecars that differ in case": ({"a.jpg": "", "a.TXT": "", "a.txt": "x"}, "differ in case alone"),
    "no sidecar at all": ({"a.jpg": "", "b.png": ""}, r"2 pictures and not one \.txt or \.json"),
    "none that fits": ({"a.jpg": "", "a.jpg.txt": "x"}, r"not one of 1 pictures has a sidecar.*a\.jpg.*a\.jpg\.txt"),
    "captions elsewhere": ({"img/a.jpg": "", "txt/a.txt": "x"}, "not one of 1 pictures has a sidecar"),
    "blank captions": ({"a.jpg": "", "a.txt": "\n \n"}, "not one caption for 1 images"),
    "no picture": ({"a.txt": "x", "b.md": ""}, r"no picture, no tar and no Parquet file in it \(it has: .md, .txt\)"),
    "nothing": ({}, r"it has: nothing"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_folder_without_pairs_is_an_error_that_says_why(tmp_path, case):
    files, message = BAD[case]
    (tmp_path / "d").mkdir()
    with pytest.raises(DataError, match=message):
        open_dataset(write(tmp_path / "d", files), DEFAULT)


def test_forced_on_what_is_no_folder_or_holds_no_picture(tmp_path):
    write(tmp_path, {"d/a.txt": "x", "file": ""})
    for name, message in (("file", "not a folder"), ("d", "no picture in this folder"), ("absent", "not a folder")):
        with pytest.raises(DataError, match=message):
            open_dataset(str(tmp_path / name), DatasetOptions(format=DatasetFormat.folder))
    with pytest.raises(UsageError, match="--image-root has no effect"):
        open_dataset(str(tmp_path / "d"), DatasetOptions(format=DatasetFormat.folder, image_root=tmp_path))


def test_folders_called_like_splits_are_the_splits(tmp_path):
    files = {
        f"{split}/{name}.{suffix}": name
        for split in ("train", "valid", "test")
        for name in "ab"
        for suffix in ("png", "txt")
    }
    dataset = open_dataset(write(tmp_path / "d", files), DEFAULT)
    assert {item.id: item.split for item in dataset.items} == {
        name: {"valid": "val"}.get(name.split("/")[0], name.split("/")[0]) for name in files if name.endswith("png")
    }
    assert "the folders are the splits: test, train, val" in dataset.notes
    listed = {name: text for name, text in files.items() if name.endswith("png")}
    rows = "file_name,text\n" + "".join(f"{name},x\n" for name in listed)
    by_list = open_dataset(write(tmp_path / "m", listed | {"metadata.csv": rows}), DEFAULT)
    assert {item.split for item in by_list.items} == {"train", "val", "test"}


@pytest.mark.parametrize("folders", [("train",), ("train", "cats"), ("dogs", "cats")])
def test_other_folders_are_no_splits(tmp_path, folders):
    files = {f"{folder}/a.{suffix}": folder for folder in folders for suffix in ("png", "txt")}
    assert {item.split for item in open_dataset(write(tmp_path / "d", files), DEFAULT).items} == {None}


def test_metadata_beside_sidecars_is_not_passed_over_in_silence(tmp_path):
    files = {"a.png": "", "b.png": "", "a.txt": "x", "metadata.csv": "file_name,text\na.png,y\nb.png,z\n"}
    dataset = open_dataset(write(tmp_path / "d", files), DEFAULT)
    assert "metadata.csv is not read, since pictures have sidecars of their own; remove one kind" in dataset.notes
