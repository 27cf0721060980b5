"""`alignvl eval`: recall of one run, or of several side by side."""

import json
from pathlib import Path
from typing import Annotated

import typer

from alignvl_cli.commands.options import DataOption, DeviceOption, JsonOption
from alignvl_cli.commands.session import Session
from alignvl_cli.config import Device


def eval_(
    session: Session,
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN", help="Runs to evaluate. Default: the newest run.")
    ] = None,
    data: DataOption = None,
    split: Annotated[str, typer.Option(help="Split of the store, or `all`.")] = "test",
    device: DeviceOption = Device.auto,
    as_json: JsonOption = False,
) -> None:
    """Report retrieval recall, in both directions.

    Ranks are exact, and ties lose. A FAISS index of each projected gallery is built too, and its agreement
    with the exact ranks is reported.
    """
    from alignvl_cli.commands.artefacts import store_of
    from alignvl_cli.devices import choose_device
    from alignvl_cli.report.retrieval import evaluation_table
    from alignvl_cli.retrieval.evaluate import compare, evaluate, save_evaluation
    from alignvl_cli.runs.folder import load_run

    place = choose_device(device)
    evaluations = []
    for path in runs or [session.newest_run()]:
        run = load_run(path, place)
        evaluation = evaluate(run, store_of(session, run, data), split, device=place)
        for warning in evaluation.warnings:
            session.warn(warning)
        session.note(f"saved {save_evaluation(run, evaluation)}")
        evaluations.append(evaluation)
    result = evaluations[0] if len(evaluations) == 1 else compare(evaluations)
    if as_json:
        session.result(json.dumps(result.to_json(), indent=2, ensure_ascii=False))
    else:
        session.show(evaluation_table(evaluations))
