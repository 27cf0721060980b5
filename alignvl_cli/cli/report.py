"""`alignvl report`: a study or a run, as a page, a table, or for a paper."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignvl_cli.cli.console import Session
from alignvl_cli.cli.workspace import MARKS, find_store, store_of
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.settings import REPORTED_SPLIT, Device, ReportFormat, ReportSettings

if TYPE_CHECKING:
    from alignvl_cli.report.page import Views


SUFFIXES = {
    ".md": ReportFormat.markdown,
    ".tex": ReportFormat.latex,
    ".csv": ReportFormat.csv,
    ".json": ReportFormat.json,
    ".html": ReportFormat.html,
}
"""What a file's name says of its format."""


def report(
    session: Session,
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="STUDY_OR_RUN", help="A folder, or a study's name in the workspace. Default: newest study."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write: .html, .md, .tex, .csv or .json.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Store to use. Default: that of the study, or of the run's training.")
    ] = None,
    *,
    asked: ReportSettings,
) -> None:
    """Show a study or a run, as a page or as tables; of a study that is not finished the part that is.

    A page is one file with everything inside it: verdicts, tables, plots, examples with pictures, and how to make it
    again. A run is evaluated anew for its page; tables of runs are those of `alignvl eval`.
    """
    chosen = asked.format or (ReportFormat.table if output is None else _by_name(output))
    if chosen is ReportFormat.table and output is not None:
        raise UsageError("--format table is for the terminal: leave --output out, or name another format")
    if output is not None:
        require_free(output, asked.overwrite)
    folder = _folder(session, path)
    is_run = (folder / MARKS["run"]).is_file()
    if is_run and chosen is not ReportFormat.html and asked.plots is None:
        raise UsageError(f"a run is reported as a page: add -o page.html; its table: alignvl eval {folder}")
    if asked.split is not None and not is_run:
        raise UsageError("--split is for a run: a study is about the split that it was evaluated on; leave it out")
    if chosen is ReportFormat.html or asked.plots is not None:
        views = _views(session, folder, is_run, data, asked.split, asked.device)
        if asked.plots is not None:
            _save_plots(session, views, asked.plots, asked.overwrite)
    if chosen is ReportFormat.html:
        from alignvl_cli.report.page import page_html

        _deliver(session, page_html(views.page()), output)
    elif not is_run:
        _tables(session, folder, chosen, output)


def _tables(session: Session, folder: Path, form: ReportFormat, output: Path | None) -> None:
    from alignvl_cli.ablation.records import verdicts_frame
    from alignvl_cli.report.study import study_notes, study_tables, verdicts_of
    from alignvl_cli.report.tables import as_csv, as_latex, as_markdown, terminal
    from alignvl_cli.report.text import json_text

    verdicts = verdicts_of(folder)
    tables = (study_tables(verdicts), study_notes(verdicts), verdicts["warnings"])
    if form is ReportFormat.table:
        session.show(terminal(*tables))
        return
    writers: dict[ReportFormat, Callable[[], str]] = {
        ReportFormat.markdown: partial(as_markdown, *tables),
        ReportFormat.latex: partial(as_latex, *tables),
        ReportFormat.csv: lambda: as_csv(verdicts_frame(verdicts)),
        ReportFormat.json: partial(json_text, verdicts),
    }
    _deliver(session, writers[form](), output)


def _views(
    session: Session, folder: Path, is_run: bool, data: Path | None, split: str | None, device: Device
) -> "Views":
    from alignvl_cli.devices import choose_device

    place = choose_device(device)
    if is_run:
        from alignvl_cli.report.run_page import run_views
        from alignvl_cli.training.run_folder import load_run

        run = load_run(folder, place)
        return run_views(run, store_of(session, run, data), split or REPORTED_SPLIT, place)
    from alignvl_cli.report.study_page import study_views

    return study_views(folder, data, place, find=partial(find_store, session), warn=session.warn)


def _save_plots(session: Session, views: "Views", folder: Path, overwrite: bool) -> None:
    from alignvl_cli.report.figures import SAVED, save_plots

    for plot in views.plots:
        for suffix in SAVED:
            require_free(folder / f"{plot.name}.{suffix}", overwrite)
    for saved in save_plots(views.plots, folder):
        session.note(f"drew {saved}")


def _deliver(session: Session, text: str, output: Path | None) -> None:
    """`text` on stdout; or into a file, whole or not at all, and then its path."""
    from alignvl_cli.artifacts import committed

    if output is None:
        session.result(text.rstrip("\n"))
        return
    with committed(output) as scratch:
        scratch.write_text(text, encoding="utf-8")
    session.result(output)


def _by_name(output: Path) -> ReportFormat:
    form = SUFFIXES.get(output.suffix.lower())
    if form is None:
        raise UsageError(f"--output {output}: wanted a name in {', '.join(SUFFIXES)}, or say which --format")
    return form


def require_free(path: Path, overwrite: bool) -> None:
    """UsageError when `path` is a folder, or a file that is not to be replaced."""
    if path.is_dir():
        raise UsageError(f"{path}: a folder is there; name a file")
    if path.exists() and not overwrite:
        raise UsageError(f"{path}: a file is there already; add --overwrite to replace it")


def _folder(session: Session, study: Path | None) -> Path:
    """The folder that the user means; without a name, the newest finished study."""
    if study is not None:
        inside = session.workspace.root / "studies" / study
        if study.exists() or inside.is_dir():
            return study if study.exists() else inside
        names = ", ".join(path.name for path in session.workspace.studies()) or "none"
        raise DataError(f"{study}: no such run or study (studies in the workspace: {names})")
    newest = session.workspace.newest_study()
    session.note(f"the newest study, {newest}")
    return newest
