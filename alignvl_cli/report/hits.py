"""What a search found, as a table a query."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from alignvl_cli.report.text import safe

if TYPE_CHECKING:
    from alignvl_cli.retrieval.hits import Gallery, Hit

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
