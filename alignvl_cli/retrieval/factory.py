"""Which FAISS index to build, what it takes, and how its search is set.

`auto` is exact up to a million vectors; above, inverted lists of full vectors, then of 8-bit, then of product-quantised
ones, whichever is the first to fit the memory. An approximate index searches as wide as it needs to find 95 % of what
exact search finds; how much it finds is measured then, on other queries.
"""

# G gallery rows, E width, Q queries.

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from alignvl_cli.errors import UsageError
from alignvl_cli.retrieval.nearest import AGREEMENT_K, FLAT, agreement, faiss, nearest, require_finite, spaced

AUTO = "auto"
FLAT_UP_TO = 1_000_000
"""Vectors: 256 wide, a query takes some 50 ms on one core."""
TARGET = 0.95
"""Share of the exact first 10 that an approximate index is set to find."""
PLATEAU = 0.002
"""A search twice as wide that gains less than this gains no more: what is lost is lost by compression."""
TUNING_QUERIES = 200
WIDEST = 1 << 16
LARGEST = {"IVF": 1 << 24, "x": 16}
"""Part of a factory string -> the greatest number after it, 65,536 after any other: FAISS makes room before it asks."""
SOUND = re.compile(r"Flat|HNSW\d+|(RR\d+,)?IVF\d+,(Flat|SQ8|PQ\d+)")
"""Factories that are built in this process; any other might end it, or heed no Ctrl-C, and gets one of its own."""
EXACT = re.compile(r"(IVF\w+,)?Flat|(HNSW|NSG)\d+(,Flat)?|.*,RFlat")
"""Factories whose scores are the products of the very vectors; those of any other are approximations."""
GRAPH_BYTES = 20
"""Of a graph index, a vector: level and offsets."""


def choose_factory(asked: str, vectors: int, width: int, memory: int) -> str:
    """The factory string for `auto`, or `asked` itself; UsageError when it is none, or needs more than `memory` bytes.

    The estimate is of the finished index; the float32 vectors that it is made of are in memory besides.
    """
    if asked != AUTO:
        _require_sound(asked, np.empty((0, width), dtype=np.float32))
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

    UsageError when FAISS cannot train `factory` on this gallery, or dies of it; DataError on a row that is not finite.
    """
    require_finite(gallery_GE, "gallery")
    rows_GE = np.ascontiguousarray(gallery_GE, dtype=np.float32)
    _require_sound(factory, rows_GE)
    if SOUND.fullmatch(factory) is None:
        return _built_apart(factory, rows_GE, query_QE)
    return _built(factory, rows_GE, query_QE)


def is_exact(factory: str) -> bool:
    """Whether an index of this factory scores with the very vectors, whichever it finds."""
    return EXACT.fullmatch(factory) is not None


def score_error(index: Any, query_QE: np.ndarray, gallery_GE: np.ndarray) -> float:
    """How far the scores of the first 10 are from the products with the gallery's rows: the largest difference that up
    to 200 queries see."""
    asked_QE = query_QE[spaced(len(query_QE), TUNING_QUERIES)]
    score_QK, row_QK = nearest(index, asked_QE, AGREEMENT_K)
    exact_QK = np.einsum("qe,qke->qk", asked_QE, gallery_GE[row_QK.clip(min=0)])
    return float(np.abs(score_QK - exact_QK)[row_QK >= 0].max(initial=0.0))


def _require_sound(factory: str, rows_GE: np.ndarray) -> None:
    """UsageError for what FAISS would crash on, or not come to an end with."""
    for part, number in re.findall(r"([A-Za-z]*)(\d+)", factory):
        least, most = (2 if part == "HNSW" else 1), LARGEST.get(part, 1 << 16)
        if len(number) > 9 or not least <= int(number) <= most:
            raise UsageError(f"--factory {factory}: wanted {least} to {most:,} after {part}, got {number}")
    if "NSG" in factory and (repeated := len(rows_GE) - len({row.tobytes() for row in rows_GE})):
        raise UsageError(
            f"--factory {factory}: NSG does not come to an end on equal vectors, and {repeated:,} of {len(rows_GE):,} "
            "repeat another; choose HNSW32, or auto"
        )


def _built_apart(factory: str, rows_GE: np.ndarray, query_QE: np.ndarray) -> tuple[Any, dict[str, int]]:
    """As `_built`, in a process of its own, which goes when this one is interrupted."""
    with tempfile.TemporaryDirectory(prefix="alignvl-index-") as name:
        folder = Path(name)
        np.save(folder / "rows.npy", rows_GE)
        np.save(folder / "queries.npy", query_QE)
        code = "import sys\nfrom alignvl_cli.retrieval.factory import build_in\nbuild_in(*sys.argv[1:])"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        child = subprocess.Popen(
            [sys.executable, "-c", code, name, factory], env=environment, stderr=subprocess.DEVNULL
        )
        try:
            status = child.wait()
        finally:
            child.kill()
            child.wait()
        if not (folder / "told.json").is_file():
            how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
            raise UsageError(
                f"--factory {factory}: FAISS ended {how} while it built this index of {len(rows_GE):,} vectors; choose "
                "another, e.g. HNSW32, or auto"
            )
        told = json.loads((folder / "told.json").read_text(encoding="utf-8"))
        if "problem" in told:
            raise UsageError(told["problem"])
        return faiss().read_index(str(folder / "index.faiss")), told["search"]


def build_in(name: str, factory: str) -> None:
    """The other process: build what `_built_apart` left in the folder `name`, and search it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    folder = Path(name)
    rows_GE, query_QE = np.load(folder / "rows.npy"), np.load(folder / "queries.npy")
    try:
        index, search = _built(factory, rows_GE, query_QE)
        nearest(index, query_QE[:TUNING_QUERIES], AGREEMENT_K)
        faiss().write_index(index, str(folder / "index.faiss"))
        told: dict[str, Any] = {"search": search}
    except UsageError as problem:
        told = {"problem": str(problem)}
    except RuntimeError as problem:
        told = {"problem": f"--factory {factory}: this index can be made, and not searched: {_reason(problem)}"}
    (folder / "told.json").write_text(json.dumps(told), encoding="utf-8")


def _built(factory: str, rows_GE: np.ndarray, query_QE: np.ndarray) -> tuple[Any, dict[str, int]]:
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
