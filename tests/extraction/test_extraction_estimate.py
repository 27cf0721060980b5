"""`--plan` counts what is there, foretells the store's size, and writes nothing."""

import io
import json

import pytest
from rich.console import Console
from support import tiny_models
from support.fakes import FakeText, FakeVision, make_dataset
from typer.testing import CliRunner

from alignvl_cli.cli.app import app
from alignvl_cli.errors import DataError
from alignvl_cli.extraction import estimate as module
from alignvl_cli.extraction.estimate import estimate
from alignvl_cli.extraction.run import run_extraction
from alignvl_cli.report.data import estimate_table
from alignvl_cli.settings import ExtractConfig

CONFIG = ExtractConfig(batch_size=4, workers=0)


def test_counts_are_exact_and_the_store_is_as_large_as_foretold(tmp_path):
    dataset = make_dataset(tmp_path / "data", images=200, repeat_image_every=4, repeat_caption_every=5)
    output = tmp_path / "s.h5"
    wide = FakeVision(dim=512), FakeText(dim=512)
    found = estimate(dataset, *wide, output, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    *_, last = run_extraction(dataset, *wide, output, CONFIG, settings={})
    summary = last.summary
    assert (found.images, found.hashed_images, found.distinct_images) == (200, 200, summary.distinct_images)
    assert (found.captions, found.distinct_captions) == (summary.captions, summary.distinct_captions)
    assert (found.image_batch, found.text_batch, found.rejected_in_sample) == (4, 4, 0)
    assert found.store_bytes == pytest.approx(output.stat().st_size, rel=0.1)
    assert found.store_bytes < found.work_bytes < found.free_bytes
    assert found.memory_bytes > 0
    rates = found.distinct_images / found.images_per_second + found.distinct_captions / found.captions_per_second
    assert found.seconds == pytest.approx(rates)


def test_only_a_few_batches_are_encoded(tmp_path):
    vision, text = FakeVision(), FakeText()
    estimate(make_dataset(tmp_path / "data", images=200), vision, text, tmp_path / "s.h5", CONFIG)
    assert sum(vision.batches) <= 5 * 4
    assert sum(map(len, text.batches)) <= 6 * 4


def test_what_cannot_be_read_is_said_and_taken_off(tmp_path):
    dataset = make_dataset(tmp_path / "data", images=20)
    for number in range(0, 20, 2):
        (tmp_path / "data" / f"{number:05d}.png").write_bytes(b"<html>")
    found = estimate(dataset, FakeVision(), FakeText(), tmp_path / "s.h5", CONFIG)
    assert (found.rejected_in_sample, found.sampled_images) == (10, 20)
    shown = io.StringIO()
    Console(width=120, file=shown).print(estimate_table("s.h5", found))
    assert "10 of 20 sampled ones cannot be read" in shown.getvalue()
    for item in dataset.items:
        item.source.path.unlink()
    with pytest.raises(DataError, match="none of 20 sampled images can be read; the first: No such file"):
        estimate(dataset, FakeVision(), FakeText(), tmp_path / "s.h5", CONFIG)


def test_contents_are_counted_as_long_as_time_allows(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HASH_SECONDS", -1.0)
    found = estimate(make_dataset(tmp_path / "data", images=20), FakeVision(), FakeText(), tmp_path / "s.h5", CONFIG)
    assert (found.hashed_images, found.distinct_images) == (0, 0)
    assert found.seconds > 0


def test_the_command_prints_it_on_stdout_and_makes_nothing(tmp_path):
    dataset = make_dataset(tmp_path / "data", images=12)
    for item in dataset.items:
        item.source.path.with_suffix(".txt").write_text("\n".join(item.captions))
    tiny_models.save_dinov2(tmp_path / "vision")
    tiny_models.save_sentence_transformer(tmp_path / "text")
    command = ["extract", str(tmp_path / "data"), "--vision", str(tmp_path / "vision"), "--device", "cpu"]
    command += ["--text", str(tmp_path / "text"), "--workspace", str(tmp_path / "w"), "--plan"]
    table = CliRunner().invoke(app, command)
    assert table.exit_code == 0, table.output
    assert "12, 12 distinct" in table.stdout
    document = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert document["schema"] == "alignvl.extract-plan/1"
    assert (document["images"], document["captions"]) == (12, 24)
    assert not (tmp_path / "w").exists()
    refused = CliRunner().invoke(app, [*command[:-1], "--json"])
    assert refused.exit_code == 2
    assert "--plan" in refused.stderr
