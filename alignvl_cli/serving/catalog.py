"""What is served: indexes by name, each with its encoder and what makes its scores exact. One that is made again at its
path takes the place of the old one, which requests under way keep."""

import asyncio
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from alignvl_cli.datasets.formats import picture_bytes
from alignvl_cli.datasets.lookalikes import Lookalikes
from alignvl_cli.encoders.decoding import UnreadableImage, decode_image
from alignvl_cli.report.page import EDGE, thumbnail_jpeg
from alignvl_cli.retrieval.dual_encoder import DualEncoder
from alignvl_cli.retrieval.index import RECORD, Index, StoreBehind
from alignvl_cli.retrieval.search import Rescore, kept_vectors, scoring
from alignvl_cli.settings import Gallery
from alignvl_cli.store.joined import AnyStore

RELOAD_S = 2.0
"""Between two looks at whether an index has been made again."""
THUMBNAILS = 1024
"""Kept, each of some ten kilobytes."""
MOST_CAPTIONS = 100
"""Of an item, that are shown."""


class NotAtHand(LookupError):
    """A picture of the index that cannot be shown; the text says why."""


@dataclass(frozen=True)
class Opened:
    """An index with what belongs to it."""

    index: Index
    encoder: DualEncoder
    store: AnyStore | None
    """The one that the index was made of, or several joined, where all were found."""


class Served:
    """One index under its name, ready to be asked."""

    def __init__(self, name: str, opened: Opened) -> None:
        self.name = name
        self.index, self.encoder, self.store = opened.index, opened.encoder, opened.store
        self.since = datetime.now(UTC).isoformat(timespec="seconds")
        missing = ("one of the stores" if self.index.record.stores else "the store",)  # and no path of this machine
        behind = StoreBehind(self.store, missing)
        scored = {of: scoring(self.index, self.encoder, of, lambda: behind) for of in Gallery}
        self.rescore: dict[Gallery, Rescore | None] = {of: rescore for of, (rescore, _) in scored.items()}
        self.approximate: dict[Gallery, str] = {of: sentence for of, (_, sentence) in scored.items()}
        """Why scores are approximate; empty where they are exact."""
        self.look = Lookalikes(decode_image)
        self._small = lru_cache(THUMBNAILS)(self._thumbnail)

    @property
    def row_of(self) -> dict[str, int]:
        """Image id -> its row."""
        return self.index.items[Gallery.image].row_of

    @cached_property
    def _captions(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        texts = self.index.items[Gallery.text]
        for name, caption in zip(texts.id, texts.caption, strict=True):
            found.setdefault(name, []).append(caption)
        return found

    @property
    def is_cosine(self) -> bool:
        return self.index.record.hubness is None

    def content(self, name: str) -> str:
        """The SHA-256 of an image of the index, as hex."""
        return self.index.items[Gallery.image].content[self.row_of[name]]

    def vectors(self, names: Sequence[str]) -> np.ndarray:
        """Unit rows of images of the index, to search with."""
        return kept_vectors(self.index, self.encoder, self.store, [self.row_of[name] for name in names])

    def warm_up(self) -> None:
        """Load the frozen encoders: a model that is missing is told at the start, and no request waits for it."""
        self.encoder.encode_text(["a picture"])
        self.encoder.encode_image([Image.new("RGB", (64, 64), "white")])

    def about(self) -> dict[str, Any]:
        """What it is, without a path of this machine."""
        record = self.index.record
        return {
            "name": self.name,
            "run": Path(record.run).name,
            "adapters_sha256": record.adapters_sha256,
            "vision": _name(self.encoder.run.vision),
            "text": _name(self.encoder.run.text),
            "split": record.split,
            "images": record.images,
            "captions": record.captions,
            "width": record.width,
            "measure": record.metric,
            "factory": record.factory,
            "scores": {of.value: "approximate" if self.approximate[of] else "exact" for of in Gallery},
            "loaded": self.since,
        }

    def item(self, name: str) -> dict[str, Any]:
        """An image of the index, and whether its picture is at hand."""
        items, captions = self.index.items[Gallery.image], self._captions.get(name, [])
        try:
            self.picture(name)
            missing = ""
        except NotAtHand as problem:
            missing = str(problem)
        return {
            "id": name,
            "captions": captions[:MOST_CAPTIONS],
            "caption_count": len(captions),
            "sha256": self.content(name),
            "copies": items.copies[self.content(name)],
            "has_picture": not missing,
            "missing": missing,
        }

    def picture(self, name: str) -> bytes:
        """The image file of an item, the very one that was indexed. NotAtHand when it is gone or another by now."""
        data = picture_bytes(self.index.items[Gallery.image].uri[self.row_of[name]])
        if data is None:
            raise NotAtHand("the picture is not where it was when it was encoded: moved, removed, or not readable")
        if hashlib.sha256(data).hexdigest() != self.content(name):
            raise NotAtHand("another picture is in its place by now (its SHA-256 is not the one that was encoded)")
        return data

    def thumbnail(self, name: str, edge: int) -> bytes:
        """A JPEG of an image of at most `edge` x `edge` pixels; those of usual size are kept. NotAtHand as for
        `picture`, or when it cannot be decoded."""
        return (self._small if edge <= EDGE else self._thumbnail)(name, edge)

    def _thumbnail(self, name: str, edge: int) -> bytes:
        try:
            return thumbnail_jpeg(self.picture(name), edge)
        except UnreadableImage as problem:
            raise NotAtHand(f"the picture cannot be read: {problem}") from problem


@dataclass(frozen=True)
class Source:
    """Where an index is, and how it is opened with what belongs to it."""

    name: str
    path: Path
    open: Callable[[Path], Opened]


class Catalog:
    """The served indexes by name, in the order in which they were named. Opens all of them, and loads their encoders:
    the errors of `open_index`, `load_run` and the encoders."""

    def __init__(self, sources: Sequence[Source], warn: Callable[[str], None]) -> None:
        self._sources, self._warn = sources, warn
        self._stamp = {source.name: _stamp(source.path) for source in sources}
        self.served: dict[str, Served] = {}
        self.problem: dict[str, str] = {}
        """Name -> why a newer index at its path is not served."""
        for source in sources:
            self.served[source.name] = self._load(source)

    def _load(self, source: Source) -> Served:
        """Opened, with frozen encoders that are loaded already where one served has the same."""
        opened = source.open(source.path)
        encoder = opened.encoder
        for other in self.served.values():
            if other.encoder.run.encoder_hash == encoder.run.encoder_hash:
                return Served(source.name, Opened(opened.index, other.encoder.with_run(encoder.run), opened.store))
        served = Served(source.name, opened)
        served.warm_up()
        return served

    def reload(self) -> None:
        """Open what has been made again at its path since, and serve it from the next request on; what cannot be opened
        is told, and the old one stays."""
        for source in self._sources:
            stamp = _stamp(source.path)
            if stamp is None or stamp == self._stamp[source.name]:  # between two folders there is none for a moment
                continue
            try:
                self.served[source.name] = self._load(source)
                self._stamp[source.name] = stamp
                self.problem.pop(source.name, None)
            except Exception as problem:  # whatever it is, the old one is served, and the new one tried again
                if source.name not in self.problem:
                    self._warn(f"{source.path}: the newer index cannot be opened, the old one is served: {problem}")
                self.problem[source.name] = "a newer index is there that cannot be opened; the old one is served"

    async def watch(self) -> None:
        """Reload what changes, for ever."""
        while True:
            await asyncio.sleep(RELOAD_S)
            await asyncio.to_thread(self.reload)


def _name(encoder: dict[str, Any]) -> str:
    """Of an encoder; of one in a folder here, the folder's own."""
    known_as = str(encoder["about"]["id"])
    return Path(known_as).name if os.path.isabs(known_as) or known_as.startswith(".") else known_as


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when an index is made again."""
    try:
        about = os.stat(path / RECORD)
    except OSError:
        return None
    return about.st_ino, about.st_size, about.st_mtime_ns
