"""`alignvl search` with real, tiny encoders: files of queries, thresholds and pages."""

import json
import shutil
import webbrowser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.coloured_squares import QUICK
from support.command_line import CommandLine

from alignvl_cli import search
from alignvl_cli.artifacts import read_json, write_json
from alignvl_cli.errors import UsageError


def test_queries_come_from_arguments_and_from_a_file(coloured, tmp_path):
    (tmp_path / "queries.txt").write_text("\ufeffred square\n\n  blue square \n")
    answer = json.loads(coloured.succeeds("search", "green", "--queries", tmp_path / "queries.txt", "-k", 2, "--json"))
    assert [result["query"] for result in answer["results"]] == ["green", "red square", "blue square"]
    assert [len(result["hits"]) for result in answer["results"]] == [2, 2, 2]


def test_the_same_query_twice_is_answered_twice(coloured):
    answer = json.loads(coloured.succeeds("search", "green", "green", "-k", 1, "--json"))
    assert len(answer["results"]) == 2
    assert answer["results"][0] == answer["results"][1]


def test_hits_below_a_threshold_are_left_out(coloured):
    every = json.loads(coloured.succeeds("search", "green", "-k", 9, "--json"))["results"][0]["hits"]
    bound = every[3]["score"]
    answer = json.loads(coloured.succeeds("search", "green", "-k", 9, "--threshold", bound, "--json"))
    kept = answer["results"][0]["hits"]
    assert kept == [hit for hit in every if hit["score"] >= bound]
    assert 0 < len(kept) < 9


def test_a_page_holds_the_pictures_themselves(coloured, tmp_path):
    page = tmp_path / "page.html"
    result = coloured("search", "<b>green</b>", "-k", 4, "--html", page)
    assert result.exit_code == 0
    assert f"wrote {page}" in result.stderr
    html = page.read_text()
    assert html.count('src="data:image/jpeg;base64,') == 4
    assert "&lt;b&gt;green&lt;/b&gt;" in html
    assert "<script" not in html


def test_a_page_replaces_no_file_but_another_page_unasked(coloured, tmp_path):
    page = tmp_path / "thesis.html"
    page.write_text("<!doctype html>years of work")
    message = coloured.fails(2, "search", "green", "--html", page)
    assert "thesis.html: a file is there already; add --overwrite to replace it" in message
    assert page.read_text() == "<!doctype html>years of work"
    coloured.succeeds("search", "green", "--html", page, "--overwrite")
    assert "<title>green</title>" in page.read_text()
    coloured.succeeds("search", "red", "--html", page)
    assert "<title>red</title>" in page.read_text()
    assert "a folder is there; name a file" in coloured.fails(2, "search", "green", "--html", tmp_path)


def test_a_picture_asks_captions_and_stands_on_its_page(coloured, tmp_path):
    Image.new("RGB", (30, 30), "red").save(tmp_path / "query.png")
    coloured.succeeds("search", "--image", tmp_path / "query.png", "-k", 3, "--html", tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert html.count('src="data:image/jpeg;base64,') == 4
    assert "captions found by cosine" in html


def test_open_shows_the_page_and_says_when_there_is_no_browser(coloured, monkeypatch):
    shown = []
    monkeypatch.setattr(webbrowser, "open", lambda uri: bool(shown.append(uri)))
    result = coloured("search", "green", "--open")
    assert shown == [(coloured.workspace / "search.html").resolve().as_uri()]
    assert "no browser" in result.stderr
    assert result.exit_code == 0


def test_a_corrected_index_says_what_its_scores_are(coloured, tmp_path):
    index = coloured.succeeds("index", "--hubness", "nnn", "-o", tmp_path / "nnn").strip()
    assert "hub penalty" in " ".join(coloured.succeeds("search", "green", "--index", index).split())


def test_the_measured_recall_of_an_index_is_said(coloured, tmp_path):
    result = coloured("index", "--factory", "HNSW8", "-o", tmp_path / "hnsw")
    assert result.stdout == f"{tmp_path / 'hnsw'}\n"
    assert "image index HNSW8, efSearch 16: 100.00% of exact search's first 10" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--factory", "Fiat"], "Fiat"),
        (["--memory", "0.0000001"], "--memory"),
        (["--memory", "2 apples"], "--memory: wanted a size such as 8GB"),
        (["--hubness", "csls"], "csls"),
    ],
)
def test_an_index_that_cannot_be_is_a_usage_error(coloured, tmp_path, words, message):
    assert message in coloured.fails(2, "index", "-o", tmp_path / "none", *words)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("memory", ["2GB", "2GiB", "500 MB", "0.5"])
def test_the_memory_of_an_index_is_a_size_as_in_training_or_gib(coloured, tmp_path, memory):
    coloured.succeeds("index", "-o", tmp_path / "index", "--memory", memory)


@pytest.mark.parametrize(("data", "message"), [(b"\n \n", "no text"), (b"\xff\xfe\x00x", "UTF-8")])
def test_a_file_that_holds_no_queries(coloured, tmp_path, data, message):
    (tmp_path / "queries.txt").write_bytes(data)
    assert message in coloured.fails(3, "search", "--queries", tmp_path / "queries.txt")


def test_words_and_pictures_are_not_asked_at_once(coloured, tmp_path):
    assert "either TEXT or --image" in coloured.fails(2, "search", "green", "--image", tmp_path / "x.png")
    assert "either TEXT or --image" in coloured.fails(2, "search")


def moved(coloured, tmp_path) -> CommandLine:
    """The workspace copied elsewhere."""
    return CommandLine(Path(shutil.copytree(coloured.workspace, tmp_path / "moved" / "workspace")))


def test_a_workspace_that_was_moved_is_searched_as_before(coloured, tmp_path):
    coloured.succeeds("search", "green", "-k", 3, "--json")  # makes the index, if no test has
    copied = moved(coloured, tmp_path)
    index = copied.workspace / "indexes" / sorted(path.name for path in (copied.workspace / "indexes").iterdir())[-1]
    record = read_json(index / "index.json", "index")
    write_json(index / "index.json", {**record, "run": "/gone/runs/r", "store": "/gone/stores/s.h5"})
    here, there = (json.loads(one.succeeds("search", "green", "-k", 3, "--json")) for one in (coloured, copied))
    assert here["results"] == there["results"]
    shutil.rmtree(copied.workspace / "runs")
    assert "neither in the workspace" in copied.fails(3, "search", "green")


@pytest.mark.parametrize(("threshold", "said"), [("nan", "finite"), ("inf", "finite"), ("1.5", "at most 1")])
def test_a_threshold_that_nothing_can_reach_is_refused(coloured, threshold, said):
    assert said in coloured.fails(2, "search", "green", "--threshold", threshold)


def test_what_is_left_out_is_told(coloured):
    found = coloured("search", "green", "--threshold", "1", "--json")
    assert json.loads(found.stdout)["results"][0]["hits"] == []
    assert "the best one scores" in " ".join(found.stderr.split())
    long = coloured("search", "green " * 2000, "-k", 1, "--json")
    assert "the text encoder reads" in " ".join(long.stderr.split())
    assert "the text encoder reads" not in coloured("search", "green").stderr


def test_hits_below_a_precision_are_left_out_and_the_cutoff_is_told(coloured):
    found = coloured("search", "green", "--min-precision", "0.001", "--json")
    least = json.loads(found.stdout)["threshold"]
    assert "were right" in " ".join(found.stderr.split())
    assert all(hit["score"] >= least for hit in json.loads(found.stdout)["results"][0]["hits"])
    both = json.loads(coloured.succeeds("search", "green", "--min-precision", "0.001", "--threshold", "1", "--json"))
    assert (both["threshold"], both["results"][0]["hits"]) == (1.0, [])
    assert "words find captions" in coloured.fails(2, "search", "green", "--of", "text", "--min-precision", "0.1")


def test_scores_of_a_compressed_index_are_exact_or_called_approximate(coloured, tmp_path):
    folder = tmp_path / "compressed"
    coloured.succeeds("index", "-o", folder, "--factory", "SQ4")
    whole = json.loads(coloured.succeeds("search", "green", "-k", 30, "--json"))
    exact = json.loads(coloured.succeeds("search", "green", "-k", 30, "--json", "--index", folder))
    assert (whole["scores"], exact["scores"]) == ("exact", "exact")
    scores = {hit["id"]: hit["score"] for hit in whole["results"][0]["hits"]}
    shared = [hit for hit in exact["results"][0]["hits"] if hit["id"] in scores]
    assert shared
    assert all(hit["score"] == pytest.approx(scores[hit["id"]], abs=1e-5) for hit in shared)
    alone = CommandLine(tmp_path / "alone")
    shutil.copytree(coloured.workspace / "runs", alone.workspace / "runs")
    record = read_json(folder / "index.json", "index")
    write_json(folder / "index.json", {**record, "run": "/gone/r", "store": "/gone/s.h5"})
    found = alone("search", "green", "-k", 3, "--json", "--index", folder)
    assert json.loads(found.stdout)["scores"] == "approximate"
    assert "found to be up to" in " ".join(found.stderr.split())


def found_by(coloured, *words):
    return json.loads(coloured.succeeds("search", *words, "--json"))["results"]


def test_an_image_of_the_index_finds_others_and_not_itself(coloured):
    name = found_by(coloured, "green", "-k", 1)[0]["hits"][0]["id"]
    (result,) = found_by(coloured, "--like", name, "-k", 60)
    assert result["query"] == name
    assert len(result["hits"]) == 59
    assert name not in [hit["id"] for hit in result["hits"]]
    message = coloured.fails(2, "search", "--like", name[:-1] + "x")
    assert f"the index has no image of this id. Did you mean '{name}'?" in message


def test_what_is_added_and_subtracted_is_a_weighted_sum_and_plain_texts_are_plain(coloured, tmp_path):
    from alignvl_cli import Combined, Like, search
    from alignvl_cli.retrieval.index import open_index

    Image.new("RGB", (30, 30), "red").save(tmp_path / "photo.png")
    (result,) = found_by(
        coloured, "-i", tmp_path / "photo.png", "--add", "2*green square", "--subtract", "blue", "--subtract-image",
        f"0.5*{tmp_path / 'photo.png'}", "-k", 3,
    )  # fmt: skip
    assert result["query"].endswith(f"photo.png + 2*green square - blue - 0.5*{tmp_path / 'photo.png'}")
    index = open_index(sorted((coloured.workspace / "indexes").iterdir())[-1])
    photo = tmp_path / "photo.png"
    query = Combined((1, photo), (2, "green square"), (-1, "blue"), (-0.5, photo))
    name = result["hits"][0]["id"]
    in_python = search(index, [query, Combined((1, Like(name)), (1, "red")), "2*green"], k=3)
    assert [(hit.id, pytest.approx(hit.score, abs=1e-5)) for hit in in_python[0]] == [
        (hit["id"], hit["score"]) for hit in result["hits"]
    ]
    assert name not in [hit.id for hit in in_python[1]]
    (plain,) = found_by(coloured, "2*green", "-k", 3)
    assert plain["query"] == "2*green"
    assert [hit.id for hit in in_python[2]] == [hit["id"] for hit in plain["hits"]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["green", "--add", " "], "--add: wanted"),
        (["green", "--subtract", "0*red"], "--subtract: wanted"),
        (["green", "--subtract", "green"], "cancel each other out"),
        (["green", "--like", "x"], "either TEXT or --image FILE or --like ID"),
        (["--add", "green"], "either TEXT"),
    ],
)
def test_a_combination_that_is_none_is_refused(coloured, words, said):
    assert said in coloured.fails(2, "search", *words)


@pytest.fixture(scope="module")
def in_two_formats(tmp_path_factory, tiny_encoders) -> CommandLine:
    """A workspace with an index of twelve pictures, each there as PNG and as JPEG, the first one as a copy too."""
    folder = tmp_path_factory.mktemp("formats")
    rows = []
    for number in range(12):
        small = np.random.default_rng(number).integers(0, 255, (5, 5, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((96, 96), Image.Resampling.BICUBIC)
        for name in (f"{number}.png", f"{number}.jpg"):
            picture.save(folder / name)
            split = "train" if number < 9 else "val"
            rows.append({"image": name, "caption": f"pattern {number} as {name[-3:]}", "split": split})
    shutil.copy(folder / "0.png", folder / "copy.png")
    rows.append({"image": "copy.png", "caption": "a copy", "split": "train"})
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    alignvl = CommandLine(folder / "workspace")
    alignvl.succeeds("extract", folder / "own.jsonl", *tiny_encoders)
    alignvl.succeeds("train", *QUICK)
    alignvl.succeeds("index")
    return alignvl


def grouped(alignvl, *words) -> list[dict]:
    return json.loads(alignvl.succeeds("search", *words, "--group-duplicates", "--json"))["results"][0]["hits"]


def test_near_duplicates_are_one_hit_that_names_the_others(in_two_formats):
    hits = grouped(in_two_formats, "pattern", "-k", 12)
    assert len(hits) == 12
    assert sum(hit["count"] for hit in hits) == 25
    for hit in hits:
        names = {hit["id"], *hit["duplicates"]}
        number = min(name.partition(".")[0] for name in names)
        assert names == {f"{number}.png", f"{number}.jpg", *(["copy.png"] if number == "0" else [])}
        assert hit["count"] == len(names) == 1 + len(hit["duplicates"])
    assert [len(grouped(in_two_formats, "pattern", "-k", k)) for k in (1, 5, 20)] == [1, 5, 12]
    table = in_two_formats.succeeds("search", "pattern", "--group-duplicates")
    assert table.splitlines()[2].split()[-2:] == ["images", "alike"]
    assert "duplicates" not in in_two_formats.succeeds("search", "pattern", "--json")


def test_the_page_and_python_name_near_duplicates_too(in_two_formats, tmp_path):
    told = grouped(in_two_formats, "pattern", "-k", 3, "--html", tmp_path / "page.html")
    assert f"one of {told[0]['count']} alike: also {told[0]['duplicates'][0]}" in (tmp_path / "page.html").read_text()
    index = in_two_formats.workspace / "indexes" / "0001-0001-alignvl-s0-all"
    (hits,) = search(index, ["pattern"], k=3, group_duplicates=True)
    assert [(hit.id, list(hit.duplicates)) for hit in hits] == [(hit["id"], hit["duplicates"]) for hit in told]
    with pytest.raises(UsageError, match="finds captions"):
        search(index, ["pattern"], of="text", group_duplicates=True)


def test_pictures_that_are_not_at_hand_are_told_and_group_identical_files_alone(in_two_formats):
    data = in_two_formats.workspace.parent
    moved = [path.rename(path.with_suffix(".moved")) for path in sorted(data.glob("*.jpg"))]
    try:
        result = in_two_formats("search", "pattern", "-k", 24, "--group-duplicates", "--json")
        index = in_two_formats.workspace / "indexes" / "0001-0001-alignvl-s0-all"
        with pytest.warns(UserWarning, match="12 pictures found are not at hand"):
            search(index, ["pattern"], k=24, group_duplicates=True)
    finally:
        for path in moved:
            path.rename(path.with_suffix(".jpg"))
    assert "12 pictures found are not at hand" in " ".join(result.stderr.split())
    hits = json.loads(result.stdout)["results"][0]["hits"]
    assert sorted(hit["count"] for hit in hits) == [1] * 23 + [2]


def test_captions_are_not_grouped_by_looks(in_two_formats):
    message = in_two_formats.fails(2, "search", "pattern", "--of", "text", "--group-duplicates")
    assert "leave it out, or add --of image" in message
