"""What is searched with: texts, pictures, images of the index, and weighted sums of them, as unit rows."""

# Q queries, N terms, E shared width.

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alignvl_cli.errors import UsageError
from alignvl_cli.retrieval.dual_encoder import DualEncoder, Picture
from alignvl_cli.retrieval.index import Index
from alignvl_cli.retrieval.search import kept_vectors
from alignvl_cli.settings import Gallery, did_you_mean
from alignvl_cli.store.joined import BEFORE_ID, AnyStore

WEIGHT = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\*(.*)", re.DOTALL)
SMALLEST_SUM = 1e-3
"""Of the length of the weighted sum, in units of its weights: below, the terms cancel each other out."""


@dataclass(frozen=True, slots=True)
class Like:
    """An image of the index, by its id: more like this. Its stored vector is searched with; nothing is encoded."""

    id: str


@dataclass(frozen=True, slots=True)
class Combined:
    """A weighted sum of texts, pictures and images of the index; what has a negative weight is searched away from.

    `Combined((1, Path("photo.jpg")), (2, "at night"), (-0.5, "truck"))`.
    """

    terms: tuple[tuple[float, "str | Picture | Like"], ...]

    def __init__(self, *terms: "tuple[float, str | Picture | Like]") -> None:
        object.__setattr__(self, "terms", terms)


Query = str | Picture | Like | Combined


def terms_of(query: Query) -> tuple[tuple[float, str | Picture | Like], ...]:
    """Weights and parts; anything but a sum is its own only part."""
    return query.terms if isinstance(query, Combined) else ((1.0, query),)


def weighted(written: str) -> tuple[float, str]:
    """`2*at night` -> (2.0, "at night"); a text without a weight has 1."""
    match = WEIGHT.fullmatch(written)
    return (float(match[1]), match[2].strip()) if match else (1.0, written)


def told(terms: Sequence[tuple[float, str]]) -> str:
    """A sum of named terms in words: `photo.jpg + 2*at night - truck`; one term of weight 1 is its own name."""
    text = ""
    for weight, name in terms:
        sign = ("-" if weight < 0 else "") if not text else (" - " if weight < 0 else " + ")
        text += sign + ("" if abs(weight) == 1 else f"{abs(weight):g}*") + name
    return text


def combine(unit_NE: Sequence[np.ndarray], weight_N: Sequence[float]) -> np.ndarray:
    """The unit row (E,) along sum_n weight_n unit_n. UsageError for weights that are not finite or all 0, and for terms
    that cancel each other out."""
    total = float(np.abs(weight_N).sum())
    if not np.isfinite(total) or total == 0:
        raise UsageError(f"a combined query wants finite weights that are not all 0, got {list(weight_N)}")
    if len(unit_NE) == 1 and weight_N[0] > 0:
        return unit_NE[0]
    share_N = np.asarray(weight_N, dtype=np.float64) / total  # whose sum no weight makes overflow
    sum_E = np.einsum("n,ne->e", share_N, np.stack(unit_NE))
    length = float(np.linalg.norm(sum_E))
    if length < SMALLEST_SUM:
        raise UsageError("the parts of a combined query cancel each other out; change a weight, or leave one out")
    return (sum_E / length).astype(np.float32)


def cutoff(
    index: Index, queries: Iterable[Sequence[tuple[float, Any]]], of: Gallery, precision: float, approximate: str
) -> tuple[float, str]:
    """The score from which on the share `precision` of the hits in gallery `of` is right, and a sentence on how that is
    known. `queries` are terms; `approximate` says why scores are, if they are (as `scoring`).

    UsageError where it is not known, or never so high: for pictures among pictures and words among captions, sums,
    approximate or corrected scores, and indexes without a record of it."""
    asked = f"min-precision {precision:g}"
    for terms in queries:
        if len(terms) != 1 or terms[0][0] <= 0:
            raise UsageError(f"{asked}: what share is right is not known of combined queries; use a threshold")
        if isinstance(terms[0][1], str) != (of is Gallery.image):
            raise UsageError(
                f"{asked}: what share is right is known of words that find images and pictures that find captions, "
                f"and here {'pictures find images' if of is Gallery.image else 'words find captions'}; use a threshold"
            )
    if index.record.hubness is not None:
        raise UsageError(f"{asked}: the index has a hub correction, and its scores are no cosines; use a threshold")
    if approximate:
        raise UsageError(f"{asked}: it wants exact scores; {approximate}")
    if index.record.precision is None:
        raise UsageError(
            f"{asked}: the index has no record of what share is right: it is of an earlier version, or of a store "
            "without a validation split; build it again of one that has it: alignvl index RUN"
        )
    known = index.record.precision[of]
    step = known.step(precision)
    if step is None:
        most = max(known.precision, default=None)
        reached = "there were too few to tell" if most is None else f"the most that a cutoff reaches is {most:.3f}"
        raise UsageError(
            f"{asked}: with {known.queries:,} queries of split {known.split!r}, {reached}; "
            "ask for less, or use a threshold"
        )
    return known.score[step], (
        f"{asked}: hits that score {known.score[step]:.4f} or more; of {known.hits[step]:,} such hits of "
        f"{known.queries:,} queries of split {known.split!r}, {known.precision[step]:.1%} were right"
    )


def embed(
    index: Index, encoder: DualEncoder, store: Callable[[], AnyStore | None], queries: Sequence[Query]
) -> np.ndarray:
    """Unit rows (Q, E); equal texts are encoded once, and each kind in one call. `store` finds the store of the index,
    and is asked when an image of the index is a part.

    UsageError for an id that the index does not have, or as `combine`; DataError for a picture that cannot be read."""
    parts = [part for query in queries for _, part in terms_of(query)]
    texts = [part for part in parts if isinstance(part, str)]
    likes = [part for part in parts if isinstance(part, Like)]
    pictures = [part for part in parts if not isinstance(part, str | Like)]
    text_rows = iter(encoder.encode_text(texts) if texts else ())
    picture_rows = iter(encoder.encode_image(pictures) if pictures else ())
    rows = rows_of(index, [like.id for like in likes]) if likes else []
    like_rows = iter(kept_vectors(index, encoder, store(), rows) if likes else ())
    found = []
    for query in queries:
        terms = terms_of(query)
        unit_NE = [
            next(text_rows if isinstance(part, str) else like_rows if isinstance(part, Like) else picture_rows)
            for _, part in terms
        ]
        found.append(combine(unit_NE, [weight for weight, _ in terms]))
    return np.stack(found) if found else np.empty((0, encoder.width), dtype=np.float32)


def rows_of(index: Index, names: Sequence[str]) -> list[int]:
    """Rows of images by id; UsageError for an id that the index does not have."""
    row_of = index.items[Gallery.image].row_of
    for name in names:
        if name not in row_of:
            named = [f"{store.name}{BEFORE_ID}{name}" for store in index.record.stores or ()]
            if there := " and ".join(one for one in named if one in row_of):
                raise UsageError(f"{name}: several stores have an image of this id, here {there}; name one of them so")
            raise UsageError(f"{name}: the index has no image of this id.{did_you_mean(name, row_of)}")
    return [row_of[name] for name in names]


def itself(index: Index, terms: Iterable[tuple[float, Any]], of: Gallery) -> frozenset[str]:
    """The contents that a search among images is not to find: those of the images that it is to be like."""
    if of is not Gallery.image:
        return frozenset()
    likes = [part.id for weight, part in terms if isinstance(part, Like) and weight > 0]
    return frozenset(index.items[of].content[row] for row in rows_of(index, likes)) if likes else frozenset()
