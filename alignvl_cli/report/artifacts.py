"""What artefacts and the machine are: one artefact's facts, the workspace's list, the doctor's findings.

What a probe found, as tables and one plain sentence.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Protocol

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from alignvl_cli.report.tables import Cell, Table, terminal
from alignvl_cli.report.text import safe
from alignvl_cli.retrieval.probe import Measured, Probe


class Finding(Protocol):
    """One check; `wrong` says what to do about it, and is empty when all is well."""

    @property
    def topic(self) -> str: ...
    @property
    def found(self) -> str: ...
    @property
    def wrong(self) -> str: ...


def facts_text(facts: Mapping[str, Any], width: int) -> Text:
    """Keys and values; those of a nested object are named by their path, `made_by.python`.

    A value that `width` columns do not hold beside its key stands whole on the next line, to be copied: a path or a
    hash is never folded.
    """
    lines = [(safe(key, "bold"), safe(shown(value))) for key, value in flat(facts)]
    column = min(max((len(key) for key, _ in lines), default=0), width // 2)
    text = Text()
    for key, value in lines:
        apart = " " * (max(column - len(key), 0) + 2)
        is_beside = len(key) + len(apart) + len(value) <= width
        text.append_text(key).append(apart if is_beside else "\n  ").append_text(value).append("\n")
    text.rstrip()
    return text


def workspace_table(root: str, artefacts: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The artefacts ({kind, path, what}, oldest first within a kind), the newest of each kind marked."""
    if not artefacts:
        return Text("nothing in the workspace ").append_text(safe(root)).append(" yet; begin with: alignvl extract")
    newest = {row["kind"]: row["path"] for row in artefacts}
    title = Text("workspace ", style="bold").append_text(safe(root))
    table = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("kind")
    table.add_column("path", overflow="fold")
    table.add_column("what it is", overflow="fold")
    for row in artefacts:
        name = _below(root, row["path"])
        mark = " *" if row["path"] == newest[row["kind"]] else ""
        table.add_row(row["kind"], safe(name).append(mark, style="bold"), safe(row["what"]))
    notes = Text("* the newest of its kind: taken where no path is given", style="dim")
    if any(_below(root, row["path"]) != row["path"] for row in artefacts):
        notes.append("\npaths are relative to ").append_text(safe(f"{root}/"))
    return Group(title, table, notes)


def findings_table(findings: Sequence[Finding]) -> Grid:
    """A line a check; of a failed one also what to do."""
    table = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("check", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("found", overflow="fold")
    for finding in findings:
        found = safe(finding.found)
        if finding.wrong:
            found.append("\n").append_text(safe(finding.wrong, "yellow"))
        state = Text("wrong", style="bold red") if finding.wrong else Text("ok", style="green")
        table.add_row(safe(finding.topic), state, found)
    return table


def flat(facts: Mapping[str, Any], mark: str = ".", above: str = "") -> Iterator[tuple[str, Any]]:
    """Each value and its path through nested mappings (lists of them by number), the steps joined by `mark`."""
    for key, value in facts.items():
        if isinstance(value, list) and value and all(isinstance(part, Mapping) for part in value):
            yield from flat({str(number): part for number, part in enumerate(value)}, mark, f"{above}{key}{mark}")
        elif isinstance(value, Mapping) and value:
            yield from flat(value, mark, f"{above}{key}{mark}")
        else:
            yield f"{above}{key}", value


def shown(value: Any) -> str:
    """Counts with thousands separators, shares and scores short, an absent value as a dash."""
    if value is None or value in ({}, [], ""):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _below(root: str, path: str) -> str:
    """`path` from `root` on, where it lies below it."""
    return str(PurePath(path).relative_to(root)) if PurePath(path).is_relative_to(root) else path


def probe_tables(found: Probe) -> RenderableType:
    """The measures beside those of shuffled pairs, the recall of a linear map beside chance, and the reading."""
    measures = {"mutual 10-nearest neighbours": found.mutual_knn, "linear CKA, debiased": found.cka}
    rows = [_row(name, split, one) for name, by_split in measures.items() for split, one in by_split.items()]
    ways = {"image to text": "image_to_text", "text to image": "text_to_image"}
    recall_rows = [
        (
            Cell(name),
            *(Cell(f"{getattr(found.cca, way)[k]:.1f}", below=f"{by_chance:.1f}") for k, by_chance in chance.items()),
        )
        for name, way in ways.items()
        for chance in [found.cca.chance[way]]
    ]
    held = next(split for split in found.images if split != "train")
    tables = [
        Table(
            "Do the frozen spaces agree?",
            ("measure", "split", "value", "shuffled", "largest of 20"),
            (0, 1),
            tuple(rows),
        ),
        Table(
            f"Recall of one linear map (CCA) on {held}; below it, by chance",
            ("direction", *found.cca.image_to_text),
            (0,),
            tuple(recall_rows),
        ),
    ]
    counted = ", ".join(
        f"{found.images[split]:,} of {found.of[split]:,} images and {found.captions[split]:,} captions of {split}"
        for split in found.images
    )
    return terminal(tables, [f"{found.vision} and {found.text}", f"sampled: {counted}", found.reading])


def _row(name: str, split: str, one: Measured) -> tuple[Cell, ...]:
    figures = (one.value, one.shuffled_mean, one.shuffled_max)
    return (Cell(name), Cell(split), *(Cell(f"{figure:.3f}") for figure in figures))
