"""Readers of data against what no program writes: a dataset, or one clear and short error."""

import io
import json
import tarfile
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from alignvl_cli.datasets.dataset import Dataset, nothing_readable, require_pictures
from alignvl_cli.datasets.formats import open_dataset
from alignvl_cli.datasets.splits import split_rows
from alignvl_cli.encoders.decoding import UnreadableImage, decode_image
from alignvl_cli.errors import AlignvlError
from alignvl_cli.settings import DatasetFormat, DatasetOptions

EXAMPLES = 20
"""Of each test and format; `make test-faults` tries MANY."""
MANY = 1_900
"""Over 20,000 in all."""
LONGEST = 1500
"""Characters of a message."""

key = st.sampled_from(
    ["image", "caption", "captions", "caption_0", "id", "split", "label", "images", "annotations", "sentences", "raw"]
) | st.sampled_from(["filename", "file_name", "filepath", "image_id", "conversations", "from", "value", "text", ""])
word = st.sampled_from(
    ["a.jpg", "b.png", "https://x.org/a.jpg", "img\\a.jpg", "/9j/" + "A" * 400, "[1]", '["x", "y"]', "valid", "gpt"]
) | st.text(max_size=12)
cell = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | word,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(key, inner, max_size=4),
    max_leaves=10,
)
row = st.dictionaries(key, cell, max_size=5)
rows = st.lists(row, max_size=4)
options = st.builds(
    DatasetOptions,
    image_column=st.sampled_from(["image", "file_name", "id"]),
    caption_column=st.sampled_from([None, None, "text", "caption_*", "a,b", ""]),
    id_column=st.sampled_from(["id", "", "caption"]),
)
document = st.fixed_dictionaries({}, optional={"images": rows | cell, "annotations": rows | cell}) | rows | cell


def text_of(kind):
    """What a file of this format may hold, nearly right."""
    lines = st.lists(st.lists(word | key, max_size=4), max_size=5)
    if kind == "jsonl":
        return st.lists(cell | row, max_size=4).map(lambda some: "\n".join(map(json.dumps, some)))
    if kind == "json":
        return document.map(json.dumps)
    if kind in ("csv", "tsv"):
        mark = "," if kind == "csv" else "\t"
        return lines.map(lambda some: "\n".join(mark.join(cells) for cells in [["image", "caption", "id"], *some]))
    return lines.map(lambda some: "\n".join("#".join(cells) + "\tx" for cells in some))


def tried_on(spec, chosen):
    try:
        dataset = open_dataset(str(spec), chosen)
        split_rows([item.split for item in dataset.items], [bytes(32)] * len(dataset.items))
        require_pictures(dataset)
    except AlignvlError as problem:
        refused = problem
    else:
        assert isinstance(dataset, Dataset)
        return
    assert refused.exit_code in (2, 3)
    assert len(str(refused).replace(str(Path(spec).parent), "")) < LONGEST


def run(times, tried, name, strategy, check):
    count = EXAMPLES if times == 1 else MANY

    @seed(0)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy, options)
    def example(data, chosen):
        tried["read", name] += 1
        with tempfile.TemporaryDirectory() as folder:
            check(Path(folder), data, chosen)

    example()
    assert tried["read", name] >= count


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "token"])
def test_text_of_every_format_is_data_or_one_clear_error(times, tried, kind):
    def check(folder, data, chosen):
        path = folder / f"m.{kind}"
        path.write_text(data, encoding="utf-8", errors="surrogatepass")
        fits = chosen if kind != "token" else DatasetOptions()
        tried_on(path, fits)

    run(times, tried, kind, text_of(kind), check)


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_sidecars_of_any_content_are_captions_or_one_clear_error(times, tried, kind):
    name = st.sampled_from(
        ["a.jpg", "a.txt", "a.json", "a.caption", "b.png", "b.json", "metadata.jsonl", "c.heic", "x/a.txt"]
    )
    content = cell.map(lambda value: json.dumps(value).encode()) | row.map(lambda value: json.dumps(value).encode())

    def check(folder, data, chosen):
        chosen = DatasetOptions(caption_column=chosen.caption_column)
        if kind == "folder":
            (folder / "d" / "x").mkdir(parents=True)
            for inner, body in data.items():
                (folder / "d" / inner).write_bytes(body)
            return tried_on(folder / "d", chosen)
        with tarfile.open(folder / "t.tar", "w") as archive:
            for inner, body in data.items():
                info = tarfile.TarInfo(inner)
                info.size = len(body)
                archive.addfile(info, io.BytesIO(body))
        return tried_on(folder / "t.tar", chosen)

    run(times, tried, kind, st.dictionaries(name, content | st.binary(max_size=30), max_size=6), check)


def test_parquet_of_any_column_type_is_data_or_one_clear_error(times, tried):
    cells = {
        **dict.fromkeys((pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())), "a.jpg"),
        **dict.fromkeys((pa.int64(), pa.float32(), pa.date32(), pa.timestamp("us")), 1),
        pa.bool_(): True,
        pa.null(): None,
        pa.binary(3): b"abc",
        pa.binary(): b"abc",
        pa.list_(pa.string()): ["x", None],
        pa.list_(pa.int8()): [1],
        pa.map_(pa.string(), pa.string()): [("a", "b")],
        pa.struct({"url": pa.string()}): {"url": "u"},
        pa.decimal128(5, 2): None,
    }
    kinds = st.sampled_from(list(cells))
    columns = st.dictionaries(
        st.sampled_from(["image", "caption", "captions", "id", "split", "label", "caption_0"]), kinds
    )

    def check(folder, data, chosen):
        arrays = {name: pa.array([cells[kind], None], kind) for name, kind in data.items()}
        pq.write_table(pa.table(arrays), folder / "m.parquet")
        tried_on(folder / "m.parquet", DatasetOptions(format=DatasetFormat.parquet, id_column=chosen.id_column))

    run(times, tried, "parquet", columns, check)


def test_any_bytes_under_any_suffix_are_data_or_one_clear_error(times, tried):
    suffixes = st.sampled_from(["jsonl", "json", "csv", "tsv", "token", "txt", "tar", "parquet", "xlsx", "ndjson"])

    def check(folder, data, chosen):
        body, suffix = data
        (folder / f"m.{suffix}").write_bytes(body)
        tried_on(folder / f"m.{suffix}", DatasetOptions())

    run(times, tried, "bytes", st.tuples(st.binary(max_size=200), suffixes), check)


STARTS = st.sampled_from(
    [
        b"",
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        b"GIF89a",
        b"RIFF\0\0\0\0WEBPVP8 ",
        b"BM",
        b"II*\0",
        b"MM\0*",
    ]
) | st.sampled_from([b"\0\0\0\x18ftypavif", b"P5 9 9 65535 ", b"P6 2 2 255\n", b"\xff\x4f\xff\x51", b"qoif", b"8BPS"])


def test_any_bytes_are_a_picture_or_one_short_reason(times, tried):
    def check(folder, data, chosen):
        start, rest = data
        try:
            assert decode_image(start + rest, 10_000).mode == "RGB"
        except UnreadableImage as problem:
            assert 0 < len(str(problem)) < 300  # noqa: PT017

    run(times, tried, "picture", st.tuples(STARTS, st.binary(max_size=300)), check)


def test_names_of_any_text_are_paths_or_told_why_not(times, tried):
    def check(folder, data, chosen):
        path = folder / "m.jsonl"
        path.write_text("".join(json.dumps({"image": name, "caption": "x"}) + "\n" for name in data))
        tried_on(path, DatasetOptions())
        try:
            dataset = open_dataset(str(path), DatasetOptions())
        except AlignvlError:
            return
        said = nothing_readable(dataset, [(item, "gone") for item in dataset.items])
        assert len(said) < LONGEST + 3 * len(str(folder))

    names = st.text(st.sampled_from("ab./\\ :~\0é🦅%"), min_size=1, max_size=20) | word
    run(times, tried, "names", st.lists(names, min_size=1, max_size=3), check)
