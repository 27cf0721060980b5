"""Bytes of every artefact flipped, and files cut short: what is read then is exactly right, or a clear error."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from support.fakes import FakeText, FakeVision, make_dataset
from support.killable import CONFIG as EXTRACT_CONFIG

from alignvl_cli.ablation.analysis import read_ranks, read_validations
from alignvl_cli.ablation.records import RESULTS, read_study, read_verdicts
from alignvl_cli.artifacts import read_json
from alignvl_cli.datasets.dataset import Dataset
from alignvl_cli.datasets.formats import open_dataset
from alignvl_cli.errors import DataError, MismatchError
from alignvl_cli.extraction.plan import existing_store_matches, make_plan
from alignvl_cli.extraction.run import run_extraction
from alignvl_cli.extraction.up_to_date import compare_pictures
from alignvl_cli.retrieval.evaluate import read_evaluation
from alignvl_cli.retrieval.index import open_index
from alignvl_cli.settings import DatasetOptions, Gallery
from alignvl_cli.store.reader import open_store
from alignvl_cli.training.checkpoint import read_checkpoint
from alignvl_cli.training.run_folder import ENVIRONMENT, METRICS, RunWriter, load_run, load_unfinished


def of_arrays(arrays: dict[str, Any]) -> str:
    """A hash of names, shapes, types and bits."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        array = np.ascontiguousarray(array)
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def read_store(folder: Path) -> Any:
    store = open_store(folder / "store.h5")
    store.verify()
    numbers = {
        "image": store.image_block(slice(None)), "text": store.text_block(slice(None)), "split": store.image_split,
        "owner": store.text_image, "sha256": store.image_sha256,
    }  # fmt: skip
    texts = [store.image_id, store.image_uri, store.image_label, store.text_caption, list(map(asdict, store.rejected))]
    about = [store.vision, store.text, store.dataset, store.made_by, store.content_hash, store.encoder_hash]
    return of_arrays(numbers), texts, store.split_names, about


def read_run(folder: Path) -> Any:
    run = load_run(folder / "run")
    numbers = {name: tensor.numpy() for name, tensor in run.adapters.state_dict().items()}
    environment = read_json(folder / "run" / ENVIRONMENT, "environment")
    return of_arrays(numbers), run.config, run.result, read_validations(folder / "run"), environment, run.temperature


def read_saved_evaluation(folder: Path) -> Any:
    path = next((folder / "run" / "eval").glob("store-*-test-calibration.json"))
    return read_evaluation(path), pyarrow.parquet.read_table(path.with_suffix(".parquet")).to_pydict()


def read_unfinished(folder: Path) -> Any:
    unfinished = load_unfinished(folder / "unfinished")
    tensors, state = read_checkpoint(folder / "unfinished")
    RunWriter.reopen(
        folder / "unfinished", unfinished.config, state["metrics_bytes"], state["metrics_sha256"]
    )._metrics.close()
    lines = (folder / "unfinished" / METRICS).read_text()
    return of_arrays({name: tensor.numpy() for name, tensor in tensors.items()}), state, unfinished.config, lines


def read_index(folder: Path) -> Any:
    index = open_index(folder / "index")
    vectors = {side.value: index.vectors[side].reconstruct_n(0, index.vectors[side].ntotal) for side in Gallery}
    return of_arrays(vectors), index.record.to_json(), {side.value: asdict(index.items[side]) for side in Gallery}


def read_whole_study(folder: Path) -> Any:
    verdicts = read_verdicts(folder / "study")
    ranks = read_ranks(folder / "study", "plain", "image_to_text")
    results = pyarrow.parquet.read_table(folder / "study" / RESULTS).to_pydict()
    return verdicts, read_study(folder / "study"), repr(results), of_arrays({"0": ranks.by_seed[0]})


def read_extraction(folder: Path) -> Any:
    """Unfinished work taken up: the store it ends in, which is the same one wherever shards are made again."""
    dataset = make_dataset(folder / "data", images=80)
    list(run_extraction(dataset, FakeVision(), FakeText(), folder / "x.h5", EXTRACT_CONFIG, settings={}))
    return open_store(folder / "x.h5").content_hash


@dataclass(frozen=True)
class Artefact:
    read: Callable[[Path], Any]
    pattern: str
    count: int = 20
    """Faults a file in the short form."""


ARTEFACTS = {
    "store": Artefact(read_store, "store.h5", 60),
    "adapters": Artefact(read_run, "run/adapters.safetensors"),
    "run records": Artefact(read_run, "run/*.json*"),
    "evaluation": Artefact(read_saved_evaluation, "run/eval/*"),
    "checkpoint": Artefact(read_unfinished, "unfinished/checkpoint/*"),
    "unfinished run": Artefact(read_unfinished, "unfinished/[cm]*.json*"),
    "index": Artefact(read_index, "index/*"),
    "study": Artefact(read_whole_study, "study/*.*[nt]"),
    "extraction": Artefact(read_extraction, "x.h5.partial/*.[jn]*", 6),
}


def damages(data: bytes, random_: random.Random, count: int) -> Iterator[tuple[str, bytes]]:
    """`count` times one byte changed, a stretch overwritten, or the file cut short, somewhere."""
    for number in range(count):
        place = random_.randrange(len(data))
        if number % 4 == 3:
            yield f"cut at {place}", data[:place]
        elif number % 4 == 2:
            length = random_.randrange(1, 64)
            noise = bytes(random_.randrange(256) for _ in range(length))
            yield f"{length} bytes overwritten at {place}", data[:place] + noise + data[place + length :]
        else:
            bit = 1 << random_.randrange(8)
            yield f"bit {bit} flipped at {place}", data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]


def outcome(read: Callable[[Path], Any], folder: Path) -> Any:
    """What is read, as text; None for one clear error. Anything else leaves as it is, and fails."""
    try:
        return repr(read(folder))
    except (DataError, MismatchError) as problem:  # exit codes 3 and 4
        return None if str(folder) in str(problem) else f"an error that names no file: {problem}"


@pytest.mark.parametrize("name", ARTEFACTS)
def test_a_damaged_artefact_is_exactly_right_or_refused(copied, tmp_path, times, tried, name):
    artefact = ARTEFACTS[name]
    files = sorted(copied.glob(artefact.pattern))
    assert files
    whole = copied
    if artefact.read is read_extraction:
        copied = shutil.copytree(whole, tmp_path / "first")
    wanted = outcome(artefact.read, copied)
    assert wanted is not None
    wrong, refused = [], 0
    for path in files:
        data = path.read_bytes()
        random_ = random.Random(f"{name} {path.name}")
        for how, damaged in damages(data, random_, artefact.count * times):
            place = path
            if artefact.read is read_extraction:  # the work is over once it was taken up: always from a new copy
                shutil.rmtree(copied)
                place = shutil.copytree(whole, copied) / path.relative_to(whole)
            place.write_bytes(damaged)
            try:
                found = outcome(artefact.read, copied)
            except BaseException as problem:
                raise AssertionError(f"{path.name}, {how}: {problem!r}") from problem
            refused += found is None
            if found not in (None, wanted):
                wrong.append(f"{path.name}, {how}")
            tried["corruption", name] += 1
        path.write_bytes(data)
    assert wrong == []
    assert refused or name == "extraction", "no damage was noticed at all"


@pytest.mark.parametrize("name", ["pairs.tar", "pairs.jsonl"])
def test_damaged_sources_are_another_dataset_or_refused(copied, times, tried, name):
    """Nobody's digest tells what a tar or a manifest should hold: what must not be is the same plan and the same
    images with other contents, which an existing store would pass for: `extract` would find nothing to do."""
    path, store = copied / name, copied / "of-sources.h5"
    data = path.read_bytes()
    vision, text = FakeVision(), FakeText()

    def contents() -> Any:
        dataset = open_dataset(str(path), DatasetOptions())
        return dataset, [(item.id, item.captions, item.split, item.source.read()) for item in dataset.items]

    def passes_for_the_same(dataset: Dataset) -> bool:
        if not existing_store_matches(store, make_plan(dataset, vision, text, EXTRACT_CONFIG)):
            return False
        *_, found = compare_pictures(store, dataset, vision.preprocess, EXTRACT_CONFIG)
        return found.is_same and not found.gone

    dataset, before = contents()
    list(run_extraction(dataset, vision, text, store, EXTRACT_CONFIG, settings={}))
    assert passes_for_the_same(dataset)
    random_ = random.Random(name)
    for how, damaged in damages(data, random_, 60 * times):
        path.write_bytes(damaged)
        try:
            is_same = passes_for_the_same(open_dataset(str(path), DatasetOptions()))
        except DataError:
            is_same = False
        assert not is_same or contents()[1] == before, how
        tried["corruption", name] += 1


def test_a_record_without_its_seal_is_of_an_earlier_version(copied):
    path = copied / "run" / "result.json"
    before = read_json(path, "result")
    path.write_text(json.dumps(before))
    del before["sha256"]  # of the files beside it: checked, and no part of what the training found
    assert load_run(copied / "run").result == before


def test_the_changed_number_is_named(copied):
    path = copied / "run" / "result.json"
    text = path.read_text()
    changed = text.replace('"mean_recall": ', '"mean_recall": 1', 1)
    assert changed != text
    path.write_text(changed)
    with pytest.raises(DataError, match=r"result\.json: .*damaged or was edited"):
        load_run(copied / "run")
