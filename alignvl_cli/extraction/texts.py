"""The text stage: each distinct caption encoded once, into shards, sorted by length inside each."""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from alignvl_cli.artifacts import canonical_json
from alignvl_cli.datasets.dataset import Item
from alignvl_cli.errors import DataError
from alignvl_cli.extraction.batches import require_storable, within_memory
from alignvl_cli.extraction.plan import Plan
from alignvl_cli.extraction.progress import Progress, Stage, Stopwatch
from alignvl_cli.extraction.shards import WorkFolder

if TYPE_CHECKING:
    from alignvl_cli.encoders.text import TextEncoder

SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class Captions:
    """The text rows of a store; identical captions share one of the distinct ones."""

    caption: list[str]
    image: np.ndarray
    """(T,) int64 row of each caption's image, in the store."""
    distinct: list[str]
    """In order of first appearance."""
    number: np.ndarray
    """(T,) int64 position of each caption in `distinct`."""


def gather_captions(items: Sequence[Item], accepted: np.ndarray) -> Captions:
    """The captions of the accepted rows; those of a rejected image go with it."""
    captions = [items[row].captions for row in accepted.tolist()]
    caption = [text for texts in captions for text in texts]
    image = np.repeat(np.arange(len(captions)), [len(texts) for texts in captions])
    known: dict[str, int] = {}
    number = np.fromiter((known.setdefault(text, len(known)) for text in caption), np.int64, len(caption))
    return Captions(caption, image, list(known), number)


def encode_texts(
    distinct: Sequence[str], text: "TextEncoder", plan: Plan, folder: WorkFolder, watch: Stopwatch
) -> Generator[Progress, None, np.ndarray]:
    """Finish the text shards of this rank; returns which of their captions are truncated, (distinct,) bool.

    Raises DataError when the encoder returns a number that cannot be kept, when a batch does not fit in memory, or when
    the tokenizer is of another model.
    """
    encode = _encoder(text)
    is_truncated = np.zeros(len(distinct), dtype=bool)
    started = time.perf_counter()
    encoded = 0
    for number, start in enumerate(range(0, len(distinct), plan.text_shard)):
        if not folder.is_own(number):
            continue
        texts = distinct[start : start + plan.text_shard]
        wanted = _identity(texts)
        record = folder.read_shard(Stage.texts, number, wanted)
        if record is None:
            with watch.measure("encode_texts"):
                tokens = np.asarray(text.lengths(texts))
            latents = np.empty((len(texts), text.width), np.float32)
            # Longest first: a batch that does not fit in memory fails at once, not after hours.
            order = np.argsort(-tokens, kind="stable")
            for first in range(0, len(order), plan.text_batch):
                here = order[first : first + plan.text_batch]
                some = [texts[position] for position in here]
                with watch.measure("encode_texts"):
                    latents[here] = encode(some)
                require_storable(latents[here], plan.dtype, "caption", [one[:SHOWN_CHARACTERS] for one in some])
                encoded += len(here)
                rate = encoded * folder.ranks.count / (time.perf_counter() - started)
                yield Progress(Stage.texts, start + first + len(here), len(distinct), rate)
            record = {**wanted, "truncated": np.flatnonzero(tokens > text.max_length).tolist()}
            with watch.measure("write"):
                folder.write_shard(Stage.texts, number, latents, record)
        else:
            yield Progress(Stage.texts, start + len(texts), len(distinct), 0.0)
        is_truncated[start + np.asarray(record["truncated"], dtype=np.int64)] = True
    return is_truncated


def wait_for_texts(distinct: Sequence[str], plan: Plan, folder: WorkFolder, is_truncated: np.ndarray) -> None:
    """Wait for the text shards of the other ranks; `is_truncated` is completed. DataError when one of them is gone."""
    for number, start in enumerate(range(0, len(distinct), plan.text_shard)):
        if folder.is_own(number):
            continue
        wanted = _identity(distinct[start : start + plan.text_shard])

        def finished(number: int = number, wanted: dict[str, Any] = wanted) -> dict[str, Any] | None:
            record = folder.read_record(Stage.texts, number)
            return record if record and all(record.get(name) == value for name, value in wanted.items()) else None

        record = folder.wait(number, finished)
        is_truncated[start + np.asarray(record["truncated"], dtype=np.int64)] = True


def _identity(texts: Sequence[str]) -> dict[str, Any]:
    """What tells a text shard, in its record."""
    return {"captions": len(texts), "captions_xxh3": xxhash.xxh3_64_hexdigest(canonical_json(list(texts)).encode())}


def _encoder(text: "TextEncoder") -> Callable[[Sequence[str]], np.ndarray]:
    encode = within_memory(text.encode, "captions")

    def encoded(texts: Sequence[str]) -> np.ndarray:
        try:
            return encode(texts)
        except IndexError as problem:  # torch's embedding, on a CPU
            raise DataError(
                f"{text.about['id']}: the tokenizer has words that the text model has no embedding of ({problem}): "
                "they do not belong together; give --text a model with its own tokenizer"
            ) from problem

    return encoded
