"""`alignvl eval`: recall of one run, or of several side by side."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignvl_cli.cli.console import Session
from alignvl_cli.cli.options import DataOption, DeviceOption, JsonOption
from alignvl_cli.errors import UsageError
from alignvl_cli.settings import Device, HubnessReport

if TYPE_CHECKING:
    from alignvl_cli.retrieval.calibration import Modesty

PROTOCOL, REPORTS = "Protocol", "Reports"


def eval_(
    session: Session,
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN", help="Runs to evaluate. Default: the newest run.")
    ] = None,
    data: DataOption = None,
    split: Annotated[str, typer.Option(help="Split of the store, or `all`.")] = "test",
    recall_k: Annotated[
        str, typer.Option(help="K of the recalls; RSUM is always of 1, 5 and 10.", rich_help_panel=PROTOCOL)
    ] = "1,5,10",
    folds: Annotated[
        int,
        typer.Option(help="Means over folds of consecutive images: COCO 1K is 5.", rich_help_panel=PROTOCOL),
    ] = 1,
    identical_hits: Annotated[
        bool,
        typer.Option("--identical-hits", help="A caption of the same text is a hit too.", rich_help_panel=PROTOCOL),
    ] = False,
    bootstrap: Annotated[
        bool, typer.Option("--bootstrap", help="95 % intervals, of differences too.", rich_help_panel=REPORTS)
    ] = False,
    calibration: Annotated[
        bool,
        typer.Option(
            "--calibration", help="Is it as sure as it is right? Table and diagrams.", rich_help_panel=REPORTS
        ),
    ] = False,
    hubness: Annotated[
        HubnessReport | None,
        typer.Option(help="How bad hubs are, and recall after a correction.", rich_help_panel=REPORTS),
    ] = None,
    eccv: Annotated[
        Path | None,
        typer.Option(help="COCO 5K: also ECCV Caption and CxC; give dataset_coco.json.", rich_help_panel=REPORTS),
    ] = None,
    device: DeviceOption = Device.auto,
    as_json: JsonOption = False,
) -> None:
    """Report retrieval recall, in both directions.

    Ranks are exact, and ties lose. A FAISS index of each projected gallery is built too, and its agreement
    with the exact ranks is reported.
    """
    from alignvl_cli.cli.workspace import find_store, store_of
    from alignvl_cli.devices import choose_device
    from alignvl_cli.report.evaluation import beyond_table, evaluation_table, hubness_table
    from alignvl_cli.report.reliability import modesty_table
    from alignvl_cli.retrieval.evaluate import compare, evaluate, save_evaluation
    from alignvl_cli.retrieval.metrics import Protocol
    from alignvl_cli.training.run_folder import load_run

    protocol = Protocol.parse(recall_k, folds=folds, identical_hits=identical_hits)
    place = choose_device(device)
    evaluations = []
    for path in runs or [session.newest_run()]:
        run = load_run(path, place)
        store = store_of(session, run, data)
        evaluation = evaluate(
            run,
            store,
            split,
            protocol=protocol,
            bootstrap=bootstrap,
            calibration=calibration,
            hubs=hubness,
            eccv=eccv,
            device=place,
            find=partial(find_store, session, beside=run.path),
        )
        for warning in evaluation.warnings:
            session.warn(warning)
        try:
            saved = save_evaluation(run, evaluation)
            session.note(f"saved {saved}")
            if evaluation.modesty:
                _draw_reliability(session, evaluation.modesty, run.path.name, saved)
        except OSError as problem:  # of somebody else, or archived: what was found is told all the same
            session.warn(f"{problem.filename}: {problem.strerror or problem}; the evaluation is shown, and not saved")
        evaluations.append(evaluation)
    result = evaluations[0] if len(evaluations) == 1 else compare(evaluations)
    if as_json:
        session.document(result.to_json())
        return
    session.show(evaluation_table(evaluations))
    if calibration:
        session.show(modesty_table(evaluations))
    if hubness:
        session.show(hubness_table(evaluations))
    if eccv:
        session.show(beyond_table(evaluations))


def _draw_reliability(session: Session, modesty: "Modesty", title: str, saved: Path) -> None:
    """Reliability diagrams beside the evaluation `saved`; without matplotlib, what to install."""
    from alignvl_cli.report.reliability import save_reliability

    try:
        paths = save_reliability(modesty, title, saved.with_name(f"{saved.stem}-reliability"))
    except UsageError as problem:  # the table and the JSON need no matplotlib
        session.note(str(problem))
        return
    session.note(f"drew {paths[0]} and {paths[1].name}")
