"""Each format's sample in docs/data.md gives the same store datasets as its JSONL twin."""

import datasets
import numpy as np
import pytest
from support.data_samples import SAMPLES, write_sample, write_twin
from support.fakes import FakeText, FakeVision
from support.stored import stored_datasets

from alignvl_cli.datasets.formats import open_dataset
from alignvl_cli.extraction.run import run_extraction
from alignvl_cli.settings import DatasetFormat, DatasetOptions, ExtractConfig


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def store_datasets(dataset, output):
    """Every dataset of the store that an extraction with the fakes writes, by name."""
    list(run_extraction(dataset, FakeVision(), FakeText(), output, ExtractConfig(workers=0), settings={}))
    return stored_datasets(output)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.format.value)
def test_a_sample_gives_the_store_datasets_of_its_twin(tmp_path, sample):
    dataset = open_dataset(str(write_sample(sample, tmp_path)), DatasetOptions())
    root = tmp_path / "photos" if sample.format is DatasetFormat.folder else tmp_path
    twin = open_dataset(str(write_twin(sample, root, [item.id for item in dataset.items])), DatasetOptions())
    here = store_datasets(dataset, tmp_path / "here.h5")
    there = store_datasets(twin, tmp_path / "there.h5")
    assert here.keys() == there.keys()
    assert len(here["image/latent"]) == 5
    assert len(here["text/latent"]) == 10
    placed = {name for name in here if "image/uri" in name} if sample.places_pictures else set()
    for name in here.keys() - placed:
        assert np.array_equal(here[name], there[name]), name
    assert placed == ({"image/uri", "digest/image/uri"} if sample.places_pictures else set())
