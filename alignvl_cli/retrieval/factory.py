"""Which FAISS index to build, what it takes, and how its search is set.

`auto` is exact up to a million vectors; above, inverted lists of full vectors, then of 8-bit, then of product-quantised
ones, whichever is the first to fit the memory. An approximate index searches as wide as it needs to find 95 % of what
exact search finds; how much it finds is measured then, on other queries.
"""

# G gallery rows, E width, Q queries.

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from alignvl_cli.errors import UsageError
from alignvl_cli.retrieval.nearest import FLAT, agreement, faiss, require_finite, spaced

AUTO = "auto"
FLAT_UP_TO = 1_000_000
"""Vectors: 256 wide, a query takes some 50 ms on one core."""
TARGET = 0.95
"""Share of the exact first 10 that an approximate index is set to find."""
PLATEAU = 0.002
"""A search twice as wide that gains less than this gains no more: what is lost is lost by compression."""
TUNING_QUERIES = 200
WIDEST = 1 << 16
GRAPH_BYTES = 20
"""Of a graph index, a vector: level and offsets."""


def choose_factory(asked: str, vectors: int, width: int, memory: int) -> str:
    """The factory string for `auto`, or `asked` itself; UsageError when it is none, or needs more than `memory` bytes.

    The estimate is of the finished index; the float32 vectors that it is made of are in memory besides.
    """
    if asked != AUTO:
        needed = memory_bytes(asked, vectors, width)
        if needed > memory:
            raise UsageError(
                f"--factory {asked} of {vectors:,} vectors needs about {_size(needed)}, and the index may take "
                f"{_size(memory)}; choose --factory auto, or allow more with --memory"
            )
        return asked
    needs = {factory: memory_bytes(factory, vectors, width) for factory in _ladder(vectors, width)}
    for factory, needed in needs.items():
        if needed <= memory:
            return factory
    smallest = min(needs, key=needs.__getitem__)
    raise UsageError(
        f"no index of {vectors:,} vectors fits {_size(memory)}; the smallest, {smallest}, needs about "
        f"{_size(needs[smallest])}: allow more with --memory"
    )


def memory_bytes(factory: str, vectors: int, width: int) -> int:
    """What an index will take in memory, and nearly so on disk; UsageError when FAISS cannot parse `factory`."""
    index = _empty(factory, width)
    stored = faiss().downcast_index(getattr(index, "storage", index))
    try:
        code = stored.sa_code_size()
    except RuntimeError:  # an index that encodes nothing keeps the vectors as they are
        code = 4 * width
    lists = re.search(r"IVF(\d+)", factory)
    links = re.search(r"(?:HNSW|NSG)(\d+)", factory)
    centroids = 4 * width * ((int(lists[1]) if lists else 0) + (256 if "PQ" in factory else 0))
    row = code + (8 if lists else 0) + (8 * int(links[1]) + GRAPH_BYTES if links and not lists else 0)
    return vectors * row + centroids


def available_memory() -> int:
    """Bytes that programs can have now, as far as the system tells."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file() and (match := re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())):
        return int(match[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def build_vectors(factory: str, gallery_GE: np.ndarray, query_QE: np.ndarray) -> tuple[Any, dict[str, int]]:
    """A trained and filled inner-product index, and the search setting that it found for itself.

    UsageError when FAISS cannot train `factory` on this gallery, DataError on a row that is not finite.
    """
    require_finite(gallery_GE, "gallery")
    rows_GE = np.ascontiguousarray(gallery_GE, dtype=np.float32)
    index = _empty(factory, rows_GE.shape[1])
    try:
        with _without_warnings():
            index.train(rows_GE)
        index.add(rows_GE)
    except RuntimeError as problem:
        raise UsageError(f"--factory {factory}: {len(rows_GE):,} vectors do not do: {_reason(problem)}") from problem
    return index, _tuned(factory, index, query_QE[spaced(len(query_QE), TUNING_QUERIES)], rows_GE)


def _ladder(vectors: int, width: int) -> Iterator[str]:
    """From exact to small."""
    if vectors <= FLAT_UP_TO:
        yield FLAT
    lists = 2 ** max(0, round(np.log2(4 * np.sqrt(max(vectors, 1)))))
    if vectors >= 39 * lists:  # fewer points than FAISS wants to place so many centroids
        yield f"IVF{lists},Flat"
        yield f"IVF{lists},SQ8"
        if width >= 16:
            parts = width // 4
            yield f"RR{4 * parts},IVF{lists},PQ{parts}"


def _tuned(factory: str, index: Any, query_QE: np.ndarray, gallery_GE: np.ndarray) -> dict[str, int]:
    """Double the width of the search until it finds enough; the setting is kept in the index itself."""
    if "IVF" in factory:
        name, value, most = "nprobe", 1, faiss().extract_index_ivf(index).nlist
    elif "HNSW" in factory:
        name, value, most = "efSearch", 16, min(WIDEST, len(gallery_GE))
    else:
        return {}
    space, found = faiss().ParameterSpace(), -1.0
    while True:
        space.set_index_parameter(index, name, value)
        before, found = found, agreement(index, query_QE, gallery_GE).share
        if found >= TARGET or found - before < PLATEAU or value >= most:
            return {name: value}
        value = min(2 * value, most)


def _empty(factory: str, width: int) -> Any:
    try:
        index = faiss().index_factory(width, factory, faiss().METRIC_INNER_PRODUCT)
    except RuntimeError as problem:
        raise UsageError(
            f"--factory {factory}: FAISS makes no inner-product index of {width}-wide vectors from it "
            f"({_reason(problem)}); e.g. Flat, IVF1024,Flat, HNSW32, or auto"
        ) from problem
    inner = faiss().downcast_index(index.index) if isinstance(index, faiss().IndexPreTransform) else index
    if hasattr(inner, "do_polysemous_training"):
        inner.do_polysemous_training = False  # ten times as long as the rest of training, for a search not done here
    return index


@contextmanager
def _without_warnings() -> Iterator[None]:
    """While the block runs, what C code writes to stderr is dropped: FAISS warns of few vectors once for each of an
    index's parts, up to hundreds of times, and how much the index finds is measured anyway. Its errors are raised."""
    try:
        kept = os.dup(2)
    except OSError:  # a service that has closed it
        yield
        return
    if sys.stderr is not None:
        sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _reason(problem: RuntimeError) -> str:
    """The end of FAISS's message, without its source file."""
    return re.split(r"failed: |\.cpp:\d+: (?:Error: )?", str(problem))[-1].strip()


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count / 2**20:.2f} MiB"
