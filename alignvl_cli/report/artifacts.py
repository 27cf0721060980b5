"""What artefacts and the machine are: one artefact's facts, the workspace's list, the doctor's findings.

What a probe found, as tables and one plain sentence.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Group, RenderableType
from rich.text import Text

from alignvl_cli.artifacts import canonical_json, frame_of, read_json
from alignvl_cli.errors import DataError
from alignvl_cli.report.evaluation import DIRECTIONS
from alignvl_cli.report.tables import Cell, Table
from alignvl_cli.report.text import safe
from alignvl_cli.settings import by_flag

if TYPE_CHECKING:
    import pandas

    from alignvl_cli.retrieval.probe import Agreement, Probe

CONFIG, ENVIRONMENT, RESULT = "config.json", "environment.json", "result.json"
"""Records of a run; said here again because the room that writes them loads torch."""


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
    """The artefacts ({kind, path, state, what}, oldest first within a kind), those marked that are taken where no path
    is given (`newest`)."""
    if not artefacts:
        return safe(f"nothing in the workspace {root} yet; begin with: alignvl extract")
    rows = [
        (row["kind"], _below(root, row["path"]) + " *" * row["newest"], row["state"], row["what"]) for row in artefacts
    ]
    notes = ["* the newest of its kind: taken where no path is given"]
    if any(_below(root, row["path"]) != row["path"] for row in artefacts):
        notes.append(f"paths are relative to {root}/")
    return Table.of(
        f"workspace {root}", ("kind", "path", "state", "what it is"), rows, (0, 1, 2, 3), notes=tuple(notes)
    )


def runs_frame(runs: Mapping[Path, str]) -> "pandas.DataFrame":
    """A row each of `runs` ({folder: its state}).

    Columns: run (its name), path, state (`broken` where its records cannot be read), date (UTC, when it was finished;
    of an unfinished one, when it was begun), alignvl (the version that trained it), store and store_hash (of the store
    it was trained on); every setting in which the runs differ, as its flag is called; parameters, selection_mean_recall
    (of the epoch kept, on the split that selected it); and of each evaluation saved beside it mean_recall, rsum and the
    recalls as `SPLIT.METRIC` and `SPLIT.DIRECTION.R@K`. SPLIT is the split's name and what else sets an evaluation
    apart: folds, identical hits, another store. What a run does not have is missing.
    """
    records, settings = [], []
    for path, state in runs.items():
        record = {"run": path.name, "path": str(path), "state": state}
        try:
            record, asked = record | _run_record(path), by_flag(read_json(path / CONFIG, "run")["settings"])
        except (DataError, KeyError, TypeError):
            record, asked = record | {"state": "broken"}, {}
        records.append(record)
        settings.append(asked)
    keys = dict.fromkeys(key for asked in settings for key in asked)
    apart = [key for key in keys if len({canonical_json(asked.get(key)) for asked in settings if asked}) > 1]
    front = ("run", "path", "state", "date", "alignvl", "store", "store_hash")
    rows = [
        {key: record.get(key) for key in front}
        | {key: asked.get(key) for key in apart}
        | {key: value for key, value in record.items() if key not in front}
        for record, asked in zip(records, settings, strict=True)
    ]
    return frame_of(rows, front)


def _run_record(path: Path) -> dict[str, Any]:
    config = read_json(path / CONFIG, "run's configuration")
    (store, *_), last = config["stores"], path / (RESULT if (path / RESULT).is_file() else CONFIG)
    record = {
        "date": datetime.fromtimestamp(int(last.stat().st_mtime), UTC).isoformat(),
        "alignvl": read_json(path / ENVIRONMENT, "run's environment").get("alignvl"),
        "store": store["path"],
        "store_hash": store["content_hash"],
    }
    if last.name == RESULT:
        result = read_json(last, "run's result")
        record |= {"parameters": result.get("parameters"), "selection_mean_recall": result["best"]["mean_recall"]}
    for saved in sorted((path / "eval").glob("*.json")):
        found = read_json(saved, "evaluation")
        place = [found["split"]]
        if found.get("folds", 1) > 1:
            place.append(f"{found['folds']} folds")
        if found.get("identical_hits"):
            place.append("identical hits")
        if (held := found["provenance"].get("store_content_hash")) != store["content_hash"]:
            place.append(f"of {PurePath(found['store']).stem} {str(held)[:8]}")
        metrics = found["metrics"]
        figures = {name: metrics[name] for name in ("mean_recall", "rsum")} | {
            f"{direction}.{name}": value
            for direction in DIRECTIONS
            for name, value in metrics[direction].items()
            if name.startswith("R@")
        }
        record |= {f"{' '.join(place)}.{name}": value for name, value in figures.items()}
    return record


def findings_table(findings: Sequence[Finding]) -> Table:
    """A line a check; of a failed one also what to do."""
    states = {True: Cell("wrong", bold=True, style="red"), False: Cell("ok", style="green")}
    rows = [
        (finding.topic, states[bool(finding.wrong)], Cell(finding.found, below=finding.wrong, style="yellow"))
        for finding in findings
    ]
    return Table.of("", ("check", "state", "found"), rows, (0, 1, 2))


def flat(facts: Mapping[str, Any], mark: str = ".", above: str = "") -> Iterator[tuple[str, Any]]:
    """Each value and its path through nested mappings (lists of them by number), the steps joined by `mark`."""
    for key, value in facts.items():
        if isinstance(value, list | tuple) and value and all(isinstance(part, Mapping) for part in value):
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


def _agreement_table(found: "Agreement") -> Table:
    columns = next(iter(found.parts.values()))
    rows: list[list[str | Cell]] = [
        [name, *(Cell(f"{one.value:.3f}", below=f"{one.shuffled_mean:.3f}") for one in by_text.values())]
        for name, by_text in found.parts.items()
    ]
    return Table.of(
        f"Which layers agree? Mutual {found.neighbours}-nearest neighbours on train; below them, shuffled",
        ("image layer", *(f"text {name}" for name in columns)),
        rows,
        notes=(found.closest.reading,),
    )


def probe_tables(found: "Probe") -> RenderableType:
    """The measures beside those of shuffled pairs; the recall of a linear map beside chance, and the reading."""
    measures = {"mutual 10-nearest neighbours": found.mutual_knn, "linear CKA, debiased": found.cka}
    rows = [
        [name, split, *(f"{figure:.3f}" for figure in (one.value, one.shuffled_mean, one.shuffled_max))]
        for name, by_split in measures.items()
        for split, one in by_split.items()
    ]
    recalls: list[list[str | Cell]] = [
        [
            name,
            *(
                Cell(f"{getattr(found.cca, way)[k]:.1f}", below=f"{chance:.1f}")
                for k, chance in found.cca.chance[way].items()
            ),
        ]
        for way, name in DIRECTIONS.items()
    ]
    held = next(split for split in found.images if split != "train")
    counted = ", ".join(
        f"{found.images[split]:,} of {found.of[split]:,} images and {found.captions[split]:,} captions of {split}"
        for split in found.images
    )
    return Group(
        Table.of(
            "Do the frozen spaces agree?", ("measure", "split", "value", "shuffled", "largest of 20"), rows, (0, 1)
        ),
        *([] if found.layers is None else [_agreement_table(found.layers)]),
        Table.of(
            f"Recall of one linear map (CCA) on {held}; below it, by chance",
            ("direction", *found.cca.image_to_text),
            recalls,
            notes=(f"{found.vision} and {found.text}", f"sampled: {counted}", found.reading),
        ),
    )
