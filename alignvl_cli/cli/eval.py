"""`alignvl eval`: recall of one run, or of several side by side."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignvl_cli.cli.console import Session
from alignvl_cli.cli.options import CsvOption, DataOption
from alignvl_cli.errors import UsageError
from alignvl_cli.settings import EvalSettings

if TYPE_CHECKING:
    from alignvl_cli.retrieval.calibration import Modesty


def eval_(
    session: Session,
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN", help="Runs to evaluate. Default: the newest run.")
    ] = None,
    data: DataOption = None,
    csv: CsvOption = None,
    *,
    asked: EvalSettings,
) -> None:
    """Report retrieval recall, in both directions.

    Ranks are exact, and ties lose. A FAISS index of each projected gallery is built too, and its agreement
    with the exact ranks is reported.
    """
    from alignvl_cli.artifacts import committed
    from alignvl_cli.cli.workspace import find_store, store_of
    from alignvl_cli.devices import choose_device
    from alignvl_cli.report.evaluation import beyond_table, hubness_table, modesty_table, recall_table, warnings_of
    from alignvl_cli.report.tables import as_csv, terminal
    from alignvl_cli.retrieval.evaluate import compare, evaluate, save_evaluation
    from alignvl_cli.retrieval.metrics import Protocol
    from alignvl_cli.training.run_folder import load_run

    if csv is not None and not csv.absolute().parent.is_dir():
        raise UsageError(f"--csv {csv}: there is no folder {csv.parent}; make it, or name another file")
    protocol = Protocol.parse(asked.recall_k, folds=asked.folds, identical_hits=asked.identical_hits)
    place = choose_device(asked.device)
    evaluations = []
    for path in runs or [session.newest_run()]:
        run = load_run(path, place)
        store = store_of(session, run, data)
        evaluation = evaluate(
            run,
            store,
            asked.split,
            protocol=protocol,
            bootstrap=asked.bootstrap,
            calibration=asked.calibration,
            hubs=asked.hubness,
            eccv=asked.eccv,
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
    if csv is not None:
        with committed(csv) as scratch:
            scratch.write_text(as_csv(result.to_frame()), encoding="utf-8")
        session.note(f"wrote {csv}")
    if asked.as_json:
        session.document(result.to_json())
        return
    extra = {modesty_table: asked.calibration, hubness_table: asked.hubness, beyond_table: asked.eccv}
    tables = [recall_table(evaluations), *(table(evaluations) for table, is_asked in extra.items() if is_asked)]
    session.show(terminal(tables, warnings=warnings_of(evaluations)))


def _draw_reliability(session: Session, modesty: "Modesty", title: str, saved: Path) -> None:
    """Reliability diagrams beside the evaluation `saved`; without matplotlib, what to install."""
    from alignvl_cli.report.plots import save_reliability

    try:
        paths = save_reliability(modesty, title, saved.with_name(f"{saved.stem}-reliability"))
    except UsageError as problem:  # the table and the JSON need no matplotlib
        session.note(str(problem))
        return
    session.note(f"drew {paths[0]} and {paths[1].name}")
