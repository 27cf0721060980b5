"""What a search answers with. Loads no heavy library, so that the command line can name the galleries."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Gallery(StrEnum):
    """What is searched: the images, or the captions (`--of`)."""

    image = "image"
    text = "text"


@dataclass(frozen=True, slots=True)
class Hit:
    """One result, duplicates folded into it."""

    rank: int
    """From 1."""
    score: float
    """Cosine; of an index with a hub correction, cosine less the penalty."""
    id: str
    """Of the image; of a caption, the id of its image."""
    uri: str
    caption: str
    """The caption found, or the image's first one; empty for an image without captions."""
    count: int
    """Gallery rows that this hit stands for: images with the same content, or captions with the same text."""

    def to_json(self) -> dict[str, Any]:
        return {
            "rank": self.rank,
            "score": self.score,
            "id": self.id,
            "uri": self.uri,
            "caption": self.caption,
            "count": self.count,
        }
