import gzip
import io
import json
import tarfile

import pytest
import webdataset
from webdataset import tariterators

from alignvl_cli.datasets.demo import open_emoji
from alignvl_cli.datasets.formats import open_dataset, picture_bytes
from alignvl_cli.datasets.webdataset import expanded
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.settings import DatasetFormat, DatasetOptions

DEFAULT = DatasetOptions()


def pack(path, members, form=tarfile.PAX_FORMAT):
    """`members`: (name, bytes or text), or a TarInfo as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            name, content = member
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return str(path)


def found(spec, options=DEFAULT):
    return {item.id: (item.captions, item.source.read()) for item in open_dataset(str(spec), options).items}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_members_pair_by_key_wherever_they_stand(tmp_path, form):
    long = "d" * 60 + "/" + "e" * 60 + "/x"
    members = [
        ("./b.txt", "cb\nagain"),
        (f"{long}.png", b"pixels"),
        ("a.JPG", b"AA"),
        ("./b.jpeg", b"BBB"),
        (f"{long}.json", '{"caption": "long"}'),
        ("a.txt", "ca"),
        ("a.cls", "3"),
    ]
    spec = pack(tmp_path / "t.tar", members, form)
    assert found(spec) == {
        "b.jpeg": (("cb", "again"), b"BBB"),
        f"{long}.png": (("long",), b"pixels"),
        "a.JPG": (("ca",), b"AA"),
    }
    dataset = open_dataset(spec, DEFAULT)
    assert (dataset.notes, dataset.record["format"], dataset.name) == ((), "webdataset", "t.tar")
    assert dataset.items[2].uri == f"{spec}/a.JPG"


def test_what_webdataset_writes_is_read_as_webdataset_reads_it(tmp_path):
    path = tmp_path / "w.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for number in range(30):
            writer.write({"__key__": f"k{number:03d}", "jpg": bytes([number]) * number, "txt": f"caption {number}"})
    with open(path, "rb") as stream:
        members = tariterators.tar_file_expander([{"url": str(path), "stream": stream}])
        theirs = {
            f"{sample['__key__']}.jpg": ((sample["txt"].decode(),), sample["jpg"])
            for sample in tariterators.group_by_keys(members)
        }
    assert found(path) == theirs
    assert len(theirs) == 30


def test_the_demo_is_a_webdataset():
    demo = open_emoji().items
    tar = open_dataset(str(demo[0].source.path), DEFAULT).items
    assert [(item.captions, item.split, item.label, item.source) for item in tar] == [
        (item.captions, item.split, item.label, item.source) for item in demo
    ]


def test_dots_in_names_pair_alike_and_one_plain_picture_beats_others(tmp_path):
    spec = pack(
        tmp_path / "t.tar",
        [("a.photo.jpg", b"1"), ("a.photo.txt", "x"), ("b.mask.png", b"2"), ("b.jpg", b"3"), ("b.txt", "y")],
    )
    assert found(spec) == {"a.photo.jpg": (("x",), b"1"), "b.jpg": (("y",), b"3")}


def test_several_tars_by_pattern_list_or_folder(tmp_path):
    for number in range(3):
        pack(tmp_path / f"s-{number:02d}.tar", [(f"{number}.jpg", bytes([number])), (f"{number}.txt", f"c{number}")])
    everything = {f"{number}.jpg": ((f"c{number}",), bytes([number])) for number in range(3)}
    for spec in ("s-{00..02}.tar", "s-0{0,1}.tar::" + str(tmp_path / "s-02.tar")):
        assert found(tmp_path / spec) == everything
    assert found(tmp_path) == everything
    assert open_dataset(str(tmp_path / "s-{00..02}.tar"), DEFAULT).name == "s-00..02.tar"
    with pytest.raises(DataError, match=r"s-03\.tar: cannot read this tar: No such file"):
        found(tmp_path / "s-{00..03}.tar")


def test_a_name_in_several_tars_gives_ids_that_begin_with_the_tar(tmp_path):
    for number in range(2):
        pack(
            tmp_path / f"s{number}.tar",
            [("same.jpg", bytes([number])), ("same.txt", f"c{number}"), (f"{number}.jpg", b"")],
        )
    assert [item.id for item in open_dataset(str(tmp_path / "s{0..1}.tar"), DEFAULT).items] == [
        "s0/same.jpg",
        "s0/0.jpg",
        "s1/same.jpg",
        "s1/1.jpg",
    ]


def test_tars_of_one_name_are_told_apart_by_as_much_of_their_paths_as_it_takes(tmp_path):
    for folder in ("a/train", "a/val", "b/val"):
        pack(tmp_path / folder / "0.tar", [("same.jpg", folder.encode()), ("same.txt", folder)])
    spec = f"{tmp_path}/a/train/0.tar::{tmp_path}/a/val/0.tar"
    assert found(spec) == {f"{name}/0/same.jpg": ((f"a/{name}",), f"a/{name}".encode()) for name in ("train", "val")}
    assert list(found(f"{spec}::{tmp_path}/b/val/0.tar")) == [
        "a/train/0/same.jpg",
        "a/val/0/same.jpg",
        "b/val/0/same.jpg",
    ]
    pack(tmp_path / "b" / "val" / "0.tar", [("other.jpg", b""), ("other.txt", "x")])
    assert list(found(f"{tmp_path}/a/val/0.tar::{tmp_path}/b/val/0.tar")) == ["same.jpg", "other.jpg"]
    with pytest.raises(DataError, match="duplicate id"):
        found(f"{tmp_path}/a/val/0.tar::{tmp_path}/a/val/0.tar")


def test_pictures_are_found_again_from_another_folder(tmp_path, monkeypatch):
    pack(tmp_path / "d" / "t.tar", GOOD)
    monkeypatch.chdir(tmp_path / "d")
    uris = [open_dataset(spec, DEFAULT).items[0].uri for spec in ("t.tar", "../d/t.tar", ".")]
    monkeypatch.chdir(tmp_path)
    assert uris == [f"{tmp_path}/d/t.tar/a.jpg"] * 3
    assert picture_bytes(uris[0]) == b"A" * 2000


def test_hidden_members_are_passed_over_as_in_a_folder(tmp_path):
    """The tar of macOS puts a file of attributes beside each file."""
    extras = [("._a.jpg", b"\0\5\x16\7"), ("._a.txt", b"\0\5\x16\7"), ("__MACOSX/d/._b.jpg", b""), (".git/c.jpg", b"")]
    spec = pack(tmp_path / "t.tar", [*extras, ("./a.jpg", b"A"), ("./a.txt", "x")])
    assert found(spec) == {"a.jpg": (("x",), b"A")}
    assert open_dataset(spec, DEFAULT).notes == ()


def test_a_name_pairs_however_its_accents_are_encoded(tmp_path):
    spec = pack(tmp_path / "t.tar", [("e\u0301.jpg", b"A"), ("\u00e9.txt", "x")])
    assert found(spec) == {"e\u0301.jpg": (("x",), b"A")}


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_hostile_members_are_left_out_and_nothing_is_written(tmp_path):
    box = tmp_path / "box"
    spec = pack(
        box / "t.tar",
        [
            special("link.jpg", tarfile.SYMTYPE, "/etc/passwd"),
            special("hard.jpg", tarfile.LNKTYPE, "a.jpg"),
            special("dev.jpg", tarfile.CHRTYPE),
            special("pipe.jpg", tarfile.FIFOTYPE),
            special("folder.jpg", tarfile.DIRTYPE),
            ("../out.jpg", b"x"),
            ("/abs.jpg", b"x"),
            ("in/../../out2.jpg", b"x"),
            ("a.jpg", b"AA"),
            ("a.txt", "fine"),
            ("only.txt", "no picture"),
        ],
    )
    assert found(spec) == {"a.jpg": (("fine",), b"AA")}
    assert open_dataset(spec, DEFAULT).notes == (
        "7 members were left out: links, devices, sparse files or names that lead out of the tar",
        "1 samples have no picture, and were left out",
    )
    assert [entry.name for entry in tmp_path.rglob("*")] == ["box", "t.tar"]


def test_a_negative_size_does_not_lead_round_in_circles(tmp_path):
    path = tmp_path / "t.tar"
    pack(path, [("a.jpg", b"x" * 600), ("b.jpg", b"y")])
    data = bytearray(path.read_bytes())
    second = 512 + 1024
    data[second + 124 : second + 136] = b"\xff" * 10 + b"\xfa\x00"  # base 256: -1536, back to the first member
    data[second + 148 : second + 156] = b" " * 8
    data[second + 148 : second + 156] = b"%06o\0 " % sum(data[second : second + 512])
    path.write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        found(path)


GOOD = [("a.jpg", b"A" * 2000), ("a.txt", "x"), ("b.jpg", b"B" * 2000), ("b.txt", "y")]


def test_a_tar_cut_short_is_an_error_or_at_a_border_a_note(tmp_path):
    path = tmp_path / "t.tar"
    pack(path, GOOD)
    data = path.read_bytes()
    second = 512 + 2048 + 1024
    for size in (100, 512, 700, 512 + 2048 + 100, second + 300, second + 600):
        path.write_bytes(data[:size])
        with pytest.raises(DataError, match=r"t\.tar"):
            found(path)
    path.write_bytes(data[:second])
    assert list(found(path)) == ["a.jpg"]
    (note,) = open_dataset(str(path), DEFAULT).notes
    assert note.startswith("1 tars lack the end mark and may be cut short")
    path.write_bytes(data[:second] + b"garbage" * 100 + data[second + 700 :])
    with pytest.raises(DataError, match=f"damaged at byte {second}"):
        found(path)


@pytest.mark.parametrize("name", ["t.tar", "t.tar.gz", "t.tgz"])
def test_a_compressed_tar_is_refused_with_the_way_out(tmp_path, name):
    pack(tmp_path / "plain.tar", GOOD)
    path = tmp_path / name
    path.write_bytes(gzip.compress((tmp_path / "plain.tar").read_bytes()))
    with pytest.raises(DataError, match=r"compressed with gzip.*unpack it to a plain \.tar"):
        open_dataset(str(path), DEFAULT)


BAD = {
    "two pictures": ([("a.jpg", b""), ("a.png", b""), ("a.txt", "x")], r"a\.jpg and a\.png are pictures of one sample"),
    "dotted names": ([("i.1.jpg", b""), ("i.2.jpg", b"")], r"i\.1\.jpg and i\.2\.jpg are pictures of one sample"),
    "a name twice": ([*GOOD, ("a.jpg", b"")], r"two members are called 'a\.jpg'"),
    "no picture": ([("a.txt", "x")], "names no image at all"),
    "no caption": ([("a.jpg", b"x")], "not one caption for 1 images"),
    "nothing": ([], "names no image at all"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tars_are_one_clear_message(tmp_path, case):
    members, message = BAD[case]
    with pytest.raises(DataError, match=message):
        found(pack(tmp_path / "t.tar", members))


def test_what_is_no_tar(tmp_path):
    for name, content in (("text.tar", b"image,caption\n" * 100), ("empty.tar", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="not a tar, or a damaged one"):
            found(tmp_path / name)
    (tmp_path / "d").mkdir()
    with pytest.raises(DataError, match=r"no \.tar in this folder"):
        found(tmp_path / "d", DatasetOptions(format=DatasetFormat.webdataset))


def test_json_gives_split_and_label(tmp_path):
    about = json.dumps({"captions": ["x", "\ud800"], "split": "restval", "label": "l"})
    (item,) = open_dataset(pack(tmp_path / "t.tar", [("a.jpg", b""), ("a.json", about)]), DEFAULT).items
    assert (item.captions, item.split, item.label) == (("x", "\ufffd"), "train", "l")


def test_a_path_with_braces_that_is_there_is_no_pattern(tmp_path):
    spec = pack(tmp_path / "{run1}" / "a::b.tar", GOOD)
    assert list(found(spec)) == ["a.jpg", "b.jpg"]
    (tmp_path / "{run1}" / "m.jsonl").write_text('{"image": "a.jpg", "caption": "x"}\n')
    assert [item.id for item in open_dataset(str(tmp_path / "{run1}" / "m.jsonl"), DEFAULT).items] == ["a.jpg"]


def test_patterns_expand_as_in_a_shell():
    assert list(expanded("s-{0008..0011}.tar")) == ["s-0008.tar", "s-0009.tar", "s-0010.tar", "s-0011.tar"]
    assert list(expanded("{a,b}{1..3}")) == ["a1", "a2", "a3", "b1", "b2", "b3"]
    assert list(expanded("{9..10}")) == ["9", "10"]
    assert list(expanded("{a,b{1..2}}.tar")) == ["a.tar", "b1.tar", "b2.tar"]
    assert list(expanded("plain\\.tar")) == ["plain\\.tar"]


@pytest.mark.parametrize(
    "pattern",
    [
        "{1..2.tar",
        "a}.tar",
        "}a{.tar",
        "{{1..2}.tar",
        "{}.tar",
        "{5..1}.tar",
        "{a}.tar",
        "{0..99999999}.tar",
        "{1..2}.jpg",
    ],
)
def test_a_pattern_that_is_none_is_refused(tmp_path, pattern):
    with pytest.raises(UsageError):
        open_dataset(str(tmp_path / pattern), DEFAULT)


def test_a_pattern_of_too_many_names_is_refused_before_the_memory_is_full():
    with pytest.raises(UsageError, match="more than 1000000 names"):
        sum(1 for _ in expanded("{0..9999}-{0..9999}.tar"))
