"""The samples of docs/data.md give the items that their JSONL twins give."""

import datasets
import pytest
from support.data_samples import PICTURES, SAMPLES, blocks, write_sample, write_twin

from alignvl_cli.datasets.formats import open_dataset, reader_of
from alignvl_cli.settings import DatasetFormat, DatasetOptions

MANIFESTS = {DatasetFormat.tsv, DatasetFormat.parquet}
"""Read like CSV; see test_pairs_manifest."""


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_the_page_has_a_sample_of_each_format():
    assert blocks().keys() == {sample.name for sample in SAMPLES}
    assert {sample.format for sample in SAMPLES} == set(DatasetFormat) - MANIFESTS
    assert {name: len(text.splitlines()) for name, text in blocks().items() if "token" in name} == {"photos.token": 10}


@pytest.mark.parametrize("layout", DatasetFormat)
def test_each_format_has_a_reader(layout):
    assert callable(reader_of(layout))


@pytest.mark.slow
@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.format.value)
def test_a_sample_gives_the_items_of_its_twin(tmp_path, sample, forced):
    spec = write_sample(sample, tmp_path)
    options = DatasetOptions(format=sample.format if forced else None)
    dataset = open_dataset(str(spec), options)
    assert dataset.record["format"] == sample.format
    root = tmp_path / "photos" if sample.format is DatasetFormat.folder else tmp_path
    twin = open_dataset(str(write_twin(sample, root, [item.id for item in dataset.items])), DatasetOptions())
    assert len(dataset.items) == len(PICTURES)
    for item, other in zip(dataset.items, twin.items, strict=True):
        assert (item.id, item.captions, item.split, item.label) == (other.id, other.captions, other.split, other.label)
        assert item.source.read() == other.source.read()
        if not sample.places_pictures:
            assert item == other
    assert (dataset.cleaned_captions, dataset.blank_captions) == (0, 0)
