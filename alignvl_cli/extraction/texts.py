"""The text stage: each distinct caption encoded once, into shards, sorted by length inside each."""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from alignvl_cli.artifacts import canonical_json
from alignvl_cli.datasets.dataset import Item
from alignvl_cli.errors import DataError
from alignvl_cli.extraction.encoding import Timer, require_storable, within_memory
from alignvl_cli.extraction.events import Progress, Stage
from alignvl_cli.extraction.plan import Plan
from alignvl_cli.extraction.reuse import NOTHING, Older
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
    distinct: Sequence[str],
    text: "TextEncoder",
    plan: Plan,
    folder: WorkFolder,
    timer: Timer,
    older: Older = NOTHING,
) -> Generator[Progress, None, tuple[np.ndarray, int]]:
    """Finish all text shards; returns which captions are truncated, (distinct,) bool, and how many latents are those
    of the `older` store.

    Raises DataError when the encoder returns a number that cannot be kept, when a batch does not fit in memory, or when
    the tokenizer is of another model.
    """
    encode = _encoder(text)
    is_truncated = np.zeros(len(distinct), dtype=bool)
    started = time.perf_counter()
    encoded = finished = reused = 0
    pending = list(range(0, len(distinct), plan.text_shard))
    while pending:
        elsewhere = []
        for start in pending:
            number = start // plan.text_shard
            texts = list(distinct[start : start + plan.text_shard])
            wanted = {
                "captions": len(texts),
                "captions_xxh3": xxhash.xxh3_64_hexdigest(canonical_json(texts).encode()),
            }
            record = folder.read_shard(Stage.texts, number, wanted)
            if record is None and not folder.claim(Stage.texts, number):
                elsewhere.append(start)
                continue
            if record is None and folder.is_shared:  # another process may have finished it a moment ago
                record = folder.read_shard(Stage.texts, number, wanted)
                if record is None:
                    folder.forget_shard(Stage.texts, number)  # of other captions: nobody is to wait for it
            if record is None:
                with timer.measure("encode_texts"):
                    tokens = np.asarray(text.lengths(texts))
                latents = np.empty((len(texts), text.width), np.float32)
                there, known = older.caption_latents(texts)
                if len(there):
                    latents[there] = known
                    require_storable(known, plan.dtype, "caption", [texts[one][:SHOWN_CHARACTERS] for one in there])
                # Longest first: a batch that does not fit in memory fails at once, not after hours.
                order = np.argsort(-tokens, kind="stable")
                order = order[~np.isin(order, there)]
                for first in range(0, len(order), plan.text_batch):
                    chosen = order[first : first + plan.text_batch]
                    some = [texts[position] for position in chosen]
                    with timer.measure("encode_texts"):
                        latents[chosen] = encode(some)
                    require_storable(latents[chosen], plan.dtype, "caption", [one[:SHOWN_CHARACTERS] for one in some])
                    encoded += len(chosen)
                    rate = encoded / (time.perf_counter() - started)
                    done = finished + len(there) + first + len(chosen)
                    yield Progress(Stage.texts, done, len(distinct), rate)
                truncated = np.flatnonzero(tokens > text.max_length).tolist()
                record = {**wanted, "truncated": truncated, "reused": len(there)}
                with timer.measure("write"):
                    folder.write_shard(Stage.texts, number, latents, record)
            else:
                folder.release(Stage.texts, number)
                yield Progress(Stage.texts, finished + len(texts), len(distinct), 0.0)
            finished += len(texts)
            reused += record.get("reused", 0)
            is_truncated[start + np.asarray(record["truncated"], dtype=np.int64)] = True
        folder.wait(Stage.texts, [start // plan.text_shard for start in elsewhere])
        pending = elsewhere
    return is_truncated, reused


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
