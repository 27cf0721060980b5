"""What a search found, as a table a query."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from alignvl_cli.report.text import safe

if TYPE_CHECKING:
    from alignvl_cli.retrieval.hits import Gallery, Hit


def hits_table(query: str, gallery: "Gallery", hits: Sequence["Hit"]) -> Table:
    """Rank, cosine, image id and caption of each hit; of captions, the caption comes first.

    A column says how many duplicates a hit stands for, if any does. Ids wrap, so that they can be copied whole;
    captions are cut to the line.
    """
    title = Text("images for ", style="bold") if gallery == "image" else Text("captions for ", style="bold")
    table = Table(box=box.SIMPLE_HEAD, title=title.append_text(safe(query)), title_justify="left", title_style="")
    table.add_column("rank", justify="right")
    table.add_column("cosine", justify="right")
    columns = {"image": ("id", "first caption"), "text": ("caption", "of image")}[gallery]
    for column in columns:
        whole = column in ("id", "of image")
        table.add_column(column, overflow="fold" if whole else "ellipsis", no_wrap=not whole)
    folded = any(hit.count > 1 for hit in hits)
    if folded:
        table.add_column("copies", justify="right")
    for hit in hits:
        pair = (safe(hit.id), safe(hit.caption))
        copies = [f"{hit.count:,}"] if folded else []
        table.add_row(f"{hit.rank}", f"{hit.score:.3f}", *(pair if gallery == "image" else pair[::-1]), *copies)
    return table
