"""What artefacts and the machine are: one artefact's facts, the workspace's list, the doctor's findings."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Protocol

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from alignvl_cli.report.text import safe


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
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
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


def findings_table(findings: Sequence[Finding]) -> Table:
    """A line a check; of a failed one also what to do."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
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
