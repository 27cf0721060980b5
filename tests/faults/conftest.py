"""One sound artefact of every kind, made once; how many faults; and the table of what was tried."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from support.coloured_tar import write_tar
from support.fakes import FakeText, FakeVision, make_dataset, make_store
from support.killable import CONFIG
from support.killable_training import settings
from support.studies import write_study

from alignvl_cli.ablation.run import run_study
from alignvl_cli.ablation.setup import set_up
from alignvl_cli.ablation.study import load_study
from alignvl_cli.extraction.run import run_extraction
from alignvl_cli.retrieval.evaluate import evaluate, save_evaluation
from alignvl_cli.retrieval.index import build_index
from alignvl_cli.settings import Device
from alignvl_cli.store.reader import open_store
from alignvl_cli.training.run import train_run
from alignvl_cli.training.run_folder import load_run

TIMES = int(os.environ.get("ALIGNVL_FAULTS", "1"))
"""`make test-faults` tries this many times as much as `make test` does."""
TRIED: Counter[tuple[str, str]] = Counter()
"""(what was done, to what) -> how often."""


@pytest.fixture(scope="session")
def times() -> int:
    return TIMES


@pytest.fixture(scope="session")
def tried() -> Iterator[Counter[tuple[str, str]]]:
    """Counts what is tried; with `-s` the table is printed in the end."""
    yield TRIED
    print()
    for (what, where), count in sorted(TRIED.items()):
        print(f"{what:<12} {where:<32} {count:>6}")
    for what in sorted({what for what, _ in TRIED}):
        print(f"{what:<12} {'all':<32} {sum(count for (one, _), count in TRIED.items() if one == what):>6}")


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an artefact of every kind, never to be changed."""
    folder = tmp_path_factory.mktemp("sound")
    store = make_store(folder / "store.h5", images=60, dim=12, text_dim=10)
    list(train_run([store], folder / "run", settings()))
    run = load_run(folder / "run")
    save_evaluation(run, evaluate(run, open_store(store), "test", calibration=True))
    build_index(run, open_store(store), "all", folder / "index")
    unfinished = train_run([store], folder / "unfinished", settings(), checkpoint_s=0.0)
    list(islice(unfinished, 6))
    unfinished.close()
    study = load_study(write_study(folder / "tiny.toml", seeds="[0]"))
    list(run_study(set_up(study, store, Device.cpu, threads=1), folder / "study", processes=1))
    extraction = run_extraction(
        make_dataset(folder / "data", images=80), FakeVision(), FakeText(), folder / "x.h5", CONFIG, settings={}
    )
    list(islice(extraction, 30))
    extraction.close()
    assert (folder / "x.h5.partial").is_dir()
    write_tar(folder / "pairs.tar")
    (folder / "pairs.jsonl").write_text(
        "".join(f'{{"image": "data/{i:05d}.png", "captions": ["picture {i}", "no. {i}"]}}\n' for i in range(12))
    )
    return folder


@pytest.fixture
def copied(sound: Path, tmp_path: Path) -> Path:
    """A copy of it, free to change."""
    return Path(shutil.copytree(sound, tmp_path / "sound"))
