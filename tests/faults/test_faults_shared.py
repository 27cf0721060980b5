"""Two processes on one artefact, a reader during a write, a clock that jumps back, memory that is capped."""

import itertools
import multiprocessing
import shutil
import threading
import time
from pathlib import Path

import pytest
from support.fakes import make_store
from support.killable_training import outcome, settings

from alignvl_cli.artifacts import read_json, write_json
from alignvl_cli.cli.app import leave_with
from alignvl_cli.errors import DataError
from alignvl_cli.retrieval.index import build_index, open_index
from alignvl_cli.store.reader import open_store
from alignvl_cli.training.run import resume_run, train_run
from alignvl_cli.training.run_folder import held_run, load_run

pytestmark = pytest.mark.slow


def test_a_second_process_in_a_run_folder_is_refused(copied):
    with held_run(copied / "unfinished"), pytest.raises(DataError, match="another process is training"):
        next(resume_run(copied / "unfinished"))
    assert load_run(copied / "run")


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path, times):
    path = tmp_path / "record.json"
    write_json(path, {"number": 0, "filler": "x" * 9000})
    writing = threading.Event()

    def write() -> None:
        for number in range(1, 60 * times):
            write_json(path, {"number": number, "filler": "x" * 9000})
        writing.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    while not writing.is_set():
        seen.append(read_json(path, "record")["number"])
    writer.join()
    assert seen == sorted(seen)
    assert len(set(seen)) > 1


def test_a_reader_sees_no_store_and_no_index_before_it_is_whole(copied):
    found: list[str] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            for path, opened in ((copied / "late.h5", open_store), (copied / "late", open_index)):
                try:
                    found.append(str(type(opened(path))))
                except DataError as problem:
                    if path.exists() and "no such" not in str(problem) and "no complete" not in str(problem):
                        found.append(f"half: {problem}")
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    make_store(copied / "late.h5", images=900)
    build_index(load_run(copied / "run"), open_store(copied / "store.h5"), "all", copied / "late")
    time.sleep(0.05)
    over.set()
    watcher.join()
    assert found
    assert [what for what in found if what.startswith("half")] == []


def test_a_clock_that_jumps_back_changes_no_result(copied, monkeypatch):
    whole = copied / "run"
    jumps = itertools.cycle([0.0, -3600.0, 10.0, -1e9])
    for name in ("time", "perf_counter", "monotonic"):
        real = getattr(time, name)
        monkeypatch.setattr(time, name, lambda real=real: real() + next(jumps))
    list(train_run([copied / "store.h5"], copied / "again", settings(), checkpoint_s=0.0))
    monkeypatch.undo()
    assert outcome(copied / "again") == outcome(whole)


def test_a_folder_that_vanishes_is_one_message(copied):
    records = train_run([copied / "store.h5"], copied / "gone", settings(), checkpoint_s=0.0)
    next(records)
    shutil.rmtree(copied / "gone")
    assert leave_with(lambda: list(records) and None, verbose=False) == 3
    assert not (copied / "gone" / "result.json").exists()
    list(train_run([copied / "store.h5"], copied / "gone", settings()))
    assert outcome(copied / "gone")[0] == outcome(copied / "run")[0]


def _train(folder: Path, answers) -> None:
    try:
        list(train_run([folder / "store.h5"], folder / "contested", settings()))
        answers.put("made")
    except Exception as problem:
        answers.put(f"{type(problem).__name__}: {problem}")


def test_of_two_that_train_into_one_folder_one_is_refused(copied):
    """Started together: whichever comes second is told so, and the run is whole."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    both = [context.Process(target=_train, args=(copied, answers)) for _ in range(2)]
    for process in both:
        process.start()
    said = sorted(answers.get(timeout=120) for _ in both)
    for process in both:
        process.join()
    assert said[-1] == "made"
    assert said[0].startswith(("DataError", "UsageError")), said
    assert outcome(copied / "contested")[0] == outcome(copied / "run")[0]
