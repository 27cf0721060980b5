"""`alignvl ablate`: every arm of a study with every seed, and verdicts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignvl_cli.cli.console import Session
from alignvl_cli.declarations import given
from alignvl_cli.errors import UsageError
from alignvl_cli.settings import AblateSettings

if TYPE_CHECKING:
    from alignvl_cli.ablation.setup import Setup


def ablate(
    session: Session,
    study: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="Arms, seeds, and the arm to compare with.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Study folder. Default: in the workspace, by name."),
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Store to use. Default: the newest.")] = None,
    *,
    asked: AblateSettings,
) -> None:
    """Run a study: every arm with every seed, then verdicts.

    The same command again resumes it; with an arm, a seed or another reference more in the file, only what is missing
    is run. All figures are of the test split, all epochs selected on the val split. `alignvl report` shows it again.
    """
    from alignvl_cli.ablation.study import load_study, parse_seeds

    wanted = load_study(study).changed(None if asked.seeds is None else parse_seeds(asked.seeds), asked.margin)

    from alignvl_cli.ablation.setup import set_up

    named = wanted.data.stores if wanted.data else ()
    if named and data is not None:
        raise UsageError(f"{study} names its stores under [data]; leave --data out, or `stores` in the file")
    if data is None and not named:
        data = session.workspace.newest_store()
        session.note(f"on the newest store, {data}")
    stores = [data] if data else [session.workspace.store_called(name, study.parent) for name in named]
    folder = output or session.workspace.root / "studies" / wanted.name
    setup = set_up(wanted, stores, asked.device, asked.threads, given=given(asked))
    if asked.plan:
        _plan(session, setup, folder, asked.jobs, asked.as_json)
    else:
        _run(session, setup, folder, asked.jobs, asked.as_json)


def _plan(session: Session, setup: "Setup", folder: Path, jobs: int | None, as_json: bool) -> None:
    from alignvl_cli.ablation.plan import plan_study
    from alignvl_cli.report.study import plan_text

    found = plan_study(setup, folder, jobs)
    if as_json:
        session.document(found.to_json())
        return
    session.show(plan_text(found))


def _run(session: Session, setup: "Setup", folder: Path, jobs: int | None, as_json: bool) -> None:
    from alignvl_cli.ablation.run import run_study
    from alignvl_cli.report.progress import StudyProgress
    from alignvl_cli.report.study import study_notes, study_tables
    from alignvl_cli.report.tables import terminal

    with StudyProgress(session.err, quiet=session.quiet) as progress:
        for event in run_study(setup, folder, jobs):
            progress.show(event)
    verdicts = progress.verdicts
    session.note(f"saved {folder}")
    if as_json:
        session.document(verdicts)
        return
    session.show(terminal(study_tables(verdicts), study_notes(verdicts), verdicts["warnings"]))
