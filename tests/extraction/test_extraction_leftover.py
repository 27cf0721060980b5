"""A process killed between naming the store and removing the work folder: the next run, of any plan, clears it away."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.fakes import FakeText, FakeVision, make_dataset

from alignvl_cli.errors import UsageError
from alignvl_cli.extraction.events import Finished
from alignvl_cli.extraction.plan import existing_store_matches, make_plan
from alignvl_cli.extraction.run import run_extraction
from alignvl_cli.extraction.shards import WorkFolder, remove_leftover
from alignvl_cli.settings import NO_REUSE, ExtractConfig
from alignvl_cli.store.reader import open_store

SMALL = ExtractConfig(batch_size=2, workers=0)


class Killed(BaseException):
    """Stands for SIGKILL."""


def extract(dataset, output, *, vision=None, config=SMALL, **options):
    *_, last = run_extraction(dataset, vision or FakeVision(), FakeText(), output, config, settings={}, **options)
    assert isinstance(last, Finished)
    return last.summary


def killed(*arguments, **options):
    raise Killed


@pytest.fixture(params=["before any removal", "before the last removal"])
def leftover(request, tmp_path, monkeypatch):
    """A dataset, its complete store, and what the killed process left beside it."""
    dataset, output = make_dataset(tmp_path / "data", images=40), tmp_path / "s.h5"
    with monkeypatch.context() as patched:
        if request.param == "before any removal":
            patched.setattr(WorkFolder, "discard", killed)
        else:
            patched.setattr(Path, "rmdir", killed)
        with pytest.raises(Killed):
            extract(dataset, output)
    assert (tmp_path / "s.h5.partial").is_dir()
    assert len(open_store(output).image_id) == 40
    return dataset, output


def assert_clean(output):
    assert sorted(path.name for path in output.parent.iterdir()) == ["data", output.name]


def test_the_same_command_finds_nothing_to_do_and_clears(leftover):
    dataset, output = leftover
    before = output.read_bytes()
    assert existing_store_matches(output, make_plan(dataset, FakeVision(), FakeText(), SMALL))
    remove_leftover(output)
    assert_clean(output)
    assert output.read_bytes() == before


@pytest.mark.parametrize("batch", [2, 3])
def test_a_refused_run_clears(leftover, batch):
    dataset, output = leftover
    with pytest.raises(UsageError, match="--overwrite"):
        extract(dataset, output, config=replace(SMALL, batch_size=batch))
    assert_clean(output)


def test_another_plan_replaces_the_store_without_a_restart(leftover):
    dataset, output = leftover
    vision = FakeVision(name="other")
    extract(dataset, output, vision=vision, overwrite=True)
    assert sum(vision.batches) == 40
    assert open_store(output).vision["record"] == vision.record
    assert_clean(output)


def test_the_same_plan_reads_changed_pictures_when_it_replaces(leftover):
    dataset, output = leftover
    before = open_store(output).content_hash
    (output.parent / "data" / "00003.png").write_bytes((output.parent / "data" / "00009.png").read_bytes())
    vision = FakeVision()
    extract(dataset, output, vision=vision, overwrite=True)
    assert not vision.batches, "the bytes there now are another picture's, whose latent is reused"
    assert open_store(output).content_hash != before
    assert_clean(output)


def test_work_on_a_replacement_is_no_leftover(tmp_path):
    dataset, output = make_dataset(tmp_path / "data", images=70), tmp_path / "s.h5"
    extract(dataset, output)
    anew = {"overwrite": True, "reuse": NO_REUSE}
    running = run_extraction(dataset, FakeVision(), FakeText(), output, SMALL, settings={}, **anew)
    while next(running).done <= 32:
        pass
    remove_leftover(output)
    running.close()
    remove_leftover(output)
    assert extract(dataset, output, **anew).resumed == 32
    assert_clean(output)


def test_a_store_killed_on_its_way_to_its_name_is_made_again_and_leaves_nothing(tmp_path):
    dataset, output = make_dataset(tmp_path / "data", images=70), tmp_path / "s.h5"
    running = run_extraction(dataset, FakeVision(), FakeText(), output, SMALL, settings={})
    while next(running).done <= 32:
        pass
    running.close()
    (tmp_path / ".s.h5.4711.tmp").write_bytes(b"a store that was not yet named")
    assert extract(dataset, output).resumed == 32
    assert_clean(output)
