import json

import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from alignvl_cli.cli.app import app


def run(*arguments):
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def picture(path, mark):
    image = Image.new("RGB", (60, 40), "white")
    ImageDraw.Draw(image).rectangle((mark, mark // 2, mark + 15, mark // 2 + 20), fill=(mark * 5, 90, 200 - mark))
    image.save(path)


@pytest.fixture
def manifest(tmp_path):
    rows = []
    for name, mark, split in [("a", 3, "train"), ("b", 3, "test"), ("c", 30, "train"), ("d", 44, "val")]:
        picture(tmp_path / f"{name}.png", mark)
        rows.append({"image": f"{name}.png", "captions": [f"caption of {name}", "the same"], "split": split})
    rows.append({"image": "[red]gone.png", "captions": ["x"], "split": "train"})
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_table_counts_and_names_and_the_leak_is_a_warning_in_words(manifest):
    result = run("check", manifest)
    assert result.exit_code == 0
    for line in (
        "images                    5",
        "missing                   1",
        "splits                    train 2, val 1, test 1",
    ):
        assert line in result.stdout
    assert "2 images in 1 groups, 1 across splits" in result.stdout
    assert "[red]gone.png" in result.stdout
    assert "a.png, b.png" in result.stdout
    assert "warning: 1 image contents stand in more than one split" in result.stderr
    assert "warning: 1 captions stand in more than one split, to the letter" in result.stderr


def test_json_is_one_document_with_every_group_and_bad_image(manifest):
    result = run("check", manifest, "--json", "--quiet")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["schema"] == "alignvl.data-check/1"
    assert document["dataset"] == str(manifest)
    assert document["splits"] == {"train": 2, "val": 1, "test": 1}
    assert document["exact"] == {
        "groups": [[{"id": "a.png", "split": "train"}, {"id": "b.png", "split": "test"}]],
        "images": 2,
        "groups_across_splits": 1,
    }
    assert [bad["id"] for bad in document["missing"]] == ["[red]gone.png"]
    assert document["captions"]["truncation"] is None
    assert document["captions"]["repeated_across"] == 1


def test_too_many_unreadable_images_leave_with_6_after_the_table(tmp_path):
    picture(tmp_path / "0.png", 3)
    rows = [{"image": f"{n}.png", "caption": f"c{n}"} for n in range(13)]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run("check", path)
    assert result.exit_code == 6
    assert "12 of 13 images cannot be read, more than --max-rejected 0.01" in result.stderr
    assert "the first 8 of 12" in result.stdout
    assert run("check", path, "--max-rejected", "0.95").exit_code == 0


def test_captions_are_held_against_a_text_encoder(manifest):
    row = {"image": "c.png", "id": "long", "captions": ["dog " * 600, "dog"], "split": "train"}
    manifest.write_text(manifest.read_text() + json.dumps(row) + "\n")
    result = run("check", manifest, "--text", "bundled:all-minilm-l6-v2", "--json")
    assert result.exit_code == 0
    truncation = json.loads(result.stdout)["captions"]["truncation"]
    assert (truncation["captions"], truncation["longest"]) == (1, 602)
    assert 100 < truncation["max_length"] <= 512


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["absent.jsonl"], 3, "No such file"),
        (["m.unknown"], 2, "cannot tell the format"),
        (["--format", "nonsense", "m.jsonl"], 2, "nonsense"),
        (["demo:emoji", "--format", "csv"], 2, "--format has no effect for demo:emoji"),
    ],
)
def test_bad_input_has_its_exit_code_and_one_message(tmp_path, monkeypatch, arguments, code, message):
    (tmp_path / "m.unknown").write_text("x")
    monkeypatch.chdir(tmp_path)
    result = run("check", *arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_the_group_shows_its_commands():
    for arguments in ([], ["--help"], ["-h"]):
        result = run(*arguments)
        assert result.exit_code == (0 if arguments else 2)
        assert "check" in result.output
    assert "--max-rejected" in run("check", "--help").stdout
