"""Latents of an older store that an extraction need not make again: of the same picture, or of the same caption, by an
encoder that decides a latent in the same way.

A picture is the same by the SHA-256 of its bytes, a caption by its text. Whatever decides a latent must be equal: the
encoder's record, its precision, and what the store keeps of it; a store of float16 gives none to one of float32. So a
reused latent is what was encoded then, bit for bit, and what would be encoded now up to rounding: it may have been made
in another batch, on another device, or by other versions of the libraries.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from alignvl_cli.datasets.dataset import NO_STAMP, Item, are_unchanged
from alignvl_cli.errors import DataError, MismatchError
from alignvl_cli.extraction.plan import Plan, shown_differences
from alignvl_cli.extraction.sources import Contents, Picture
from alignvl_cli.extraction.up_to_date import known_files, place_of
from alignvl_cli.settings import StoreDtype
from alignvl_cli.store.reader import Store, open_store

SIDES = {"vision": "pictures", "text": "captions"}


@dataclass(frozen=True)
class Older:
    """A store whose latents are reused, or none."""

    store: Store | None = None
    has_pictures: bool = False
    """Whether the latents of its pictures are those that would be made."""
    has_captions: bool = False
    notes: list[str] = field(default_factory=list)
    """Why latents are not reused."""

    @property
    def on_plan(self) -> dict[str, Any] | None:
        """What decides the bits of the new store."""
        if self.store is None:
            return None
        return {"store": self.store.content_hash, "pictures": self.has_pictures, "captions": self.has_captions}

    @cached_property
    def contents(self) -> Contents | None:
        """The pictures, as a worker process is told of them."""
        if self.store is None or not self.has_pictures:
            return None
        return Contents(self.store.path, self.store.digest, self.store.image_sha256)

    @cached_property
    def _captions(self) -> dict[str, int]:
        if self.store is None or not self.has_captions:
            return {}
        return {caption: row for row, caption in enumerate(self.store.text_caption)}

    @cached_property
    def _files(self) -> dict[str, tuple[tuple[int, int], int]]:
        return {} if self.store is None or not self.has_pictures else known_files(self.store)

    def unread(self, items: Sequence[Item]) -> list[Picture | None]:
        """The picture of each file that has the place, size and time that it had when the older store was made."""
        if self.store is None or not self._files:
            return [None] * len(items)
        known = [self._files.get(place_of(item.source), (NO_STAMP, -1)) for item in items]
        is_same = are_unchanged([item.source for item in items], [stamp for stamp, _ in known])
        return [
            Picture(self.store.image_sha256[row].tobytes(), stamp) if same else None
            for (stamp, row), same in zip(known, is_same, strict=True)
        ]

    def has_picture(self, sha256: bytes | None) -> bool:
        return sha256 is not None and self.contents is not None and self.contents.row(sha256) is not None

    def picture_latents(self, sha256: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Positions of those that are there (n,), and their latents (n, D) float32."""
        rows = [None if self.contents is None else self.contents.row(one) for one in sha256]
        return self._latents(rows, Store.image_block)

    def caption_latents(self, captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """As `picture_latents`, (n, C)."""
        return self._latents([self._captions.get(one) for one in captions], Store.text_block)

    def _latents(self, rows: list[int | None], block: Any) -> tuple[np.ndarray, np.ndarray]:
        positions = np.array([position for position, row in enumerate(rows) if row is not None], np.int64)
        if not len(positions):
            return positions, np.empty((0, 0), np.float32)
        return positions, block(self.store, np.array([row for row in rows if row is not None], np.int64))

    def on_record(self, pictures: int, captions: int) -> dict[str, Any]:
        """What the new store keeps of it: `made_with` are the devices and libraries that the latents in the older one
        came from."""
        assert self.store is not None
        plan, before = self.store.made_by["plan"], self.store.made_by.get("reused") or {}
        made_with = [{name: plan.get(name) for name in ("device", "libraries")}, *before.get("made_with", [])]
        return {
            "store": str(self.store.path.resolve()),
            "content_hash": self.store.content_hash,
            "pictures": pictures,
            "captions": captions,
            "made_with": [one for number, one in enumerate(made_with) if one not in made_with[:number]],
        }


NOTHING = Older()


def open_older(path: Path, plan: Plan, *, is_asked: bool) -> Older:
    """The store at `path`, as far as its latents are those that `plan` would make; all of it is read and checked.

    Unless `is_asked`, one of which nothing can be reused, or that is damaged, is none, with the reason in its notes.
    Raises DataError for a damaged one, and MismatchError for one of which nothing can be reused.
    """
    try:
        store = open_store(path)
        differences = dict(_differences(store, plan))
        if len(differences) < len(SIDES):
            store.verify()
            store.release()
            _ = store.text_caption, store.image_sha256  # read now: the file may be replaced under this name
    except DataError as problem:
        if is_asked:
            raise
        return Older(notes=[f"no latents are reused: {problem}"])
    why = "; ".join(f"{SIDES[side]}: {words}" for side, words in differences.items())
    if len(differences) < len(SIDES):
        notes = [f"of {path} not reused are {why}"] if why else []
        return Older(store, "vision" not in differences, "text" not in differences, notes)
    if is_asked:
        raise MismatchError(
            f"{path}: none of its latents can be reused: {why}; those of the same encoder settings, precision and "
            "--dtype can be: give the same ones, or leave --reuse out"
        )
    return Older(notes=[f"no latents of {path} are reused: {why}"])


def _differences(store: Store, plan: Plan) -> Iterator[tuple[str, str]]:
    """For each side whose latents in the store are not those that `plan` makes: the side, and why."""
    there, now = store.made_by.get("plan"), json.loads(json.dumps(plan.to_json()))
    for side in SIDES:
        if not isinstance(there, Mapping):
            yield side, "how their latents were made is not recorded"
        elif words := shown_differences(_decisive(there, side), _decisive(now, side)):
            yield side, words
        elif (there["dtype"], now["dtype"]) == (StoreDtype.float16, StoreDtype.float32):
            yield side, "dtype was 'float16', now 'float32'"
        elif side == "vision" and there["max_pixels"] > now["max_pixels"]:
            yield side, f"max_pixels was {there['max_pixels']}, now {now['max_pixels']}: some may be too large now"


def _decisive(plan: Mapping[str, Any], side: str) -> dict[str, Any]:
    """What decides the latents of a side, `dtype` and `max_pixels` aside."""
    return {side: plan.get(side), "precision": (plan.get("precision") or {}).get(side)}
