"""What a search found: a table a query, or one self-contained page with its pictures inside, without scripts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignvl_cli.report.page import render
from alignvl_cli.report.tables import Table
from alignvl_cli.report.text import visible

if TYPE_CHECKING:
    from alignvl_cli.retrieval.search import Hit
    from alignvl_cli.settings import Gallery

TITLES = {"image": "images for ", "text": "captions for "}
COLUMNS = {"image": ("id", "first caption"), "text": ("caption", "of image")}
"""Gallery -> its two columns: what is found comes first."""


def hits_table(query: str, gallery: "Gallery", hits: Sequence["Hit"], *, is_cosine: bool = True) -> Table:
    """Rank, cosine, image id and caption of each hit; of captions, the caption comes first.

    A column says how many duplicates a hit stands for, if any does, and another which where near ones are grouped. Ids
    wrap, so that they can be copied whole; captions are cut to the line.
    """
    has_copies = any(hit.count > 1 for hit in hits)
    is_grouped = has_copies and hits[0].duplicates is not None
    rows = [
        [
            f"{hit.rank}",
            f"{hit.score:.3f}",
            *((hit.id, hit.caption) if gallery == "image" else (hit.caption, hit.id)),
            *([f"{hit.count:,}"] if has_copies else []),
            *([alike(hit)] if is_grouped else []),
        ]
        for hit in hits
    ]
    measure = "cosine" if is_cosine else "cosine less hub penalty"
    headers = ("rank", measure, *COLUMNS[gallery], *(["images" if is_grouped else "copies"] if has_copies else []))
    if is_grouped:
        headers += ("alike",)
    return Table.of(TITLES[gallery] + query, headers, rows, (2, 3, 5), cut=(3 if gallery == "image" else 2,))


NAMED = 3
"""Ids of near duplicates that a line has room for."""


def alike(hit: "Hit") -> str:
    """The ids of the other images that a hit stands for, the best first; of many, how many more."""
    ids = hit.duplicates or ()
    return ", ".join(ids[:NAMED]) + (f" and {len(ids) - NAMED:,} more" if len(ids) > NAMED else "")


TEMPLATE = "gallery.html"
GENERATOR = "alignvl search"
"""What made the page, as the page itself says: another search may replace it, and nothing else."""
FOUND = {"image": "images", "text": "captions"}


@dataclass(frozen=True, kw_only=True)
class SearchPage:
    """One search, ready to be shown."""

    index: str
    gallery: "Gallery"
    items: int
    """Rows of the gallery that was asked."""
    measure: str
    """What a score is: `cosine`, or `cosine less a hub penalty`."""
    threshold: float | None
    answers: Sequence[tuple[str, str | None, Sequence["Hit"]]]
    """(query, picture of the query as a data URI if it was one, hits)."""


def gallery_page(page: SearchPage, picture: Callable[["Hit"], str | None]) -> str:
    """The page as HTML; `picture` gives a hit's thumbnail as a data URI. UsageError without jinja2.

    Every text is escaped, and control characters are shown instead of acting. A score's bar is its share of the range
    from 0 to the query's best.
    """
    return render(
        TEMPLATE,
        generator=GENERATOR,
        title=visible(page.answers[0][0]) if len(page.answers) == 1 else f"{len(page.answers)} searches",
        found=FOUND[page.gallery],
        measure=page.measure,
        items=f"{page.items:,}",
        index=visible(page.index),
        threshold=page.threshold,
        answers=[
            {"query": visible(query), "picture": asked, "hits": [_shown(hit, hits[0].score, picture) for hit in hits]}
            for query, asked, hits in page.answers
        ],
    )


def _shown(hit: "Hit", best: float, picture: Callable[["Hit"], str | None]) -> dict[str, Any]:
    share = hit.score / best if best > 0 else 0.0
    return {
        "rank": hit.rank,
        "score": f"{hit.score:.3f}",
        "width": round(100 * min(1.0, max(0.0, share))),
        "id": visible(hit.id),
        "caption": visible(hit.caption),
        "count": hit.count,
        "alike": visible(alike(hit)),
        "picture": picture(hit),
    }
