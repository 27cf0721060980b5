"""Approximate indexes on clustered vectors: python benchmarks/indexes.py [VECTORS WIDTH]

For each factory: the memory estimated before building and the bytes that it came to, the search setting found, the
recall measured then with its interval, the recall of 2,000 other queries, and the time of a query. Default: 200,000
vectors, 128 wide, in 1,000 clusters.
"""

import sys
import time

import numpy as np

from alignvl_cli.retrieval.factory import build_vectors, memory_bytes
from alignvl_cli.retrieval.nearest import agreement, faiss, nearest

FACTORIES = ("Flat", "IVF1024,Flat", "IVF1024,SQ8", "RR128,IVF1024,PQ32", "HNSW32", "PQ32")
CLUSTERS = 1000
SPREAD = 0.8
MIB = 2**20


def clustered(rows: int, width: int, seed: int) -> np.ndarray:
    """Unit rows (rows, width) around centres that every seed shares."""
    centres = np.random.default_rng(0).standard_normal((CLUSTERS, width)).astype(np.float32)
    draw = np.random.default_rng(seed)
    found = centres[draw.integers(0, CLUSTERS, rows)]
    found += SPREAD * draw.standard_normal((rows, width), dtype=np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def main() -> None:
    vectors, width = [int(word) for word in sys.argv[1:3]] or [200_000, 128]
    gallery, tuning, measuring, fresh = (clustered(n, width, seed) for seed, n in enumerate((vectors, 200, 1000, 2000)))
    print(f"{vectors:,} vectors, {width} wide")
    for factory in FACTORIES:
        began = time.perf_counter()
        index, setting = build_vectors(factory, gallery, tuning)
        built = time.perf_counter() - began
        stored = agreement(index, measuring, gallery)
        others = [agreement(index, half, gallery).share for half in np.split(fresh, 2)]
        began = time.perf_counter()
        nearest(index, fresh, 10)
        took = (time.perf_counter() - began) / len(fresh)
        low, high = stored.interval
        share, taken = float(np.mean(others)), faiss().serialize_index(index).size
        print(
            f"{factory:<20} {memory_bytes(factory, vectors, width) / MIB:6.1f} MiB estimated, "
            f"{taken / MIB:6.1f} came out; built in {built:5.1f} s, {setting or 'no setting'}; "
            f"recall stored {stored.share:.4f} ({low:.4f} to {high:.4f}), fresh {share:.4f} "
            f"{'inside' if low <= share <= high else 'OUTSIDE'}; {1000 * took:.2f} ms a query",
            flush=True,
        )


if __name__ == "__main__":
    main()
