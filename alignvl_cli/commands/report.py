"""`alignvl report`: a finished study again, as a table or for a paper."""

import json
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from alignvl_cli.commands.session import Session
from alignvl_cli.errors import DataError


class ReportFormat(StrEnum):
    table = "table"
    markdown = "markdown"
    latex = "latex"
    csv = "csv"
    json = "json"


def report(
    session: Session,
    study: Annotated[
        Path | None,
        typer.Argument(metavar="STUDY", help="Study folder, or its name in the workspace. Default: newest."),
    ] = None,
    form: Annotated[
        ReportFormat, typer.Option("--format", help="json and csv hold every figure at full precision.")
    ] = ReportFormat.table,
) -> None:
    """Show the verdicts of a finished study: as a table, Markdown, LaTeX, CSV or JSON."""
    from alignvl_cli.ablation.records import read_verdicts
    from alignvl_cli.report.study import study_notes, study_tables
    from alignvl_cli.report.tables import terminal

    verdicts = read_verdicts(_place(session, study))
    if form is ReportFormat.table:
        session.show(terminal(study_tables(verdicts), study_notes(verdicts), verdicts["warnings"]))
        return
    session.result(WRITERS[form](verdicts).rstrip("\n"))


def _place(session: Session, study: Path | None) -> Path:
    """The folder that the user means; without a name, the study that was finished last."""
    studies = session.workspace.root / "studies"
    if study is not None:
        inside = studies / study
        return inside if not study.exists() and inside.is_dir() else study
    from alignvl_cli.ablation.records import VERDICTS

    finished = sorted(studies.glob(f"*/{VERDICTS}"), key=lambda path: path.stat().st_mtime)
    if not finished:
        raise DataError(f"no finished study in {studies}; make one with `alignvl ablate STUDY.toml`, or name a folder")
    session.note(f"the study finished last, {finished[-1].parent}")
    return finished[-1].parent


def _markdown(verdicts: dict[str, Any]) -> str:
    from alignvl_cli.report.study import study_notes, study_tables
    from alignvl_cli.report.tables import as_markdown

    return as_markdown(study_tables(verdicts), study_notes(verdicts), verdicts["warnings"])


def _latex(verdicts: dict[str, Any]) -> str:
    from alignvl_cli.report.study import study_notes, study_tables
    from alignvl_cli.report.tables import as_latex

    return as_latex(study_tables(verdicts), study_notes(verdicts), verdicts["warnings"])


def _csv(verdicts: dict[str, Any]) -> str:
    from alignvl_cli.report.study import CSV_COLUMNS, study_rows
    from alignvl_cli.report.tables import as_csv

    return as_csv(CSV_COLUMNS, study_rows(verdicts))


def _json(verdicts: dict[str, Any]) -> str:
    return json.dumps(verdicts, indent=2, ensure_ascii=False)


WRITERS: dict[ReportFormat, Callable[[dict[str, Any]], str]] = {
    ReportFormat.markdown: _markdown,
    ReportFormat.latex: _latex,
    ReportFormat.csv: _csv,
    ReportFormat.json: _json,
}
