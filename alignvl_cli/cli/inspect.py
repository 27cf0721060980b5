"""`alignvl inspect`: what an artefact is, and whether it is sound."""

import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignvl_cli.cli.console import Session
from alignvl_cli.cli.workspace import MARKS, Entry
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.settings import Device, InspectSettings, Precision, Trust

if TYPE_CHECKING:
    from alignvl_cli.extraction.verify import Verification

NAMED = 5
"""Ids that a warning names; --json has them all."""


UNFINISHED = {
    "store": "run the same `alignvl extract` again to resume it",
    "run": "resume it with `alignvl train --resume {path}`",
    "study": "run `alignvl ablate` with its file again to resume it",
}
"""Kind of artefact -> what to type where one is unfinished."""


def inspect_(
    session: Session,
    path: Annotated[
        Path | None,
        typer.Argument(metavar="PATH", help="A store, run, index or study. Default: list the whole workspace."),
    ] = None,
    *,
    trust: Trust,
    asked: InspectSettings,
) -> None:
    """Say what an artefact is, and verify it.

    Without a path, list the workspace, unfinished artefacts too.

    With --verify the largest gap (1 - cosine) between stored and fresh latents is reported; exits with 3 when
    it is more than rounding explains or no image can be compared, and with 4 when the encoders are no longer
    those of the store.
    """
    from alignvl_cli.report.artifacts import facts_text, workspace_table
    from alignvl_cli.report.tables import as_csv

    if asked.verify is not None and (asked.csv or path is None or _kind(path) != "store"):
        raise UsageError("--verify encodes a sample again, for which it needs a store; give the path of one")
    if asked.csv:
        if path is not None:
            raise UsageError(
                "--csv prints the runs of the whole workspace on stdout: leave the path out, "
                "`alignvl inspect --csv > runs.csv`"
            )
        session.result(as_csv(session.workspace.to_frame()).rstrip("\n"))
        return
    if path is None:
        rows = [_row(entry, asked.check) for entry in session.workspace.everything()]
        root = str(session.workspace.root)
        if asked.as_json:
            session.document({"workspace": root, "artefacts": rows})
        else:
            session.show(workspace_table(root, rows))
        return
    kind = _kind(path)
    facts = {"kind": kind, "path": str(path), **FACTS[kind](path, asked.check)}
    verification = None
    if asked.verify is not None:
        verification = _verify(path, asked.verify, trust)
        facts["verify"] = asdict(verification)
    if asked.as_json:
        session.document(facts)
    else:
        session.show(facts_text(facts, session.out.width), is_whole=True)
    if verification is not None:
        _judge(session, path, verification)


def _verify(path: Path, sample: int, trust: Trust) -> "Verification":
    from alignvl_cli.devices import choose_device
    from alignvl_cli.encoders.text import reload_text
    from alignvl_cli.encoders.vision import reload_vision
    from alignvl_cli.extraction.verify import verify_store
    from alignvl_cli.store.reader import open_store

    store = open_store(path)
    device = choose_device(Device.auto)
    vision = reload_vision(**store.vision, device=device, precision=_precision(store.vision), trust=trust)
    text = reload_text(**store.text, device=device, precision=_precision(store.text), trust=trust)
    return verify_store(store, vision, text, sample)


def _precision(side: dict[str, Any]) -> Precision:
    """As the store was made, so that the gap shows no more than what has changed since."""
    return Precision(side["about"]["precision"] or Precision.auto)


def _judge(session: Session, path: Path, found: "Verification") -> None:
    """Warn of what could not be compared; DataError for latents that are not what their encoders give, and when not one
    image could be compared that is looked for."""
    for ids, what in (
        (found.gone, "cannot be found by their uri (moved?)"),
        (found.inside_arrow, "are inside Arrow files, which are a cache and not looked into"),
        (found.changed, "have other bytes than those that were extracted"),
        (found.unreadable, "cannot be decoded here"),
    ):
        if ids:
            named = ", ".join(ids[:NAMED]) + (", ..." if len(ids) > NAMED else "")
            session.warn(f"{len(ids)} of the sampled images {what}, and were not compared: {named}")
    for kind, gap in (("image", found.images), ("caption", found.captions)):
        if not gap.is_within:
            raise DataError(
                f"{path}: the {kind} latent of {gap.worst!r} is not what its encoder gives: 1 - cosine is"
                f" {gap.largest:.2g}, and rounding explains {gap.tolerance:.2g}; extract again with --overwrite "
                "--reuse none"
            )
    missed = len(found.gone) + len(found.changed) + len(found.unreadable)
    if missed and not found.images.compared:
        raise DataError(
            f"{path}: none of the {missed} sampled images could be compared, so that nothing is verified but captions;"
            " put the pictures back where they were (--json has their ids)"
        )


def _row(entry: Entry, check: bool) -> dict[str, Any]:
    """The line of the workspace's list; a broken artefact is listed with what is wrong with it."""
    row = {"kind": entry.kind, "path": str(entry.path), "state": entry.state, "newest": entry.newest}
    if entry.state == "unfinished":
        return row | {"what": UNFINISHED[entry.kind].format(path=shlex.quote(str(entry.path)))}
    try:
        return row | {"what": FACTS[entry.kind](entry.path, check)["what"]}
    except DataError as problem:
        return row | {"state": "broken", "what": f"broken: {problem}"}


def _kind(path: Path) -> str:
    """What lies at `path`, told by the file that each kind of artefact has."""
    if not path.exists():
        if path.with_name(f"{path.name}.partial").is_dir():
            return "store"  # whose reader says how to resume it
        raise DataError(f"{path}: no such artefact; `alignvl inspect` lists those of the workspace")
    if path.is_file():
        return "store"
    for kind, mark in MARKS.items():
        if (path / mark).is_file():
            return kind
    raise DataError(
        f"{path}: no store, run, index or study (a run has a {MARKS['run']}, an index an {MARKS['index']}, a study a "
        f"{MARKS['study']})"
    )


def _store_facts(path: Path, check: bool) -> dict[str, Any]:
    from alignvl_cli.store.reader import open_store

    store = open_store(path)
    if check:
        store.verify()
    images, captions = len(store.image_id), len(store.text_image)
    sizes = store.split_sizes()
    return {
        "what": f"{images:,} images, {captions:,} captions; {', '.join(f'{name} {n:,}' for name, n in sizes.items())}",
        "images": images,
        "captions": captions,
        "splits": sizes,
        "rejected": len(store.rejected),
        "image_latent": f"{store.image_latent.shape[1]} x {store.image_latent.dtype}",
        "text_latent": f"{store.text_latent.shape[1]} x {store.text_latent.dtype}",
        "vision": store.vision,
        "text": store.text,
        "dataset": store.dataset,
        "encoder_hash": store.encoder_hash,
        "content_hash": store.content_hash,
        "made_by": store.made_by,
        "check": "every dataset equals its digest, every latent is finite" if check else "metadata only; try --check",
    }


def _run_facts(path: Path, check: bool) -> dict[str, Any]:
    from alignvl_cli.training.run_folder import load_run

    run = load_run(path)  # strict: the weights' hash, names, shapes and finiteness are verified in any case
    if check:
        from alignvl_cli.ablation.analysis import read_validations
        from alignvl_cli.artifacts import read_json
        from alignvl_cli.training.run_folder import ENVIRONMENT

        read_validations(path)
        read_json(path / ENVIRONMENT, "run's environment")
        _check_evaluations(path)
    parameters = sum(weight.numel() for weight in run.adapters.parameters())
    best = run.result["best"]
    return {
        "what": f"{parameters:,} parameters; best validation mean recall {best['mean_recall']:.1f}",
        "parameters": parameters,
        "temperature": run.temperature,
        "result": run.result,
        "config": run.config,
        "check": "the weights equal their SHA-256 and fit the configuration"
        + ("; log, evaluations and all records equal theirs" if check else ""),
    }


def _index_facts(path: Path, check: bool) -> dict[str, Any]:
    from alignvl_cli.retrieval.index import open_index

    record = open_index(path).record  # strict: every part's hash is verified in any case
    return {
        "what": f"{record.images:,} images, {record.captions:,} captions of split {record.split}"
        + (f" of {len(record.stores)} stores" if record.stores else ""),
        **record.to_json(),
        "check": "every part equals its SHA-256",
    }


def _check_evaluations(run: Path) -> None:
    from alignvl_cli.retrieval.evaluate import read_evaluation

    for path in sorted((run / "eval").glob("*.json")):
        read_evaluation(path)


def _study_facts(path: Path, check: bool) -> dict[str, Any]:
    from alignvl_cli.ablation.records import FAILED, read_study, read_verdicts, run_folders
    from alignvl_cli.training.run_folder import load_run

    study, verdicts = read_study(path), read_verdicts(path)
    cells = verdicts.get("cells") or []
    if check:
        for place in run_folders(path, study).values():
            if not (place / FAILED).is_file():
                load_run(place)
                _check_evaluations(place)
    judged = {found["name"]: found["words"] for found in verdicts.get("over_sets", ()) if found["condition"] is None}
    return {
        "what": f"{verdicts['question']} {len(study['arms'])} arms, {len(verdicts['seeds'])} seeds"
        + (f", {len(cells)} cells" if cells else ""),
        "verdicts": judged or {arm["arm"]: arm["words"] for arm in verdicts["arms"]},
        **study,
        "check": "the weights, evaluations and ranks of every run equal their SHA-256"
        if check
        else "its records only; try --check",
    }


FACTS: dict[str, Callable[[Path, bool], dict[str, Any]]] = {
    "store": _store_facts,
    "run": _run_facts,
    "index": _index_facts,
    "study": _study_facts,
}
