"""What a check of a dataset found: a table, the JSON document, and the warnings in words; and what an extraction would
take, as a table."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType

from alignvl_cli.report.tables import Table
from alignvl_cli.report.text import as_size, as_time

if TYPE_CHECKING:
    from alignvl_cli.datasets.check import Bad, DataReport, Duplicates, Member
    from alignvl_cli.extraction.estimate import Estimate


SCHEMA = "alignvl.data-check/1"
SHOWN = 8
"""Bad images, and groups of duplicates, in a table; the JSON document has all."""
SHOWN_MEMBERS = 4


def check_tables(dataset: str, report: "DataReport") -> RenderableType:
    """Counts, then the first bad images and the first groups of duplicates, those across splits first."""
    parts = [_counts(dataset, report)]
    bad = [("missing", one) for one in report.missing] + [("unreadable", one) for one in report.unreadable]
    if bad:
        parts.append(_bad_table(bad))
    for title, duplicates in (("exact duplicates", report.exact), ("near duplicates", report.near)):
        if duplicates.groups:
            parts.append(_groups_table(title, duplicates))
    return Group(*parts)


def check_document(dataset: str, report: "DataReport") -> dict[str, Any]:
    """The whole report as JSON."""
    document = {"schema": SCHEMA, "dataset": dataset, **asdict(report)}
    for name, duplicates in (("exact", report.exact), ("near", report.near)):
        document[name] |= {"images": duplicates.images, "groups_across_splits": len(duplicates.across)}
    return document


def check_warnings(report: "DataReport") -> Iterator[str]:
    """What may flatter or mislead an evaluation."""
    if leaks := len(report.exact.across):
        yield (
            f"{leaks:,} image contents stand in more than one split: what was trained on is then searched for; "
            "drop them from one side"
        )
    if leaks := len(report.near.across):
        yield f"{leaks:,} groups of images that look alike stand in more than one split: see if they show the same"
    if report.captions.repeated_across:
        yield f"{report.captions.repeated_across:,} captions stand in more than one split, to the letter"


def _counts(dataset: str, report: "DataReport") -> Table:
    captions = report.captions
    rows: list[tuple[str, str]] = [
        ("images", f"{report.images:,}"),
        ("missing", f"{len(report.missing):,}"),
        ("unreadable", f"{len(report.unreadable):,}"),
        ("splits", ", ".join(f"{name} {count:,}" for name, count in report.splits.items())),
        ("exact duplicates", _duplicates(report.exact)),
        (
            "near duplicates",
            _duplicates(report.near) + (f"; {report.plain:,} too plain to compare" if report.plain else ""),
        ),
        ("captions", f"{captions.count:,}, {captions.distinct:,} distinct"),
        (
            "captions an image",
            f"{captions.per_image.least} to {captions.per_image.most}, mean {captions.per_image.middle:.2f}",
        ),
        ("words a caption", f"{captions.words.least} to {captions.words.most}, median {captions.words.middle:g}"),
        (
            "repeated captions",
            f"{captions.repeated_within:,} within a split; {captions.repeated_across:,} across splits",
        ),
        ("images without captions", f"{captions.images_without:,}"),
        ("blank captions", f"{captions.blank:,} (dropped)"),
        ("cleaned captions", f"{captions.cleaned:,}"),
    ]
    if cut := captions.truncation:
        rows.append(
            ("truncated captions", f"{cut.captions:,} of more than {cut.max_length} tokens (longest: {cut.longest:,})")
        )
    return Table.of(f"dataset {dataset}", (), rows)


def _duplicates(duplicates: "Duplicates") -> str:
    if not duplicates.groups:
        return "none"
    return (
        f"{duplicates.images:,} images in {len(duplicates.groups):,} groups, {len(duplicates.across):,} across splits"
    )


def _bad_table(bad: Sequence[tuple[str, "Bad"]]) -> Table:
    rows = [(what, one.id, one.uri, one.reason) for what, one in bad[:SHOWN]]
    return Table.of(
        _title("images that cannot be used", len(bad)), ("what", "id", "where", "reason"), rows, (0, 1, 2, 3)
    )


def _groups_table(title: str, duplicates: "Duplicates") -> Table:
    groups = sorted(duplicates.groups, key=lambda group: len({member.split for member in group}) == 1)
    rows = [
        (f"{len(group)}", ", ".join(dict.fromkeys(member.split for member in group)), _ids(group))
        for group in groups[:SHOWN]
    ]
    return Table.of(_title(title, len(groups)), ("images", "splits", "ids"), rows, (1, 2))


def _ids(group: Sequence["Member"]) -> str:
    more = f", and {len(group) - SHOWN_MEMBERS} more" if len(group) > SHOWN_MEMBERS else ""
    return ", ".join(member.id for member in group[:SHOWN_MEMBERS]) + more


def _title(what: str, count: int) -> str:
    return what + (f", the first {SHOWN} of {count:,}" if count > SHOWN else "")


def estimate_table(store: str, found: "Estimate") -> Table:
    """A line a question: how much, how fast, where to, how long."""
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
    return Table.of("", (), list(rows.items()))
