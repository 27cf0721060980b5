"""A batch of questions to its answers: one call of an encoder for all texts, one for all pictures, one search for those
that ask alike."""

# Q queries, E shared width.

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from alignvl_cli.encoders.decoding import UnreadableImage, decode_image
from alignvl_cli.errors import AlignvlError, UsageError
from alignvl_cli.retrieval.queries import Like, combine, itself
from alignvl_cli.retrieval.search import Hit, cut_texts, search
from alignvl_cli.serving.catalog import Served
from alignvl_cli.settings import Gallery


class Refused(Exception):
    """A question that has no answer; the text says why."""


@dataclass(frozen=True, slots=True)
class Picture:
    """The bytes of a picture's file, not decoded yet: waiting, it takes no more room than it came in."""

    data: bytes


Part = str | Picture | Like
Sum = tuple[tuple[float, Part], ...]
"""What is searched with: weights and parts, most often one."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is searched, and how far."""

    of: Gallery
    k: int
    threshold: float | None = None
    group_duplicates: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """The queries of one request."""

    served: Served
    """As it was when the request came: a reload does not change it."""
    queries: tuple[Sum, ...]
    wanted: Wanted | None
    """None: their embeddings alone."""


@dataclass(frozen=True, slots=True)
class Answer:
    """To one question."""

    vector_QE: np.ndarray
    """Unit rows."""
    found: tuple[list[Hit], ...]
    """Of each query; none where nothing was searched."""
    best: tuple[float | None, ...]
    """Of each query, the best score, whatever the threshold."""
    notes: tuple[str, ...]
    """What may mislead: a text that is read in part, scores that are approximate."""


def answer(questions: Sequence[Question], *, max_pixels: int) -> list[Answer | Exception]:
    """The answer to each question, or why there is none (`Refused`)."""
    answers: dict[int, Answer | Exception] = {}
    for served in {id(question.served): question.served for question in questions}.values():
        mine = [place for place, question in enumerate(questions) if question.served is served]
        vector_of, problem_of, notes_of = _embedded(served, [questions[place] for place in mine], max_pixels)
        sound: dict[int, list[np.ndarray]] = {}
        for place in mine:
            try:
                sound[place] = [_summed(query, vector_of, problem_of) for query in questions[place].queries]
            except Refused as problem:
                answers[place] = problem
        for wanted in dict.fromkeys(questions[place].wanted for place in sound):
            alike = {place: questions[place] for place in sound if questions[place].wanted == wanted}
            answers |= _searched(served, wanted, alike, sound, notes_of)
    return [answers[place] for place in range(len(questions))]


def _summed(query: Sum, vector_of: dict[Part, np.ndarray], problem_of: dict[Part, str]) -> np.ndarray:
    """The unit row of a query; Refused where a part has none, or the parts cancel each other out."""
    for _, part in query:
        if part in problem_of:
            raise Refused(problem_of[part])
    try:
        return combine([vector_of[part] for _, part in query], [weight for weight, _ in query])
    except UsageError as problem:
        raise Refused(str(problem)) from problem


def _embedded(
    served: Served, questions: Sequence[Question], max_pixels: int
) -> tuple[dict[Part, np.ndarray], dict[Part, str], dict[Part, str]]:
    """Each distinct part -> its unit row; -> why it has none; -> what may mislead of it."""
    parts = list(dict.fromkeys(part for question in questions for query in question.queries for _, part in query))
    texts = [part for part in parts if isinstance(part, str)]
    pictures = [part for part in parts if isinstance(part, Picture)]
    likes = [part for part in parts if isinstance(part, Like)]
    vector_of: dict[Part, np.ndarray] = {}
    problem_of: dict[Part, str] = {}
    notes_of: dict[Part, str] = {}
    if texts:
        vector_of |= zip(texts, served.encoder.encode_text(texts), strict=True)
        notes_of |= {text: sentence for text in texts for sentence in cut_texts(served.encoder, [text])}
    if pictures:
        sound: list[Picture] = []
        decoded = partial(_decoded, max_pixels=max_pixels, sound=sound, problem_of=problem_of)
        try:
            rows = list(served.encoder.encode_image(decoded(pictures)))
        except AlignvlError:  # one that can be decoded, but not be encoded: find out which
            sound.clear()
            rows = _one_by_one(served, pictures, decoded, problem_of, sound)
        vector_of |= zip(sound, rows, strict=True)
    if likes:
        try:
            vector_of |= zip(likes, served.vectors([like.id for like in likes]), strict=True)
        except AlignvlError as problem:
            problem_of |= dict.fromkeys(likes, _without_path(problem, served))
    return vector_of, problem_of, notes_of


def _decoded(
    pictures: Sequence[Picture], max_pixels: int, sound: list[Picture], problem_of: dict[Part, str]
) -> Iterator[Image.Image]:
    """Those that can be read, one in memory at a time; told in `sound`, and the others in `problem_of`."""
    for picture in pictures:
        try:
            image = decode_image(picture.data, max_pixels)
        except UnreadableImage as problem:
            problem_of[picture] = f"the picture cannot be read: {problem}"
            continue
        sound.append(picture)
        yield image


def _one_by_one(
    served: Served, pictures: Sequence[Picture], decoded: partial, problem_of: dict[Part, str], sound: list[Picture]
) -> list[np.ndarray]:
    found = []
    for picture in pictures:
        if picture in problem_of:
            continue
        try:
            found += list(served.encoder.encode_image(decoded([picture])))
        except AlignvlError as problem:
            sound.remove(picture)
            problem_of[picture] = f"the picture cannot be encoded: {problem.__cause__ or problem}"
    return found


def _searched(
    served: Served,
    wanted: Wanted | None,
    questions: dict[int, Question],
    unit_rows: dict[int, list[np.ndarray]],
    notes_of: dict[Part, str],
) -> dict[int, Answer | Exception]:
    """Place -> answer, of questions that want the same."""
    queries = [query for question in questions.values() for query in question.queries]
    vector_QE = np.stack([unit_E for place in questions for unit_E in unit_rows[place]])
    if wanted is None:
        found: list[list[Hit]] = [[] for _ in queries]
    else:
        found = search(
            served.index,
            served.encoder,
            vector_QE,
            k=wanted.k,
            of=wanted.of,
            rescore=served.rescore[wanted.of],
            without=[itself(served.index, query, wanted.of) for query in queries],
            look=served.look if wanted.group_duplicates else None,
        )
    answers: dict[int, Answer | Exception] = {}
    start = 0
    for place, question in questions.items():
        end = start + len(question.queries)
        notes = [notes_of[part] for query in question.queries for _, part in query if part in notes_of]
        if wanted is not None and served.approximate[wanted.of]:
            notes.append(served.approximate[wanted.of])
        if wanted is not None and wanted.group_duplicates:
            unseen = served.look.unseen(hit.uri for hits in found[start:end] for hit in hits)
            notes += [unseen] if unseen else []
        lowest = -np.inf if wanted is None or wanted.threshold is None else wanted.threshold
        answers[place] = Answer(
            vector_QE=vector_QE[start:end],
            found=tuple([hit for hit in hits if hit.score >= lowest] for hits in found[start:end]),
            best=tuple(hits[0].score if hits else None for hits in found[start:end]),
            notes=tuple(notes),
        )
        start = end
    return answers


def _without_path(problem: AlignvlError, served: Served) -> str:
    return str(problem).replace(str(served.index.path), served.name)
