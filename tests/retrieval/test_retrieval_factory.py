"""Index factories: memory, the ladder of `auto`, and recall that is what a fresh measurement finds."""

import os
import re
import sys

import numpy as np
import pytest
import torch

from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.retrieval.factory import (
    FLAT_UP_TO,
    available_memory,
    build_vectors,
    choose_factory,
    is_exact,
    memory_bytes,
    score_error,
)
from alignvl_cli.retrieval.nearest import agreement, faiss, nearest

GIB = 2**30


def clustered(rows: int, width: int, seed: int, clusters: int = 50) -> np.ndarray:
    """Unit rows around common centres."""
    centre = np.random.default_rng(99).standard_normal((clusters, width))
    draw = np.random.default_rng(seed)
    found = centre[draw.integers(0, clusters, rows)] + 0.7 * draw.standard_normal((rows, width))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("factory", ["Flat", "IVF16,Flat", "IVF16,SQ8", "RR32,IVF16,PQ8", "HNSW16", "PQ8", "SQ8"])
def test_the_estimate_is_what_the_index_takes(factory):
    rows = clustered(5000, 32, 0)
    index, _ = build_vectors(factory, rows, rows[:50])
    taken = faiss().serialize_index(index).size
    assert memory_bytes(factory, 5000, 32) == pytest.approx(taken, rel=0.15)


@pytest.mark.parametrize("factory", ["IVF32,Flat", "HNSW16", "RR32,IVF32,PQ4", "IVF32,SQ8"])
def test_an_approximate_index_is_set_to_find_enough_and_its_measure_holds_for_other_queries(factory):
    rows = clustered(3000, 32, 0)
    index, setting = build_vectors(factory, rows, clustered(200, 32, 1))
    assert list(setting) == (["efSearch"] if "HNSW" in factory else ["nprobe"])
    stored = agreement(index, clustered(600, 32, 2), rows)
    fresh = agreement(index, clustered(1000, 32, 3), rows)
    low, high = stored.interval
    assert low <= fresh.share <= high
    if "PQ" not in factory:
        assert stored.share > 0.9
    again = faiss().deserialize_index(faiss().serialize_index(index))
    assert agreement(again, clustered(600, 32, 2), rows) == stored, "the setting is kept in the file"


def test_a_flat_index_needs_no_setting():
    rows = clustered(100, 16, 0)
    index, setting = build_vectors("Flat", rows, rows)
    assert setting == {}
    assert agreement(index, rows, rows).share == 1.0


def test_rows_that_an_approximate_index_does_not_find_count_as_missed():
    rows = np.eye(16, dtype=np.float32)
    index, _ = build_vectors("IVF16,Flat", rows, rows)
    faiss().ParameterSpace().set_index_parameter(index, "nprobe", 1)
    _, row_QK = nearest(index, rows, 10)
    assert (row_QK[:, 1:] == -1).all()
    assert agreement(index, rows, rows).share == pytest.approx(0.1)


@pytest.mark.parametrize("bad", ["Nonsense", "", "IVF", "PQ7"])
def test_a_factory_that_faiss_does_not_know_is_a_usage_error(bad):
    with pytest.raises(UsageError, match="--factory") as caught:
        choose_factory(bad, 1000, 32, GIB)
    assert ".cpp" not in str(caught.value)


def test_too_few_vectors_to_train_on_are_said():
    rows = clustered(20, 16, 0)
    with pytest.raises(UsageError, match="20 vectors do not do"):
        build_vectors("IVF64,Flat", rows, rows)


def test_a_row_that_is_not_finite_is_refused():
    rows = clustered(20, 16, 0)
    rows[7, 3] = np.nan
    with pytest.raises(DataError, match="gallery embedding 7"):
        build_vectors("Flat", rows, rows)


def test_auto_is_exact_while_it_fits_and_smaller_where_it_must():
    assert choose_factory("auto", 10, 256, GIB) == "Flat"
    assert choose_factory("auto", FLAT_UP_TO, 256, 2 * GIB) == "Flat"
    assert choose_factory("auto", FLAT_UP_TO + 1, 256, 2 * GIB) == "IVF4096,Flat"
    assert choose_factory("auto", FLAT_UP_TO, 256, GIB // 2) == "IVF4096,SQ8"
    assert choose_factory("auto", FLAT_UP_TO, 257, GIB // 8) == "RR256,IVF4096,PQ64"
    sizes = [memory_bytes(factory, 10**6, 256) for factory in ("IVF4096,Flat", "IVF4096,SQ8", "RR256,IVF4096,PQ64")]
    assert sizes == sorted(sizes, reverse=True)


def test_what_does_not_fit_is_refused_with_both_sizes():
    with pytest.raises(UsageError, match=r"needs about 9\.54 GiB, and the index may take 1\.00 GiB.*--factory auto"):
        choose_factory("Flat", 10_000_000, 256, GIB)
    with pytest.raises(UsageError, match="the smallest, Flat"):
        choose_factory("auto", 1000, 256, 1000)


@pytest.mark.parametrize("factory", ["IVF4,PQ8", "OPQ8,IVF4,PQ8", "IVF4,PQ8,RFlat"])
def test_faiss_warns_of_no_part_by_part(capfd, factory):
    build_vectors(factory, clustered(300, 16, 0), clustered(20, 16, 1))
    os.write(2, b"still heard")
    assert capfd.readouterr() == ("", "still heard")


def test_a_service_that_has_closed_its_stderr_builds_indexes_too(monkeypatch):
    rows = clustered(300, 16, 0)
    monkeypatch.setattr(sys, "stderr", None)
    assert build_vectors("IVF4,PQ8", rows, rows[:20])[0].ntotal == 300
    kept = os.dup(2)
    os.close(2)
    try:
        assert build_vectors("IVF4,PQ8", rows, rows[:20])[0].ntotal == 300
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def test_the_machine_has_memory():
    assert 2**26 < available_memory() < 2**50


def test_faiss_takes_as_many_threads_as_torch():
    assert faiss().omp_get_max_threads() <= torch.get_num_threads()


@pytest.mark.parametrize(
    "factory", ["HNSW0", "HNSW1", "IVF0,Flat", "PQ0", "IVF4,PQ4x30", "RR99999999,Flat", "HNSW" + "9" * 5000]
)
def test_a_number_that_faiss_would_crash_on_is_refused(factory):
    with pytest.raises(UsageError, match=r"--factory .*: wanted"):
        build_vectors(factory, clustered(200, 16, 0), clustered(20, 16, 1))


def test_nsg_of_equal_vectors_is_refused_and_of_others_built():
    rows = clustered(200, 16, 0)
    index, _ = build_vectors("NSG16", rows, rows[:20])
    assert index.ntotal == 200
    with pytest.raises(UsageError, match=r"does not come to an end on equal vectors, and 200 of 400 repeat"):
        build_vectors("NSG16", np.concatenate([rows, rows]), rows[:20])


def test_what_ends_faiss_ends_another_process(monkeypatch):
    monkeypatch.setattr("alignvl_cli.retrieval.factory._require_sound", lambda *_: None)
    monkeypatch.setattr("alignvl_cli.retrieval.factory.SOUND", re.compile("none"))
    with pytest.raises(UsageError, match="FAISS ended by SIG"):
        build_vectors("HNSW1", clustered(200, 16, 0), clustered(20, 16, 1))


@pytest.mark.parametrize(("factory", "is_it"), [("IVF4,Flat", True), ("HNSW8", True), ("SQ8", False), ("PQ8", False)])
def test_whether_scores_are_exact_is_told_from_the_factory(factory, is_it):
    rows = clustered(300, 16, 0)
    index, _ = build_vectors(factory, rows, rows[:20])
    assert is_exact(factory) == is_it
    assert (score_error(index, rows[:20], rows) < 1e-5) == is_it
