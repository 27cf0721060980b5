"""Search: texts or pictures in, the nearest images or captions of an index out, duplicates folded."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from alignvl_cli.errors import MismatchError
from alignvl_cli.retrieval.encoder import DualEncoder
from alignvl_cli.retrieval.hits import Gallery, Hit
from alignvl_cli.retrieval.index import Index, Items
from alignvl_cli.retrieval.nearest import nearest

Query = str | Path | Image.Image
"""A `str` is a text; a `Path` or a PIL picture is an image."""


def search(
    index: Index, encoder: DualEncoder, queries: Sequence[Query], k: int, of: Gallery | None = None
) -> list[list[Hit]]:
    """The first `k` distinct hits of each query, in the order of the queries; fewer when the gallery has fewer.

    A text asks the images and an image the captions, unless `of` names the gallery. Images of the same content, and
    captions of the same text, are one hit with a count. Raises MismatchError when the index was made with other
    adapters, DataError for an unreadable image.
    """
    require_same_adapters(index, encoder)
    found: dict[int, list[Hit]] = {}
    texts = [position for position, query in enumerate(queries) if isinstance(query, str)]
    images = [position for position, query in enumerate(queries) if not isinstance(query, str)]
    if texts:
        query_QE = encoder.encode_text([queries[position] for position in texts])
        found |= zip(texts, nearest_distinct(index, of or Gallery.image, query_QE, k), strict=True)
    if images:
        query_QE = encoder.encode_image([queries[position] for position in images])
        found |= zip(images, nearest_distinct(index, of or Gallery.text, query_QE, k), strict=True)
    return [found[position] for position in range(len(queries))]


def nearest_distinct(index: Index, gallery: Gallery, query_QE: np.ndarray, k: int) -> list[list[Hit]]:
    """The first `k` distinct hits of each embedded query (unit rows); ValueError for k < 1."""
    if k < 1:
        raise ValueError(f"k should be at least 1, not {k}")
    items, vectors = index.items[gallery], index.faiss[gallery]
    wanted = min(k, len(items.copies))
    hits: dict[int, list[Hit]] = {}
    waiting, depth = list(range(len(query_QE))), k
    while waiting:
        depth = min(2 * depth, vectors.ntotal)  # duplicates take places: look further until k distinct hits are found
        score_QK, row_QK = nearest(vectors, query_QE[waiting], depth)
        for position, score_K, row_K in zip(waiting, score_QK, row_QK, strict=True):
            hits[position] = _fold(items, score_K, row_K, k)
        waiting = [position for position in waiting if len(hits[position]) < wanted]
    return [hits[position] for position in range(len(query_QE))]


def require_same_adapters(index: Index, encoder: DualEncoder) -> None:
    """MismatchError, both sides named, unless the index was made with this run's adapters."""
    run = encoder.run
    if index.record["adapters_sha256"] != run.config["adapters_sha256"]:
        raise MismatchError(
            f"the index {index.path} was made with {index.run_path} (adapters {index.record['adapters_sha256'][:8]}), "
            f"but the queries would be embedded with {run.path} (adapters {run.config['adapters_sha256'][:8]}); "
            f"make an index of this run: alignvl index {run.path}"
        )


def _fold(items: Items, score_K: np.ndarray, row_K: np.ndarray, k: int) -> list[Hit]:
    """The first `k` distinct rows, best first and equal scores by row."""
    hits: dict[str, Hit] = {}
    for place in np.lexsort((row_K, -score_K)):
        row = int(row_K[place])
        content = items.content[row]
        if content not in hits:
            hits[content] = Hit(
                rank=len(hits) + 1,
                score=float(score_K[place]),
                id=items.id[row],
                uri=items.uri[row],
                caption=items.caption[row],
                count=items.copies[content],
            )
        if len(hits) == k:
            break
    return list(hits.values())
