"""Every stage killed and terminated at random moments, its disk filled, its place taken: nothing of before is lost,
nothing half made passes for whole, and the next run ends as an undisturbed one does."""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from stages import Stages

from alignvl_cli.ablation.records import read_verdicts
from alignvl_cli.artifacts import file_sha256
from alignvl_cli.errors import DataError
from alignvl_cli.retrieval.evaluate import read_evaluation
from alignvl_cli.retrieval.index import open_index
from alignvl_cli.settings import Gallery
from alignvl_cli.store.reader import open_store
from alignvl_cli.training.run_folder import load_run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and signals as on Linux")

FITTED = ["--epochs", "4", "--batch-size", "24", "--embed-dim", "8", "--lr", "3e-3", "--device", "cpu"]


@pytest.fixture(scope="module")
def stages():
    served = Stages.start()
    yield served
    served.stop()


@dataclass(frozen=True)
class Stage:
    words: Callable[[Path], Sequence[Any]]
    """Of the command, in a folder as `sound` is."""
    again: Callable[[Path], Sequence[Any]]
    """Of the command that a user gives after it was stopped."""
    read: Callable[[Path], Any]
    """What was made, comparable; DataError when it is absent or not whole."""
    place: str
    """Where it is made, as a pattern."""


def train_again(folder: Path) -> Sequence[Any]:
    made = folder / "made"
    if (made / "config.json").is_file():
        return "train", "--resume", made
    return "train", folder / "store.h5", "-o", made, *FITTED


def read_made_run(folder: Path) -> Any:
    load_run(folder / "made")
    return file_sha256(folder / "made" / "adapters.safetensors")


def read_made_evaluation(folder: Path) -> Any:
    evaluation = read_evaluation(next(folder.glob(EVAL.place), folder / "absent"))
    return evaluation["metrics"], evaluation["sha256"]


def read_made_index(folder: Path) -> Any:
    index = open_index(folder / "made")
    return [index.vectors[side].reconstruct_n(0, index.vectors[side].ntotal).tobytes() for side in Gallery]


def read_made_study(folder: Path) -> Any:
    return read_verdicts(folder / "made")


def read_made_page(folder: Path) -> Any:
    try:
        text = (folder / "made.html").read_text()
    except OSError as problem:
        raise DataError("no page") from problem
    assert text.rstrip().endswith("</html>")
    return True


def read_made_store(folder: Path) -> Any:
    store = open_store(folder / "s.h5")
    store.verify()
    return store.content_hash


EXTRACT = Stage(lambda f: ("extract", f), lambda f: ("extract", f), read_made_store, "s.h5")
TRAIN = Stage(lambda f: ("train", f / "store.h5", "-o", f / "made", *FITTED), train_again, read_made_run, "made")
EVAL = Stage(
    *[lambda f: ("eval", f / "run", "--data", f / "store.h5", "--split", "val")] * 2,
    read_made_evaluation,
    "run/eval/store-*-val.json",
)
INDEX = Stage(
    *[lambda f: ("index", f / "run", "--data", f / "store.h5", "-o", f / "made")] * 2, read_made_index, "made"
)
ABLATE = Stage(
    *[lambda f: ("ablate", f / "tiny.toml", "--data", f / "store.h5", "-o", f / "made", "--jobs", 1, "--device", "cpu")]
    * 2,
    read_made_study,
    "made",
)
REPORT = Stage(
    *[lambda f: ("report", f / "study", "--data", f / "store.h5", "-o", f / "made.html", "--device", "cpu")] * 2,
    read_made_page,
    "made.html",
)
STAGES = {"extract": EXTRACT, "train": TRAIN, "eval": EVAL, "index": INDEX, "ablate": ABLATE, "report": REPORT}


def earlier(folder: Path) -> dict[str, str]:
    """The hash of every file of an artefact that was whole before."""
    kept = [folder / "store.h5", *folder.glob("run/*.*"), *folder.glob("run/eval/store-*-test-calibration.*")]
    kept += [*folder.glob("index/*"), *folder.glob("study/*.*"), *folder.glob("study/arms/**/*.*")]
    return {str(path): file_sha256(path) for path in kept if path.is_file()}


def lasted(stage: Stage, folder: Path) -> Any:
    """What stands under the name: None while it is absent or says itself that it is not whole."""
    try:
        return stage.read(folder)
    except DataError:
        return None


@pytest.fixture(scope="module")
def undisturbed(sound, stages, tmp_path_factory) -> Callable[[str], tuple[Any, float]]:
    """What a stage makes when nothing happens to it, and how long that takes."""
    made: dict[str, tuple[Any, float]] = {}

    def of(name: str) -> tuple[Any, float]:
        if name not in made:
            folder = Path(shutil.copytree(sound, tmp_path_factory.mktemp("undisturbed") / "sound"))
            ended = stages(*STAGES[name].words(folder))
            assert ended.code == 0, ended.stderr
            made[name] = STAGES[name].read(folder), ended.seconds
        return made[name]

    return of


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_stopped_at_any_moment(copied, stages, undisturbed, times, tried, name):
    stage, random_ = STAGES[name], random.Random(name)
    wanted, seconds = undisturbed(name)
    before = earlier(copied)
    words = stage.words(copied)
    for attempt in range(2 * times):
        number = (signal.SIGKILL, signal.SIGTERM)[attempt % 2]
        ended = stages(*words, after=random_.uniform(0, seconds), number=number)
        tried[number.name, name] += 1
        assert ended.code in ((-9, 0) if number == signal.SIGKILL else (143, -15, 0)), ended  # -15: before it had begun
        assert "Traceback" not in ended.stderr, ended.stderr
        assert ended.children == 0
        assert earlier(copied) == before
        assert lasted(stage, copied) in (None, wanted)
        if lasted(stage, copied) is not None:
            start_again(copied, stage)
        words = stage.again(copied)
    if lasted(stage, copied) is None:
        ended = stages(*stage.again(copied))
        assert ended.code == 0, ended.stderr
    assert stage.read(copied) == wanted
    assert earlier(copied) == before


def start_again(folder: Path, stage: Stage) -> None:
    """Remove what was made, so that it is made once more."""
    for place in folder.glob(stage.place):
        shutil.rmtree(place) if place.is_dir() else place.unlink()


@pytest.mark.parametrize("name", STAGES)
def test_a_full_disk_is_one_message_and_loses_nothing(copied, stages, undisturbed, times, tried, name):
    stage, random_ = STAGES[name], random.Random(name)
    wanted, _ = undisturbed(name)
    before = earlier(copied)
    words = stage.words(copied)
    for most in [0, *(int(10 ** random_.uniform(2, 5.5)) for _ in range(times))]:
        ended = stages(*words, most_bytes=most)
        tried["full disk", name] += 1
        assert ended.code in (0, 3), ended
        assert "Traceback" not in ended.stderr, ended.stderr
        assert earlier(copied) == before
        assert lasted(stage, copied) in (None, wanted)
        if lasted(stage, copied) is not None:
            start_again(copied, stage)
        words = stage.again(copied)
    ended = stages(*stage.again(copied))
    assert ended.code == 0, ended.stderr
    assert stage.read(copied) == wanted


@pytest.mark.parametrize(
    "words",
    [
        ("store", "export", "store.h5", "made", "--to", "npy"),
        ("store", "export", "store.h5", "made", "--to", "safetensors"),
        ("export", "run", "-o", "made", "--to", "safetensors"),
        ("export", "run", "-o", "made", "--to", "parquet"),
    ],
    ids=" ".join,
)
def test_an_export_to_a_full_disk_is_one_message(copied, stages, tried, words):
    """Each kind of file has a writer of its own, and each library an exception of its own."""
    given = [copied / word if word in ("store.h5", "run", "made") else word for word in words]
    codes = []
    for most in (0, 300, 3000, 10_000, 30_000, 10**9):
        ended = stages(*given, most_bytes=most)
        tried["full disk", words[0]] += 1
        codes.append(ended.code)
        assert ended.code in (0, 3), ended
        assert "Traceback" not in ended.stderr, ended.stderr
        assert (copied / "made").exists() == (ended.code == 0)
        shutil.rmtree(copied / "made", ignore_errors=True)
    assert (codes[0], codes[-1]) == (3, 0)


@pytest.mark.parametrize("name", STAGES)
def test_a_place_that_cannot_be_written_to(copied, stages, undisturbed, tried, name):
    """A file stands where a folder is needed: as root too, nothing can be made in it."""
    undisturbed(name)
    (copied / "taken").write_text("mine")
    words = [
        str(word).replace(str(copied / "made"), str(copied / "taken" / "made")) for word in STAGES[name].words(copied)
    ]
    if name == "eval":
        shutil.rmtree(copied / "run" / "eval")
        (copied / "run" / "eval").write_text("mine")
    if name == "extract":
        shutil.rmtree(copied / "s.h5.partial", ignore_errors=True)
        (copied / "s.h5.partial").write_text("mine")
    ended = stages(*words)
    tried["unwritable", name] += 1
    if name == "eval":  # what it found is shown all the same
        assert (ended.code, "R@1" in ended.stdout, "not saved" in ended.stderr) == (0, True, True), ended
    else:
        assert ended.code in (2, 3), ended
    assert "Traceback" not in ended.stderr, ended.stderr
    assert "bug" not in ended.stderr
    assert (copied / "taken").read_text() == "mine"


@pytest.fixture
def stages_apart(tmp_path_factory):
    """Stages whose temporary files nobody else makes, and the folder of these."""
    temporary = tmp_path_factory.mktemp("temporary")
    stages = Stages.start(temporary)
    yield stages, temporary
    stages.stop()


def test_nothing_is_left_behind(copied, stages_apart, tried):
    """No child, no temporary file, no shared memory after each stage, whole or refused."""
    stages, temporary = stages_apart
    shared_memory = Path("/dev/shm")

    def there() -> set[str]:
        return {str(path) for place in (temporary, shared_memory) if place.is_dir() for path in place.iterdir()}

    def in_use() -> set[str]:
        """Shared memory that a living process has mapped."""
        found: set[str] = set()
        for maps in Path("/proc").glob("[0-9]*/maps"):
            with suppress(OSError):
                found |= {line.split()[-1] for line in maps.read_text().splitlines() if "/dev/shm/" in line}
        return found

    for name, stage in STAGES.items():
        before, kept = there(), set(os.listdir(copied))
        ended = stages(*stage.words(copied))
        assert ended.code == 0, ended.stderr
        assert ended.children == 0, name
        waited = time.monotonic() + 30
        while left := there() - before - in_use():
            assert time.monotonic() < waited, (name, left)  # what other processes share is gone by then
            time.sleep(0.5)
        hidden = {str(path) for path in copied.rglob(".*") if path.name != ".lock"}
        assert hidden == set(), name
        assert set(os.listdir(copied)) - kept <= {"made", "made.html", "s.h5", "images.log", "texts.log", "shards.log"}
        if name in ("train", "index", "ablate"):
            shutil.rmtree(copied / "made")
        tried["leftovers", name] += 1
