"""Approximate indexes on clustered vectors: python benchmarks/indexes.py [VECTORS WIDTH [SEED...]]

For each seed and factory: the memory estimated before building and the bytes that it came to, the search setting found,
the recall measured then with its interval (for a new measurement), the recall of 10 new measurements of 1,000 other
queries each and how many of them fall inside, and the time of a query. At the end, how many fell inside over all seeds:
95 % should. Default: 200,000 vectors, 128 wide, in 1,000 clusters, seed 0.
"""

import sys
import time
from collections import defaultdict

import numpy as np

from alignvl_cli.retrieval.factory import build_vectors, memory_bytes
from alignvl_cli.retrieval.nearest import agreement, faiss, nearest

FACTORIES = ("Flat", "IVF1024,Flat", "IVF1024,SQ8", "RR128,IVF1024,PQ32", "HNSW32", "PQ32")
CLUSTERS = 1000
SPREAD = 0.8
NEW = 10
QUERIES = 1000
MIB = 2**20


def clustered(rows: int, width: int, draw: np.random.Generator, centre_CE: np.ndarray) -> np.ndarray:
    """Unit rows (rows, width) around the centres."""
    found = centre_CE[draw.integers(0, len(centre_CE), rows)]
    found += SPREAD * draw.standard_normal((rows, width), dtype=np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def measure(vectors: int, width: int, seed: int) -> dict[str, list[bool]]:
    """Factory -> whether each new measurement is inside the stored interval; prints a line a factory."""
    draw = np.random.default_rng(seed)
    centre_CE = draw.standard_normal((CLUSTERS, width), dtype=np.float32)
    sizes = (vectors, 200, QUERIES, NEW * QUERIES)
    gallery, tuning, measuring, fresh = (clustered(rows, width, draw, centre_CE) for rows in sizes)
    print(f"{vectors:,} vectors, {width} wide, seed {seed}")
    inside = {}
    for factory in FACTORIES:
        began = time.perf_counter()
        index, setting = build_vectors(factory, gallery, tuning)
        built = time.perf_counter() - began
        stored = agreement(index, measuring, gallery)
        shares = [agreement(index, part, gallery).share for part in np.split(fresh, NEW)]
        began = time.perf_counter()
        nearest(index, fresh[:QUERIES], 10)
        took = (time.perf_counter() - began) / QUERIES
        low, high = stored.interval
        inside[factory] = [low <= share <= high for share in shares]
        print(
            f"{factory:<20} {memory_bytes(factory, vectors, width) / MIB:6.1f} MiB estimated, "
            f"{faiss().serialize_index(index).size / MIB:6.1f} came out; built in {built:5.1f} s, "
            f"{setting or 'no setting'}; recall stored {stored.share:.4f} ({low:.4f} to {high:.4f}), "
            f"new {np.mean(shares):.4f} ({min(shares):.4f} to {max(shares):.4f}), "
            f"{sum(inside[factory])} of {NEW} inside; {1000 * took:.2f} ms a query",
            flush=True,
        )
    return inside


def main() -> None:
    vectors, width, *seeds = [int(word) for word in sys.argv[1:]] or [200_000, 128]
    total: dict[str, list[bool]] = defaultdict(list)
    for seed in seeds or [0]:
        for factory, found in measure(vectors, width, seed).items():
            total[factory] += found
    for factory, found in total.items():
        print(f"{factory:<20} {sum(found)} of {len(found)} new measurements inside the stored interval")


if __name__ == "__main__":
    main()
