"""`alignvl ablate`: every arm of a study with every seed, and verdicts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignvl_cli.cli.console import Session
from alignvl_cli.cli.options import DeviceOption, JsonOption
from alignvl_cli.errors import check_flag
from alignvl_cli.settings import Device

if TYPE_CHECKING:
    from alignvl_cli.ablation.plan import Setup


def ablate(
    session: Session,
    study: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="Arms, seeds, and the arm to compare with.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Study folder. Default: in the workspace, by name."),
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Store to use. Default: the newest.")] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what it would take, and whether the seeds can settle anything.")
    ] = False,
    seeds: Annotated[str | None, typer.Option(help="0-9, or 0,1,5. Default: those of the study.")] = None,
    margin: Annotated[
        float | None,
        typer.Option(help="Points of mean recall within which arms are equivalent. Default: the study's, else 1."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Runs at a time, each a process. Default: one a GPU, or a share of the cores.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Of each run. Part of what is repeated bit for bit.")] = 1,
    device: DeviceOption = Device.auto,
    as_json: JsonOption = False,
) -> None:
    """Run a study: every arm with every seed, then verdicts.

    The same command again goes on where it stopped; finished runs are not made again. All figures are of the test
    split, all epochs selected on the val split. `alignvl report` shows a finished study again.
    """
    from dataclasses import replace

    from alignvl_cli.ablation.study import check_margin, load_study, parse_seeds

    check_flag(jobs is None or jobs >= 1, "jobs", "at least 1", jobs)
    check_flag(threads >= 1, "threads", "at least 1", threads)
    asked = load_study(study).with_seeds(None if seeds is None else parse_seeds(seeds))
    asked = asked if margin is None else replace(asked, margin=check_margin(margin))

    from alignvl_cli.ablation.plan import set_up

    if data is None:
        data = session.workspace.newest_store()
        session.note(f"on the newest store, {data}")
    folder = output or session.workspace.root / "studies" / asked.name
    setup = set_up(asked, data, device, threads)
    if plan:
        _plan(session, setup, folder, jobs, as_json)
    else:
        _run(session, setup, folder, jobs, as_json)


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
