"""What every reader does at the end: make a Dataset of its items, or say why they are none."""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignvl_cli.errors import DataError
from alignvl_cli.pairs.captions import CaptionCleaner
from alignvl_cli.pairs.items import Dataset, Item
from alignvl_cli.provenance import canonical_json


def make_dataset(
    path: Path,
    items: Sequence[Item],
    cleaner: CaptionCleaner,
    *,
    kind: str,
    sha256: str,
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
    notes: Iterable[str] = (),
) -> Dataset:
    """The dataset of `items`, named after `path` with its suffix, so that `photos.tar` and the folder `photos` are told
    apart; `options` are those that changed the reading.

    DataError when there is no image, no caption, or an id that stands twice.
    """
    if not items:
        raise DataError(f"{path}: read as {kind}, and it names no image at all")
    if not any(item.captions for item in items):
        raise DataError(f"{path}: read as {kind}, and there is not one caption for {len(items)} images")
    known: dict[str, Item] = {}
    for item in items:
        if known.setdefault(item.id, item) is not item:
            raise DataError(
                f"{path}: duplicate id {item.id!r} ({known[item.id].uri} and {item.uri}); ids must be unique"
            )
    return Dataset(
        name=slug(path.name if name is None else name),
        record={"format": kind, "sha256": sha256, **(options or {})},
        items=items,
        cleaned_captions=cleaner.cleaned,
        blank_captions=cleaner.blank,
        notes=tuple(notes),
    )


def listing_sha256(items: Iterable[Item]) -> str:
    """Hex SHA-256 of what a dataset lists, for formats in which no one file does: as with a manifest, pictures
    count by name and place, not by content."""
    digest = hashlib.sha256()
    for item in items:
        place = [item.source.offset, item.source.size]
        digest.update(canonical_json([item.id, item.captions, item.split, item.label, place]).encode() + b"\n")
    return digest.hexdigest()


def image_folder(path: Path, image_root: Path | None) -> str:
    """The absolute folder that relative image paths start from: `image_root`, else that of the file `path`."""
    root = os.path.abspath(image_root or path.parent)
    if not os.path.isdir(root):
        raise DataError(f"--image-root {image_root}: no such folder")
    return root


def slug(name: str) -> str:
    """Letters, digits, `.`, `_` and `-` of a name."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9._-]+", "-", plain).strip("-.") or "data"
