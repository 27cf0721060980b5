"""The user's own pairs through every stage, by real transformers code with tiny random encoders."""

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

COLOURS = [(r, g, b) for r in (20, 230) for g in (20, 120, 230) for b in (20, 120, 230)]
QUICK = ["--epochs", "3", "--batch-size", "8", "--embed-dim", "8", "--device", "cpu"]


@pytest.fixture
def pictures(tmp_path: Path) -> list[tuple[str, list[str]]]:
    """72 small pictures on disk, each with one to three captions; the last file is no picture."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = []
    for number in range(72):
        colour = COLOURS[number % len(COLOURS)]
        Image.new("RGB", (24 + number, 32), colour).save(folder / f"{number:02d}.png")
        rows.append((f"photos/{number:02d}.png", [f"word{n} colour {colour} {number}" for n in range(1 + number % 3)]))
    (folder / "broken.png").write_bytes(b"<html>not found</html>")
    return [*rows, ("photos/broken.png", ["a page"])]


def write_jsonl(path: Path, rows: list[tuple[str, list[str]]]) -> Path:
    path.write_text("".join(json.dumps({"image": image, "captions": captions}) + "\n" for image, captions in rows))
    return path


def write_csv(path: Path, rows: list[tuple[str, list[str]]]) -> Path:
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "caption"])
        writer.writerows((image, caption) for image, captions in rows for caption in captions)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("name", "write"), [("own.jsonl", write_jsonl), ("own.csv", write_csv)])
def test_own_pairs_go_through_every_stage(empty, tmp_path, pictures, tiny_encoders, name, write):
    manifest = write(tmp_path / name, pictures)
    extraction = empty("extract", manifest, *tiny_encoders)
    assert extraction.exit_code == 0, extraction.output
    store = Path(extraction.stdout.strip())
    assert extraction.stdout == f"{store}\n"
    assert store.parent == empty.workspace / "stores"
    facts = json.loads(empty.succeeds("inspect", store, "--json", "--check"))
    assert (facts["images"], facts["captions"], facts["rejected"]) == (72, 144, 1)
    assert sum(facts["splits"].values()) == 72

    run = Path(empty.succeeds("train", *QUICK).strip())
    result = json.loads(empty.succeeds("eval", "--json"))
    assert result["images"] == facts["splits"]["test"]
    assert result["selection_split"] == "val"
    answer = json.loads(empty.succeeds("search", "word0 colour", "--json", "-k", "3", "--device", "cpu"))
    assert [hit["rank"] for hit in answer["results"][0]["hits"]] == [1, 2, 3]
    assert answer["of"] == "image"
    captions = json.loads(empty.succeeds("search", "--image", tmp_path / "photos" / "01.png", "--json"))
    assert captions["of"] == "text"
    assert "word" in captions["results"][0]["hits"][0]["caption"]
    assert "photos/" in empty.succeeds("search", "word1", "--index", next((empty.workspace / "indexes").iterdir()))
    assert run.name == "0001-alignvl-s0"


def test_the_two_manifests_give_the_same_store(empty, tmp_path, pictures, tiny_encoders):
    contents = set()
    for name, write in (("own.jsonl", write_jsonl), ("own.csv", write_csv)):
        store = empty.succeeds(
            "extract", write(tmp_path / name, pictures), "-o", tmp_path / f"{name}.h5", *tiny_encoders
        )
        contents.add(json.loads(empty.succeeds("inspect", store.strip(), "--json"))["content_hash"])
    assert len(contents) == 1


def test_the_same_extraction_again_does_nothing(empty, tmp_path, pictures, tiny_encoders):
    manifest = write_jsonl(tmp_path / "own.jsonl", pictures)
    first = empty("extract", manifest, *tiny_encoders)
    written = Path(first.stdout.strip()).stat().st_mtime_ns
    left_by_a_crash = Path(f"{first.stdout.strip()}.partial")
    left_by_a_crash.mkdir()
    (left_by_a_crash / "lock").touch()
    again = empty("extract", manifest, *tiny_encoders)
    assert not left_by_a_crash.exists()
    assert again.stdout == first.stdout
    assert "nothing to do" in again.stderr
    assert Path(first.stdout.strip()).stat().st_mtime_ns == written


def test_a_changed_manifest_does_not_replace_the_store_unasked(empty, tmp_path, pictures, tiny_encoders):
    manifest = write_jsonl(tmp_path / "own.jsonl", pictures)
    empty.succeeds("extract", manifest, *tiny_encoders)
    write_jsonl(manifest, pictures[:40])
    assert "--overwrite" in empty.fails(2, "extract", manifest, *tiny_encoders)
    assert empty("extract", manifest, "--overwrite", *tiny_encoders).exit_code == 0


def test_too_many_rejected_images_leave_a_complete_store_and_say_so(empty, tmp_path, pictures, tiny_encoders):
    rows = [*pictures, *((f"photos/gone{number}.png", ["nowhere"]) for number in range(20))]
    result = empty("extract", write_jsonl(tmp_path / "own.jsonl", rows), *tiny_encoders)
    assert result.exit_code == 6
    assert "21 of 93 images were rejected" in " ".join(result.stderr.split())
    assert json.loads(empty.succeeds("inspect", result.stdout.strip(), "--json"))["rejected"] == 21


def test_search_refuses_a_picture_that_cannot_be_read(empty, tmp_path, pictures, tiny_encoders):
    empty.succeeds("extract", write_jsonl(tmp_path / "own.jsonl", pictures), *tiny_encoders)
    empty.succeeds("train", *QUICK)
    assert "broken.png" in empty.fails(3, "search", "--image", tmp_path / "photos" / "broken.png")
