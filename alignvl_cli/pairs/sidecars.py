"""What lies beside a picture, in a folder or in a tar: `.txt` and `.json` files with its captions.

A `.txt` holds one caption a line; blank lines do not count. A `.json` holds an object with `captions`
(a list) or `caption`, and optionally `split` and `label`. Where a picture has both, the `.txt` speaks
and the `.json` is not read, unless a column of captions was asked for.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from alignvl_cli.config import DatasetOptions
from alignvl_cli.pairs.captions import UNSTORABLE, CaptionCleaner
from alignvl_cli.pairs.items import ImageSource, Item
from alignvl_cli.pairs.splits import split_name

IMAGE_SUFFIXES = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "dib", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "tga"}
    | {"jp2", "j2k", "avif", "qoi"}
)
"""Lower case, without the dot."""
TEXT_SUFFIX, JSON_SUFFIX = "txt", "json"
SIDECAR_SUFFIXES = frozenset({TEXT_SUFFIX, JSON_SUFFIX})
MOST_BYTES = 16 << 20
"""Of a sidecar: more is none."""
SHOWN = 3


class UnreadableSidecar(Exception):
    """A sidecar without usable captions; the text is the short reason."""


@dataclass(slots=True)
class SidecarReader:
    """Makes items of pictures and what lies beside them, and counts what could not be used.

    One damaged sidecar among a million does not end the reading: its picture has no captions then.
    """

    options: DatasetOptions
    cleaner: CaptionCleaner = field(default_factory=CaptionCleaner)
    bare: int = 0
    """Pictures with no sidecar."""
    unreadable: list[str] = field(default_factory=list)
    """The first few sidecars that could not be used, with the reason."""
    unreadable_count: int = 0

    def item(
        self, identity: str, uri: str, picture: ImageSource, sidecars: Mapping[str, tuple[str, ImageSource]]
    ) -> Item:
        """`sidecars` has the name and place of each, by lower-case suffix."""
        captions: list[str] = []
        split, label = None, ""
        suffix = self._speaking(sidecars)
        if suffix is None:
            self.bare += 1
        else:
            name, source = sidecars[suffix]
            try:
                captions, split, label = self._read(suffix, source)
            except UnreadableSidecar as problem:
                self.unreadable_count += 1
                if len(self.unreadable) < SHOWN:
                    self.unreadable.append(f"{name}: {problem}")
        return Item(identity, uri, tuple(self.cleaner.clean(captions)), split, label, picture)

    def notes(self) -> list[str]:
        """What the user should know of pictures without captions."""
        notes = []
        if self.bare:
            notes.append(f"{self.bare} images have no .txt or .json beside them: kept, without captions")
        if self.unreadable_count:
            which = "; ".join(self.unreadable)
            more = "; ..." if self.unreadable_count > len(self.unreadable) else ""
            notes.append(f"{self.unreadable_count} images have a sidecar that cannot be used ({which}{more})")
        return notes

    def _speaking(self, sidecars: Mapping[str, Any]) -> str | None:
        """The suffix of the sidecar that counts."""
        order = (JSON_SUFFIX,) if self.options.caption_column else (TEXT_SUFFIX, JSON_SUFFIX)
        return next((suffix for suffix in order if suffix in sidecars), None)

    def _read(self, suffix: str, source: ImageSource) -> tuple[list[str], str | None, str]:
        try:
            text = source.read(at_most=MOST_BYTES).decode("utf-8-sig")
        except OSError as problem:
            raise UnreadableSidecar(problem.strerror or str(problem)) from problem
        except UnicodeDecodeError as problem:
            raise UnreadableSidecar(f"not UTF-8 text at byte {problem.start}") from problem
        if suffix == TEXT_SUFFIX:
            return [line.strip() for line in io.StringIO(text, newline=None)], None, ""
        return self._of_json(text)

    def _of_json(self, text: str) -> tuple[list[str], str | None, str]:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as problem:
            raise UnreadableSidecar("not valid JSON") from problem
        if not isinstance(value, dict):
            raise UnreadableSidecar("no JSON object")
        column = self.options.caption_column or ("captions" if value.get("captions") else "caption")
        found = value.get(column)
        captions = [found] if isinstance(found, str) else [] if found is None else found
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            raise UnreadableSidecar(f"{column!r} is neither text nor a list of texts")
        split = _word(value, "split")
        return captions, split_name(split) if split else None, _word(value, "label")


def _word(value: Mapping[str, Any], key: str) -> str:
    word = value.get(key)
    if word is None:
        return ""
    if isinstance(word, int) and not isinstance(word, bool):
        return str(word)
    if not isinstance(word, str) or UNSTORABLE.search(word):
        raise UnreadableSidecar(f"{key!r} is not text")
    return word.strip() if key == "split" else word
