"""What a search found, as a table a query.

What a search found, as one self-contained page: pictures inside it, no scripts, nothing loaded from anywhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from alignvl_cli.report.page import render
from alignvl_cli.report.text import safe, visible

if TYPE_CHECKING:
    from alignvl_cli.retrieval.search import Hit
    from alignvl_cli.settings import Gallery

TITLES = {"image": "images for ", "text": "captions for "}
COLUMNS = {"image": ("id", "first caption"), "text": ("caption", "of image")}
"""Gallery -> its two columns: what is found comes first."""


def hits_table(query: str, gallery: "Gallery", hits: Sequence["Hit"], *, is_cosine: bool = True) -> Group:
    """Rank, cosine, image id and caption of each hit; of captions, the caption comes first.

    A column says how many duplicates a hit stands for, if any does. Ids wrap, so that they can be copied whole;
    captions are cut to the line.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("rank", justify="right", no_wrap=True)
    table.add_column("cosine" if is_cosine else "cosine less hub penalty", justify="right", no_wrap=True)
    for column in COLUMNS[gallery]:
        table.add_column(column, overflow="fold")
    folded = any(hit.count > 1 for hit in hits)
    if folded:
        table.add_column("copies", justify="right", no_wrap=True)
    for hit in hits:
        caption = safe(hit.caption)
        caption.no_wrap, caption.overflow = True, "ellipsis"
        pair = (safe(hit.id), caption)
        copies = [f"{hit.count:,}"] if folded else []
        table.add_row(f"{hit.rank}", f"{hit.score:.3f}", *(pair if gallery == "image" else pair[::-1]), *copies)
    return Group(Text(TITLES[gallery], style="bold").append_text(safe(query)), table)


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
        "picture": picture(hit),
    }
