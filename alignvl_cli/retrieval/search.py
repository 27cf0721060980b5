"""Search: embedded queries in, the nearest images or captions of an index out, duplicates folded."""

# Q queries, E shared width, K nearest.

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from alignvl_cli.errors import DataError, MismatchError
from alignvl_cli.retrieval.dual_encoder import DualEncoder
from alignvl_cli.retrieval.factory import is_exact
from alignvl_cli.retrieval.index import FAISS_ERRORS, Index, Items, StoreBehind
from alignvl_cli.retrieval.nearest import nearest
from alignvl_cli.settings import Gallery
from alignvl_cli.store.joined import AnyStore


@dataclass(frozen=True, slots=True)
class Hit:
    """One result, duplicates folded into it."""

    rank: int
    """From 1."""
    score: float
    """Cosine; of an index with a hub correction, cosine less the penalty. Of compressed vectors, unless rescored, an
    approximation."""
    id: str
    """Of the image; of a caption, the id of its image."""
    uri: str
    caption: str
    """The caption found, or the image's first one; empty for an image without captions."""
    count: int
    """Gallery rows that this hit stands for: images with the same content, or captions with the same text; near
    duplicates too where they were grouped."""
    duplicates: tuple[str, ...] | None = None
    """Ids of the other images that it stands for, the best first; None where near duplicates were not grouped."""

    def to_json(self) -> dict[str, Any]:
        """Without `duplicates` where there was no grouping."""
        return {name: value for name, value in asdict(self).items() if name != "duplicates" or value is not None}


SHOWN_LETTERS = 40
"""Of a text that a message names."""
Rescore = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(queries (Q, E), rows (Q, K) of a gallery, -1 for none) -> exact scores (Q, K)."""


class Looks(Protocol):
    """What a picture is compared by, to tell near duplicates."""

    def resembles(self, other: Any) -> bool: ...


Look = Callable[[str, str], Looks | None]
"""(uri, content) of an image -> what it is compared by; None: by its content alone."""


def search(
    index: Index,
    encoder: DualEncoder,
    query_QE: np.ndarray,
    *,
    k: int,
    of: Gallery,
    threshold: float | None = None,
    rescore: Rescore | None = None,
    without: Sequence[Set[str]] = (),
    look: Look | None = None,
) -> list[list[Hit]]:
    """The first `k` distinct hits of each query, embedded by `encoder` (unit rows), that score `threshold` or more.

    Fewer when the gallery has fewer, or an approximate index finds fewer. Images of the same content, and captions of
    the same text, are one hit with a count. `rescore` gives the scores of an index of compressed vectors exactly;
    `without` has, for each query, the contents (`Items.content`) that it is not to find.

    With `look` near duplicates are one hit too: from the best image on, each joins the best hit that it resembles, and
    is a hit of its own where it resembles none. So every image that scores above the (k+1)-th hit is counted; one below
    is not, whatever it resembles.

    Raises MismatchError when the index was made with other adapters than the encoder's, ValueError for k < 1.
    """
    if k < 1:
        raise ValueError(f"k should be at least 1, not {k}")
    require_same_adapters(index, encoder)
    items, vectors = index.items[of], index.vectors[of]
    left_out = without or [frozenset()] * len(query_QE)
    there = [len(items.copies) - len(items.copies.keys() & contents) for contents in left_out]
    hits: dict[int, list[Hit]] = {}
    waiting, depth = list(range(len(query_QE))), k
    while waiting:
        depth = min(2 * depth, vectors.ntotal)  # duplicates take places: look further until k distinct hits are found
        score_QK, row_QK = nearest(vectors, index.queries(query_QE[waiting]), depth)
        if rescore is not None:
            score_QK = rescore(query_QE[waiting], row_QK)
        short = []
        for position, score_K, row_K in zip(waiting, score_QK, row_QK, strict=True):
            groups, seen, is_full = _grouped(items, score_K, row_K, k, left_out[position], look)
            hits[position] = [_hit(items, rank, group, look is not None) for rank, group in enumerate(groups, start=1)]
            if not is_full and seen < there[position]:
                short.append(position)
        waiting = short if depth < vectors.ntotal else []
    lowest = -np.inf if threshold is None else threshold
    return [[hit for hit in hits[position] if hit.score >= lowest] for position in range(len(query_QE))]


def exact_scores(index: Index, encoder: DualEncoder, store: AnyStore, of: Gallery) -> Rescore | None:
    """Scores from the store's latents, of the rows that are asked for; None when the index does not know the penalties
    of its hub correction, which those of earlier versions keep in the compressed vectors alone."""
    penalty = index.items[of].penalty
    if index.record.hubness is not None and penalty is None:
        return None
    rows = store.rows(index.record.split)
    penalty_G = np.zeros(len(index.items[of].id)) if penalty is None else np.array(penalty)

    def rescore(query_QE: np.ndarray, row_QK: np.ndarray) -> np.ndarray:
        found, place = np.unique(row_QK.clip(min=0), return_inverse=True)
        if of is Gallery.image:
            unit_NE = encoder.project_image(store.image_block(rows.image[found]))
        else:
            unit_NE = encoder.project_text(store.text_block(rows.text[found]))
        each = zip(query_QE, place.reshape(row_QK.shape), strict=True)
        return np.stack([unit_NE[place_K] @ query_E - penalty_G[found][place_K] for query_E, place_K in each])

    return rescore


def scoring(
    index: Index, encoder: DualEncoder, of: Gallery, behind: Callable[[], StoreBehind]
) -> tuple[Rescore | None, str]:
    """What makes the scores of an index exact, and a sentence where nothing does: they are approximate then.

    `behind` finds the store that the index was made of, and is asked for compressed vectors alone.
    """
    factory = index.record.factory[of]
    if is_exact(factory):
        return None, ""
    found = behind()
    if found.store is not None and (rescore := exact_scores(index, encoder, found.store, of)) is not None:
        return rescore, ""
    error = (index.record.score_error or {}).get(of)
    far = "how far off is not on record" if error is None else f"found to be up to {error:.2g} off"
    gone = found.missing or (index.record.store,)
    are = "is" if len(gone) == 1 else "are"
    return None, (
        f"the scores are approximate, of vectors that {factory} has compressed ({far}), and {' and '.join(gone)}, "
        f"which exact ones come from, {are} not here; --factory Flat keeps whole vectors"
    )


def kept_vectors(
    index: Index, encoder: DualEncoder, store: AnyStore | None, row_Q: Sequence[int], of: Gallery = Gallery.image
) -> np.ndarray:
    """Unit rows (Q, E) of what is at `row_Q` of an index: from its store, else as the index keeps them, which of
    compressed vectors is near. DataError where it keeps none that can be read back."""
    if store is not None:
        rows = store.rows(index.record.split)
        if of is Gallery.image:
            return encoder.project_image(store.image_block(rows.image[list(row_Q)]))
        return encoder.project_text(store.text_block(rows.text[list(row_Q)]))
    vectors = index.vectors[of]
    try:
        kept_QE = np.stack([vectors.reconstruct(int(row)) for row in row_Q])[:, : index.record.width]
    except FAISS_ERRORS as problem:
        gone = "a store that it was made of" if index.record.stores else "the store that it was made of"
        raise DataError(
            f"{index.path}: cannot take the vectors that are in it: those of {index.record.factory[of]} are "
            f"not read back, and {gone} is not here"
        ) from problem
    return kept_QE / np.linalg.norm(kept_QE, axis=1, keepdims=True)


def cut_texts(encoder: DualEncoder, texts: Iterable[str]) -> list[str]:
    """A sentence for each text that the encoder reads the beginning of only."""
    texts = [*texts]
    tower = encoder._text  # of this room, and asked once a search
    return [
        f"{text[:SHOWN_LETTERS]!r}... has {length:,} tokens, and the text encoder reads {tower.max_length:,}: "
        "the rest has no part in the result"
        for text, length in zip(texts, tower.lengths(texts), strict=True)
        if length > tower.max_length
    ]


def require_same_adapters(index: Index, encoder: DualEncoder) -> None:
    """MismatchError, both sides named, unless the index was made with this run's adapters."""
    ours, theirs = encoder.run.config["adapters_sha256"], index.record.adapters_sha256
    if ours != theirs:
        raise MismatchError(
            f"the index {index.path} was made with {index.run_path} (adapters {theirs[:8]}), but the queries are "
            f"embedded with {encoder.run.path} (adapters {ours[:8]}); "
            f"make an index of this run: alignvl index {encoder.run.path}"
        )


def _grouped(
    items: Items, score_K: np.ndarray, row_K: np.ndarray, k: int, without: Set[str], look: Look | None
) -> tuple[list[list[tuple[int, float]]], int, bool]:
    """The first `k` groups of rows of distinct content, with their scores, best first and equal scores by row; how many
    contents were seen; and whether looking further could change the groups no more."""
    groups: list[list[tuple[int, float]]] = []
    looks: list[Looks | None] = []
    seen: set[str] = set()
    for place in np.lexsort((row_K, -score_K)):
        row = int(row_K[place])
        if row < 0:  # an approximate index found no more
            continue
        content = items.content[row]
        if content in without or content in seen:
            continue
        seen.add(content)
        mine = None if look is None else look(items.uri[row], content)
        alike = (at for at, theirs in enumerate(looks) if theirs is not None and theirs.resembles(mine))
        if mine is not None and (group := next(alike, None)) is not None:
            groups[group].append((row, float(score_K[place])))
            continue
        if len(groups) == k:
            return groups, len(seen), True
        groups.append([(row, float(score_K[place]))])
        looks.append(mine)
        if look is None and len(groups) == k:
            return groups, len(seen), True
    return groups, len(seen), False


def _hit(items: Items, rank: int, group: Sequence[tuple[int, float]], is_grouped: bool) -> Hit:
    (row, score), *_ = group
    contents = [items.content[member] for member, _ in group]
    duplicates = None
    if is_grouped:
        copies = (copy for content in contents for copy in items.rows_of[content])
        duplicates = tuple(items.id[copy] for copy in copies if copy != row)
    return Hit(
        rank=rank,
        score=score,
        id=items.id[row],
        uri=items.uri[row],
        caption=items.caption[row],
        count=sum(items.copies[content] for content in contents),
        duplicates=duplicates,
    )
