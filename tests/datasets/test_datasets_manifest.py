import csv
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignvl_cli.artifacts import file_sha256
from alignvl_cli.datasets.formats import open_dataset
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.settings import DatasetFormat, DatasetOptions

DEFAULT = DatasetOptions()


def write(path, text):
    path.write_text(text, encoding="utf-8", newline="")
    return str(path)


def write_jsonl(path, rows):
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_table(path, rows, delimiter=","):
    with open(path, "w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        table.writeheader()
        table.writerows(rows)
    return str(path)


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def found(spec, options=DEFAULT):
    return {item.id: item.captions for item in open_dataset(spec, options).items}


WHOLE = [
    {"image": "a.jpg", "captions": ["a red kite", 'said "no", then, left'], "split": "train", "label": "bird"},
    {"image": "sub/b.jpg", "captions": ["two\nlines"], "split": "dev", "label": ""},
    {"image": "/else/c d.jpg", "captions": ["ünï – 🦅", "second", "third"], "split": "restval", "label": "7"},
]
ROW_WISE = [
    {"image": row["image"], "caption": caption, "split": row["split"], "label": row["label"]}
    for row in WHOLE
    for caption in row["captions"]
]


def test_all_formats_list_or_row_wise_give_equal_items(tmp_path):
    specs = [
        write_jsonl(tmp_path / "whole.jsonl", WHOLE),
        write_jsonl(tmp_path / "rows.jsonl", ROW_WISE),
        write_table(tmp_path / "rows.csv", ROW_WISE),
        write_table(tmp_path / "rows.tsv", ROW_WISE, "\t"),
        write_table(tmp_path / "lists.csv", [row | {"captions": json.dumps(row["captions"])} for row in WHOLE]),
        write_parquet(tmp_path / "whole.parquet", WHOLE),
        write_parquet(tmp_path / "ROWS.PARQUET", ROW_WISE),
    ]
    datasets = [open_dataset(spec, DEFAULT) for spec in specs]
    first = datasets[0].items
    assert [(item.id, item.split, item.label, item.captions) for item in first] == [
        ("a.jpg", "train", "bird", ("a red kite", 'said "no", then, left')),
        ("sub/b.jpg", "val", "", ("two\nlines",)),
        ("/else/c d.jpg", "train", "7", ("ünï – 🦅", "second", "third")),
    ]
    for dataset in datasets[1:]:
        assert dataset.items == first


def test_paths_start_from_the_manifest_or_the_image_root(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "pictures").mkdir()
    write_jsonl(tmp_path / "data" / "m.jsonl", WHOLE)
    monkeypatch.chdir(tmp_path)
    paths = [item.source.path for item in open_dataset("data/m.jsonl", DEFAULT).items]
    assert [str(path) for path in paths] == [f"{tmp_path}/data/a.jpg", f"{tmp_path}/data/sub/b.jpg", "/else/c d.jpg"]
    moved = open_dataset("data/m.jsonl", DatasetOptions(image_root=tmp_path / "pictures")).items
    assert str(moved[0].source.path) == moved[0].uri == f"{tmp_path}/pictures/a.jpg"
    assert moved[0].id == "a.jpg"
    with pytest.raises(DataError, match="no such folder"):
        open_dataset("data/m.jsonl", DatasetOptions(image_root=tmp_path / "absent"))


def test_the_image_file_is_read_through_its_source_and_need_not_exist(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"picture")
    items = open_dataset(write_jsonl(tmp_path / "m.jsonl", WHOLE), DEFAULT).items
    assert items[0].source.read() == b"picture"
    with pytest.raises(FileNotFoundError):
        items[1].source.read()


def test_the_record_identifies_data_and_options(tmp_path):
    spec = write_jsonl(tmp_path / "Vögel 2.jsonl", WHOLE)
    dataset = open_dataset(spec, DEFAULT)
    assert dataset.name == "vogel-2.jsonl"
    assert dataset.record == {
        "format": "jsonl",
        "sha256": file_sha256(tmp_path / "Vögel 2.jsonl"),
        "image_root": str(tmp_path),
        "image_column": "image",
        "caption_column": None,
    }
    json.dumps(dataset.record)
    assert open_dataset(spec, DatasetOptions(caption_column="captions")).record != dataset.record


def test_names_of_columns_can_be_given(tmp_path):
    rows = [{"file": "a.jpg", "text": "one", "caption": "wrong"}, {"file": "a.jpg", "text": "two", "caption": "wrong"}]
    for spec in (write_table(tmp_path / "m.csv", rows), write_parquet(tmp_path / "m.parquet", rows)):
        assert found(spec, DatasetOptions(image_column="file", caption_column="text")) == {"a.jpg": ("one", "two")}


def test_ids_lose_nothing_and_numbers_are_spelled_alike(tmp_path):
    rows = [{"id": " 007 ", "image": "a.jpg", "caption": "x"}, {"id": 7, "image": "b.jpg", "caption": "y"}]
    expected = {" 007 ": ("x",), "7": ("y",)}
    assert found(write_jsonl(tmp_path / "m.jsonl", rows)) == expected
    assert found(write_table(tmp_path / "m.csv", rows)) == expected


def test_a_list_in_any_column_of_captions_is_a_list(tmp_path):
    """Flickr30k on the Hugging Face Hub has a CSV like the first."""
    rows = [{"raw": json.dumps(["red", "a kite"]), "sentids": "[0, 1]", "split": "train", "filename": "a.jpg"}]
    options = DatasetOptions(image_column="filename", caption_column="raw")
    assert found(write_table(tmp_path / "raw.csv", rows), options) == {"a.jpg": ("red", "a kite")}
    rows = [{"image": "a.jpg", "caption": ' ["red", "a kite"]'}, {"image": "b.jpg", "caption": "[]"}]
    expected = {"a.jpg": ("red", "a kite"), "b.jpg": ()}
    assert found(write_table(tmp_path / "m.tsv", rows, "\t")) == expected
    assert found(write_parquet(tmp_path / "m.parquet", rows)) == expected
    with pytest.raises(DataError, match=r"line 3: image 'a\.jpg' stands in line 2 already.*a list of captions"):
        found(write(tmp_path / "m.csv", 'image,caption\na.jpg,"[""x"", ""y""]"\na.jpg,z\n'))


@pytest.mark.parametrize("column", ["caption", "captions"])
@pytest.mark.parametrize("text", ["[laughs] a man", "[", "[1) a man", "['tis] odd", "a man [laughs]"])
def test_a_text_that_begins_like_a_list_is_a_caption(tmp_path, column, text):
    rows = [{"image": "a.jpg", column: text}]
    assert found(write_table(tmp_path / "m.csv", rows)) == {"a.jpg": (text,)}


LISTS_OF_PROGRAMS = {
    "Python": "['a red kite', 'a kite']",
    "numpy": "['a red kite' 'a kite']",
    "numpy, over two lines": "['a red kite'\n 'a kite']",
    "cut": '["a red kite" "a kite"]',
}


@pytest.mark.parametrize("case", LISTS_OF_PROGRAMS)
def test_a_list_of_texts_in_other_notation_than_json_is_refused(tmp_path, case):
    rows = [{"image": "a.jpg", "raw": LISTS_OF_PROGRAMS[case]}]
    with pytest.raises(DataError, match=r"column 'raw' holds a list that is not JSON: .*json\.dumps"):
        found(write_table(tmp_path / "m.csv", rows), DatasetOptions(caption_column="raw"))


def test_a_list_of_numbers_is_a_caption_where_texts_are_wanted(tmp_path):
    """A footnote's mark, a year."""
    rows = [{"image": "a.jpg", "caption": "[1]"}, {"image": "b.jpg", "caption": "[1923, 1924]"}]
    expected = {"a.jpg": ("[1]",), "b.jpg": ("[1923, 1924]",)}
    assert found(write_table(tmp_path / "m.csv", rows)) == expected
    assert found(write_parquet(tmp_path / "m.parquet", rows)) == expected


def test_a_list_in_text_with_something_else_than_texts_is_refused(tmp_path):
    for column, text in (("caption", '["x", 1]'), ("captions", "[1]")):
        with pytest.raises(DataError, match=rf"line 2: a caption in column '{column}' is 1, not text"):
            found(write_table(tmp_path / "m.csv", [{"image": "a.jpg", column: text}]))


def test_a_null_among_captions_is_none_of_them(tmp_path):
    rows = [{"image": "a.jpg", "captions": [None, "x", None]}, {"image": "b.jpg", "captions": ["y"]}]
    assert found(write_jsonl(tmp_path / "m.jsonl", rows)) == {"a.jpg": ("x",), "b.jpg": ("y",)}
    assert found(write_parquet(tmp_path / "m.parquet", rows)) == {"a.jpg": ("x",), "b.jpg": ("y",)}


@pytest.mark.parametrize("column", ["Split", "SPLIT"])
def test_splits_under_another_spelling_are_not_passed_over(tmp_path, column):
    rows = [{"image": "a.jpg", "caption": "x", column: "train"}, {"image": "b.jpg", "caption": "y", column: "test"}]
    for path in (write_table(tmp_path / "m.csv", rows), write_jsonl(tmp_path / "m.jsonl", rows)):
        with pytest.raises(DataError, match=f"column '{column}': splits are read from 'split'; rename it"):
            found(path)


def test_an_empty_list_of_captions_leaves_the_word_to_the_single_one(tmp_path):
    rows = [{"image": "a.jpg", "captions": [], "caption": "x"}, {"image": "a.jpg", "captions": [], "caption": "y"}]
    assert found(write_jsonl(tmp_path / "m.jsonl", rows)) == {"a.jpg": ("x", "y")}
    assert found(write_table(tmp_path / "m.csv", rows)) == {"a.jpg": ("x", "y")}


def test_labels_and_ids_that_became_fractions_are_spelled_as_whole_numbers(tmp_path):
    """A column of whole numbers with one missing is a column of fractions in pandas."""
    path = tmp_path / "m.parquet"
    numbers = pa.array([3.0, float("nan"), None, 0.5])
    images = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    pq.write_table(pa.table({"image": images, "caption": ["x"] * 4, "label": numbers, "id": numbers}), path)
    items = open_dataset(str(path), DEFAULT).items
    assert [item.label for item in items] == ["3", "", "", "0.5"]
    assert [item.id for item in items] == ["3", "b.jpg", "c.jpg", "0.5"]


def test_an_image_without_captions_is_kept(tmp_path):
    rows = [
        {"image": "a.jpg", "captions": ["x"]},
        {"image": "b.jpg", "captions": []},
        {"image": "c.jpg", "captions": None},
        {"image": "d.jpg"},
    ]
    expected = {"a.jpg": ("x",), "b.jpg": (), "c.jpg": (), "d.jpg": ()}
    assert found(write_jsonl(tmp_path / "m.jsonl", rows)) == expected
    assert found(write(tmp_path / "m.csv", "image,caption\na.jpg,x\nb.jpg,\nc.jpg,\nd.jpg,\n")) == expected


def test_rows_of_one_image_need_not_be_neighbours_and_may_state_split_and_label_once(tmp_path):
    spec = write(tmp_path / "m.csv", "image,caption,split,label\na,1,,\nb,2,val,\na,3,train,x\na,4,,\n")
    first, second = open_dataset(spec, DEFAULT).items
    assert (first.captions, first.split, first.label) == (("1", "3", "4"), "train", "x")
    assert (second.captions, second.split, second.label) == (("2",), "val", "")


def test_a_list_row_may_share_its_image_with_another_id(tmp_path):
    rows = [{"id": name, "image": "same.jpg", "captions": [name]} for name in "xy"]
    assert found(write_jsonl(tmp_path / "m.jsonl", rows)) == {"x": ("x",), "y": ("y",)}


def test_captions_lose_nul_and_lone_surrogates_and_blank_ones_are_dropped(tmp_path):
    rows = [{"image": "a.jpg", "captions": ["a\0b", "\ud83d", "fine \U0001f600", "  ", "\t\n", ""]}]
    dataset = open_dataset(write_jsonl(tmp_path / "m.jsonl", rows), DEFAULT)
    assert dataset.items[0].captions == ("a\ufffdb", "\ufffd", "fine \U0001f600")
    assert dataset.cleaned_captions == 2
    assert dataset.blank_captions == 2


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_byte_order_mark_crlf_and_blank_lines(tmp_path, suffix):
    text = {
        "jsonl": '{"image": "a.jpg", "caption": "x"}\r\n\r\n{"image": "b.jpg", "caption": "y"}\r\n\r\n',
        "csv": "image,caption\r\na.jpg,x\r\n\r\nb.jpg,y\r\n\r\n",
    }[suffix]
    assert found(write(tmp_path / f"m.{suffix}", "\ufeff" + text)) == {"a.jpg": ("x",), "b.jpg": ("y",)}


def test_a_quote_in_a_tsv_is_a_quote(tmp_path):
    """Few programs that write tabs quote anything; those that do double the quotes inside."""
    captions = ['"big cat', "a bird", 'the end"', '"quoted" word', '"said ""no"""', '"']
    lines = [f"{number}\t{caption}" for number, caption in enumerate(captions, start=1)]
    assert found(write(tmp_path / "m.tsv", "\n".join(["image\tcaption", *lines, "", ""]))) == {
        "1": ('"big cat',),
        "2": ("a bird",),
        "3": ('the end"',),
        "4": ('"quoted" word',),
        "5": ('said "no"',),
        "6": ('"',),
    }


def test_a_tsv_whose_lines_do_not_fit_without_quotes_is_read_with_them(tmp_path):
    rows = [{"image": "a.jpg", "caption": "two\nlines"}, {"image": "b.jpg", "caption": 'a tab\tand a "quote"'}]
    expected = {row["image"]: (row["caption"],) for row in rows}
    assert found(write_table(tmp_path / "m.tsv", rows, "\t")) == expected
    spec = write(tmp_path / "m.tsv", 'image\tcaption\n1\t"big" cat\n2\ta bird\tblue\n')
    with pytest.raises(DataError, match=r"line 2: not valid TSV.*; without quotes, line 3 is the first"):
        found(spec)


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_long_field_is_read(tmp_path, suffix):
    long = "a red kite " * 20_000
    rows = [{"image": "a.jpg", "caption": "x", "page": long}, {"image": "b.jpg", "caption": long, "page": ""}]
    spec = write_table(tmp_path / f"m.{suffix}", rows, "," if suffix == "csv" else "\t")
    assert found(spec) == {"a.jpg": ("x",), "b.jpg": (long,)}


def test_parquet_reads_only_the_columns_it_needs(tmp_path):
    rows = [{"image": "a.jpg", "caption": "x", "pixels": b"\xff" * 10, "when": 3.5}]
    assert found(write_parquet(tmp_path / "m.parquet", rows)) == {"a.jpg": ("x",)}


texts = st.text(max_size=12).filter(lambda text: not text.lstrip().startswith("["))  # `[]` is a list in a table
names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=8)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(names, st.lists(texts, min_size=1, max_size=3), min_size=1, max_size=4))
def test_any_text_comes_through_any_format(tmp_path, captions_of):
    whole = [{"image": image, "captions": captions} for image, captions in captions_of.items()]
    rows = [{"image": row["image"], "caption": caption} for row in whole for caption in row["captions"]]
    kept = {
        image: tuple(caption.replace("\0", "\ufffd") for caption in captions if caption.strip())
        for image, captions in captions_of.items()
    }
    specs = [write_jsonl(tmp_path / "m.jsonl", whole), write_parquet(tmp_path / "m.parquet", rows)]
    specs += [write_table(tmp_path / "m.csv", rows)]
    if not any("\t" in text and {"\r", "\n"} & set(text) for row in rows for text in row.values()):
        specs += [write_table(tmp_path / "m.tsv", rows, "\t")]  # lines of such a text may look like rows
    for spec in specs:
        if any(kept.values()):
            assert found(spec) == kept
        else:
            with pytest.raises(DataError, match="not one caption"):
                found(spec)


GOOD = '{"image": "a.jpg", "caption": "x"}\n'
BAD_JSONL = {
    "duplicate id, other image": (
        '{"id": "k", "image": "a", "caption": "x"}\n{"id": "z", "image": "z", "caption": "x"}\n'
        '{"id": "k", "image": "b", "caption": "x"}\n',
        r"line 3: duplicate id 'k', already used in line 1",
    ),
    "an image listed whole twice": (
        '{"image": "a", "captions": ["x"]}\n' * 2,
        r"line 2: image 'a' stands in line 1 already.*one row with all its captions and one split",
    ),
    "two ids for the rows of one image": (
        '{"id": 1, "image": "a", "caption": "x"}\n{"id": 2, "image": "a", "caption": "y"}\n',
        r"line 2: image 'a' has id '2' here and '1' before",
    ),
    "conflicting splits": (
        '{"image": "a", "caption": "x", "split": "train"}\n{"image": "a", "caption": "y", "split": "dev"}\n',
        r"line 2: image 'a' is in split 'val' here and in 'train' before",
    ),
    "conflicting labels": (
        '{"image": "a", "caption": "x", "label": "l"}\n{"image": "a", "caption": "y", "label": "m"}\n',
        r"line 2: image 'a' has label 'm' here and 'l' before",
    ),
    "a split for some": (GOOD + '{"image": "b", "caption": "x", "split": "test"}\n', "1 of 2 images have no split"),
    "the split that means all": ('{"image": "b", "caption": "x", "split": "all"}\n', "every row"),
    "empty": ("", "this manifest is empty"),
    "blank": ("\n\n", "this manifest is empty"),
    "no image column": ('{"Images": "a", "caption": "x"}\n', r"line 1: no column 'image'.*--image-column 'Images'"),
    "no image column, nothing near": ('{"q": 1}\n', r"no column 'image' \(columns: 'q'\); name the column with"),
    "no image in any row": ('{"image": "", "caption": "x"}\n' * 2, r"column 'image': not one of 2 rows .*line 1\)"),
    "no caption column": (
        '{"image": "a", "kaption": "x"}\n',
        r"not one caption for 1 images.*--caption-column 'kaption'",
    ),
    "blank captions only": (
        '{"image": "a", "captions": ["  ", ""]}\n',
        "not one caption.*; name the column with --caption-column$",
    ),
    "number as caption": ('{"image": "a", "captions": ["x", 7]}\n', "line 1: a caption in column 'captions' is 7, not"),
    "zero as caption": ('{"image": "a", "caption": 0}\n', "line 1: a caption in column 'caption' is 0, not text"),
    "object as image": ('{"image": {"bytes": ""}, "caption": "x"}\n', "line 1: column 'image' holds .*not text"),
    "NUL in the id": ('{"id": "a\\u0000", "image": "a", "caption": "x"}\n', r"line 1: column 'id' holds 'a\\x00'"),
    "surrogate in the path": ('{"image": "\\ud800", "caption": "x"}\n', r"column 'image' holds '\\ud800'"),
    "not JSON": (GOOD + "image,caption\n", "line 2: not valid JSON"),
    "NaN": (GOOD + '{"image": "b", "caption": "x", "score": NaN}\n', "line 2: not valid JSON .NaN"),
    "too deep": ('{"image": ' + "[" * 100_000 + "\n", "line 1: not valid JSON"),
    "a list of images": ("[" + GOOD.strip() + "]\n", "line 1: holds a list; each line should be an object"),
}


@pytest.mark.parametrize("case", BAD_JSONL)
def test_bad_jsonl_is_one_clear_message(tmp_path, case):
    text, message = BAD_JSONL[case]
    spec = write(tmp_path / "m.jsonl", text)
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(spec, DEFAULT)
    str(caught.value).encode()
    assert "\n" not in str(caught.value)


BAD_CSV = {
    "empty": ("", "this manifest is empty"),
    "header only": ("image,caption\n", "this manifest is empty"),
    "no image column": ("images,caption\na,x\n", r"no column 'image'.*--image-column 'images'"),
    "semicolons": ("image;caption\na.jpg;x\n", "has semicolons between the columns: save it with commas"),
    "bars": ("image|caption\na.jpg|x\n", "has bars between the columns: save it with commas"),
    "tabs": ("image\tcaption\na.jpg\tx\n", "has tabs between the columns; read it with --format tsv"),
    "unquoted comma": ("image,caption\na.jpg,a dog, running\n", "line 2: 3 fields under a header of 2"),
    "short row": ("image,caption\na.jpg\n", "line 2: 1 fields"),
    "open quote": ('image,caption\na.jpg,"a dog\nb.jpg,a cat\n', "not valid CSV"),
    "repeated column": ("image,caption,caption\na,x,y\n", "more than one column is called 'caption'"),
    "python list": ("image,captions\na.jpg,\"['x', 'y']\"\n", "line 2: .* holds a list that is not JSON"),
    "NUL bytes": ("\0" * 500, "binary"),
    "absent caption column": ("image,text\na,x\n", "not one caption"),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_bad_csv_is_one_clear_message(tmp_path, case):
    text, message = BAD_CSV[case]
    spec = write(tmp_path / "m.csv", text)
    with pytest.raises(DataError, match=message):
        open_dataset(spec, DEFAULT)


def test_a_table_of_an_older_windows_is_told_how_to_become_utf8(tmp_path):
    path = tmp_path / "my pairs.csv"
    path.write_bytes("image,caption\na.jpg,un été\n".encode("cp1252"))
    with pytest.raises(
        DataError, match=r"not UTF-8 text at byte 23.*iconv -f WINDOWS-1252 -t UTF-8 '.*my pairs.csv' >"
    ):
        open_dataset(str(path), DEFAULT)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_table_in_utf16_is_told_how_to_become_utf8(tmp_path, encoding):
    path = tmp_path / "m.csv"
    path.write_bytes("\ufeffimage,caption\na.jpg,un été\n".encode(encoding))
    with pytest.raises(DataError, match=r"UTF-16.*: iconv -f UTF-16 -t UTF-8 .*m\.csv >"):
        open_dataset(str(path), DEFAULT)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_binary_empty_and_unreadable_files_of_any_suffix(tmp_path, suffix):
    spec = tmp_path / f"m{suffix}"
    spec.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40)
    with pytest.raises(DataError, match=str(spec)):
        open_dataset(str(spec), DEFAULT)
    spec.write_bytes(b"")
    with pytest.raises(DataError, match=str(spec)):
        open_dataset(str(spec), DEFAULT)
    spec.unlink()
    with pytest.raises(DataError, match=r"No such file.*\.jsonl.*demo:emoji"):
        open_dataset(str(spec), DEFAULT)
    spec.mkdir()
    with pytest.raises(DataError, match="a folder with no picture"):
        open_dataset(str(spec), DEFAULT)
    with pytest.raises(DataError, match=f"{spec}.*[Ii]s a directory"):
        open_dataset(str(spec), DatasetOptions(format=DatasetFormat(suffix[1:])))
    spec.rmdir()
    os.mkfifo(spec)
    with pytest.raises(DataError, match="not a regular file"):
        open_dataset(str(spec), DEFAULT)


def test_truncated_or_repeating_parquet(tmp_path):
    path = tmp_path / "m.parquet"
    write_parquet(path, ROW_WISE)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="Parquet"):
        open_dataset(str(path), DEFAULT)
    pq.write_table(pa.table([["a"], ["b"]], names=["image", "image"]), path)
    with pytest.raises(DataError, match="more than one column is called 'image'"):
        open_dataset(str(path), DEFAULT)
    write_parquet(path, [{"picture": "a", "other": 1}])
    with pytest.raises(DataError, match=r"row 1: no column 'image' \(columns: 'picture', 'other'\)"):
        open_dataset(str(path), DEFAULT)


def test_parquet_text_that_is_not_utf8(tmp_path):
    path = tmp_path / "m.parquet"
    broken = pa.array([b"\xff\xfe"]).view(pa.string())
    pq.write_table(pa.table({"image": ["a.jpg"], "caption": broken}), path)
    with pytest.raises(DataError, match="UTF-8"):
        open_dataset(str(path), DEFAULT)


@pytest.mark.parametrize("name", ["m", "m.csv.gz", "m.zip"])
def test_an_unknown_format_lists_those_that_are_read(tmp_path, name):
    spec = tmp_path / name
    spec.write_text(GOOD)
    with pytest.raises(UsageError) as caught:
        open_dataset(str(spec), DEFAULT)
    for known in (".jsonl", ".csv", ".tsv", ".parquet", "folder", "tars", "demo:emoji", "--format"):
        assert known in str(caught.value)
    assert found(str(spec), DatasetOptions(format=DatasetFormat.jsonl)) == {"a.jpg": ("x",)}
