"""How well images are named: the totals, and each class."""

from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from alignvl_cli.report.text import safe

if TYPE_CHECKING:
    from alignvl_cli.retrieval.classify import Classification


def classification_table(found: "Classification") -> RenderableType:
    """Top-1, top-5 and the mean over classes, then a row a class, the commonest first; what was counted beneath."""
    totals = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for column in ("top-1", "95 % interval", "top-5", "mean per class", "largest class"):
        totals.add_column(column, justify="right")
    low, high = found.top1_ci95
    figures = (found.top5, found.mean_per_class, found.largest_class)
    totals.add_row(f"{found.top1:.1f}", f"{low:.1f} to {high:.1f}", *(f"{figure:.1f}" for figure in figures))
    classes = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    classes.add_column("label", overflow="fold")
    for column in ("images", "top-1"):
        classes.add_column(column, justify="right")
    for result in sorted(found.per_class, key=lambda result: -result.images):
        classes.add_row(safe(result.label), f"{result.images:,}", f"{result.top1:.1f}")
    notes = [
        f"{found.images:,} labelled images of split {found.split} of {found.store}, {len(found.labels)} classes; "
        f"{found.unlabelled:,} without a label",
        f"each class: mean of its prompts {', '.join(found.templates)}; ties lose",
        "largest class: what always naming the commonest label would reach",
    ]
    return Group(totals, classes, *(safe(note) for note in notes))
