"""What an extraction would take, as a table."""

from rich import box
from rich.table import Table

from alignvl_cli.extraction.estimate import Estimate
from alignvl_cli.report.amounts import as_size, as_time
from alignvl_cli.report.text import safe


def estimate_table(store: str, found: Estimate) -> Table:
    """A line a question: how much, how fast, where to, how long."""
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    counted = "" if found.hashed_images == found.images else f" among the first {found.hashed_images:,}"
    rejected = f"; {found.rejected_in_sample} of {found.sampled_images} sampled ones cannot be read"
    rows = {
        "store": store,
        "images": f"{found.images:,}, {found.distinct_images:,} distinct{counted}"
        + (rejected if found.rejected_in_sample else ""),
        "captions": f"{found.captions:,}, {found.distinct_captions:,} distinct",
        "speed": f"{found.images_per_second:,.1f} images/s, {found.captions_per_second:,.1f} captions/s",
        "batches": f"{found.image_batch} images, {found.text_batch} captions; {found.workers} decoding processes",
        "disk": f"{as_size(found.store_bytes)}, at the worst moment {as_size(found.work_bytes)}; "
        f"{as_size(found.free_bytes)} free",
        "memory": "unknown" if found.memory_bytes is None else as_size(found.memory_bytes),
        "time": f"about {as_time(found.seconds)}",
    }
    for name, value in rows.items():
        table.add_row(name, safe(value))
    return table
