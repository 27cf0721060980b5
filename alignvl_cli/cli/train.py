"""`alignvl train`: fit the two adapters on stored latents, with a live display."""

import shlex
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from alignvl_cli.cli.console import Session
from alignvl_cli.cli.workspace import MARKS
from alignvl_cli.declarations import given
from alignvl_cli.errors import UsageError
from alignvl_cli.recipes import WITH_UNPAIRED, one_layer, read_settings, resolve_train, run_name, trainings
from alignvl_cli.settings import ReportTo, RunSettings, TrainConfig

if TYPE_CHECKING:
    from alignvl_cli.report.trackers import Tracker
    from alignvl_cli.training.state import Record

Show = Callable[["Record"], None]


def show_training(
    session: Session,
    run: Path,
    records: Generator["Record", None, None],
    report_to: ReportTo | None,
    settings: TrainConfig | None = None,
) -> None:
    """Draw the records of `run` as they come, and log them; an interruption learns how to go on."""
    from alignvl_cli.report.progress import TrainingProgress
    from alignvl_cli.report.trackers import note_tracker, open_tracker
    from alignvl_cli.training.state import Started

    try:
        with closing(records), ExitStack() as open_views:
            show: list[Show] = [open_views.enter_context(TrainingProgress(session.err, quiet=session.quiet)).show]
            is_noted = False
            for record in records:
                if report_to and not is_noted:
                    note_tracker(report_to, run)  # with the first record: only from then on is there a folder
                    is_noted = True
                if report_to and isinstance(record, Started):
                    told = settings.to_json() if settings else None
                    show.append(open_views.enter_context(_Guarded(open_tracker(report_to, run, told), session)).show)
                for view in show:
                    view(record)
    except KeyboardInterrupt as stop:
        if (run / MARKS["run"]).is_file():  # there is something to go on with
            stop.add_note(f"go on with `alignvl train --resume {shlex.quote(str(run))}`")
        raise


class _Guarded:
    """A tracker whose trouble is told once, and is not the training's."""

    def __init__(self, tracker: "Tracker", session: Session) -> None:
        self._tracker, self._session, self._works = tracker, session, True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        self._try(lambda: self._tracker.__exit__(None, None, None))

    def show(self, record: "Record") -> None:
        if self._works:
            self._try(lambda: self._tracker.show(record))

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as problem:  # whatever a tracker raises
            if self._works:
                self._session.warn(
                    f"the tracker gets no more figures ({problem}); the training goes on, and its log has them all"
                )
            self._works = False


def train(
    session: Session,
    stores: Annotated[
        list[Path] | None, typer.Argument(metavar="STORE", help="Latents to train on. Default: the newest store.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Run folder to make. Default: numbered, in the workspace.")
    ] = None,
    val: Annotated[
        Path | None, typer.Option(help="Store whose val split selects the epoch. Default: the first STORE.")
    ] = None,
    unpaired: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="STORE",
            help="Store whose training pictures and captions are used without their pairing; of one that is trained "
            "on, what --subset leaves. Repeat it for several.",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Go on with an unfinished run, by its own settings: no other flag."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings, or the config.json of a run; flags beat it.")
    ] = None,
    *,
    flags: Annotated[dict[str, Any], TrainConfig],
    asked: RunSettings,
) -> None:
    """Fit the two adapters on stored latents.

    Prints the run's path.

    The step, in order: batch, mix, perturb, adapt, compare, smooth the target. Each flag below switches or
    shapes one of these; two arms with the same seed share everything that they have in common.
    """
    if resume is not None:
        places = {"STORE": stores, "--output": output, "--val": val, "--unpaired": unpaired, "--config": config}
        _resume(session, resume, [name for name, place in places.items() if place], flags | given(asked))
        return
    layers = [*([WITH_UNPAIRED] if unpaired else []), *([read_settings(config)] if config else [])]
    resolve_train(*layers, flags)  # wrong whatever the data: said before any data are opened

    if asked.report_to is not None:
        from alignvl_cli.report.trackers import require_tracker

        require_tracker(asked.report_to)
    from alignvl_cli.training.run import count_pairs, train_run

    if not stores:
        stores = [session.workspace.newest_store()]
        session.note(f"training on the newest store, {stores[0]}")
    settings, *others = trainings(*layers, flags, pairs=count_pairs(stores))
    place = session.workspace.place_for(output, "runs", run_name(settings)) if session.is_main else nullcontext(Path())
    with place as run:
        asked_for = one_layer(*layers, flags)
        records = train_run(
            *(stores, run, settings),
            val=val,
            unpaired=unpaired or (),
            overwrite=asked.overwrite,
            given=asked_for,
            others=others,
        )
        show_training(session, run, records, asked.report_to, settings)
    session.result(run)


def _resume(session: Session, run: Path, places: list[str], flags: dict[str, Any]) -> None:
    """Go on with `run`; UsageError naming whatever else was asked for."""
    others = [*places, *(f"--no-{key}" if value is False else f"--{key}" for key, value in flags.items())]
    if others:
        raise UsageError(f"--resume goes on with the run's own settings, so leave out {', '.join(others)}")
    from alignvl_cli.report.trackers import tracker_of
    from alignvl_cli.training.run import resume_run

    records = resume_run(run, [*reversed(session.workspace.stores())])
    show_training(session, run, records, tracker_of(run))
    session.result(run)
