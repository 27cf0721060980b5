"""The page of a study or of a run, gathered from what its folder holds, its store, and the pictures."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from alignvl_cli.ablation.analysis import (
    LearningCurve,
    Reliability,
    disagreements,
    learning_curve,
    read_ranks,
    read_reliability,
    read_validations,
)
from alignvl_cli.ablation.records import read_study, read_verdicts, run_folder
from alignvl_cli.artifacts import alignvl_version, read_json
from alignvl_cli.datasets.formats import picture_bytes
from alignvl_cli.errors import DataError, MismatchError
from alignvl_cli.report.examples import DISAGREEING, Shower, disagreement_examples, run_examples
from alignvl_cli.report.figures import Plot
from alignvl_cli.report.page import Block, Page, thumbnail
from alignvl_cli.report.reproduce import ablate_command, extract_command, train_command
from alignvl_cli.report.run_page import run_page, run_plots
from alignvl_cli.report.study_page import study_page
from alignvl_cli.report.study_plots import study_plots
from alignvl_cli.retrieval.embeddings import Embeddings, embed_split
from alignvl_cli.retrieval.evaluate import evaluate
from alignvl_cli.settings import HubnessReport
from alignvl_cli.store.reader import Store, open_store
from alignvl_cli.training.run_folder import CONFIG, ENVIRONMENT, Run, is_complete_run, load_run

Json = Mapping[str, Any]
Find = Callable[[str, str], "Store | None"]
"""The store of a content hash, also looked for at a path."""
Warn = Callable[[str], None]
SIDES = ("vision", "text")
EDGE = 112
"""Longest side of a picture on a page of many."""


@dataclass(frozen=True)
class Views:
    """What there is to draw, and the page, which is made when it is asked for."""

    plots: list[Plot]
    page: Callable[[], Page]


def study_views(folder: Path, data: Path | None, device: str, *, find: Find, warn: Warn) -> Views:
    """Of a finished study; DataError for an unfinished one. Making the page raises MismatchError when `data` is another
    store than the study's."""

    verdicts, study = read_verdicts(folder), read_study(folder)
    curves, reliability = _curves(folder, verdicts, warn), _reliability(folder, verdicts, study, warn)
    plots = list(study_plots(verdicts, study, curves, reliability))

    def page() -> "Page":
        store = _store_of_study(folder, study["store"], data, find, warn)
        config, environment = _records_of_a_run(folder, verdicts)
        return study_page(
            verdicts,
            study,
            plots,
            [] if store is None else list(_disagreements(folder, verdicts, _shower(store), device)),
            encoders={side: config[side] for side in SIDES if side in config},
            machine=environment,
            commands=[*_extraction(store), ablate_command(f"{verdicts['name']}.toml", study)],
            made_with=_made_with(folder),
        )

    return Views(plots, page)


def run_views(run: "Run", store: "Store", split: str, device: str) -> Views:
    """Of a run, evaluated on `split` now; errors as of `alignvl eval`."""

    evaluation = evaluate(run, store, split, bootstrap=True, calibration=True, hubs=HubnessReport.report, device=device)
    plots = list(run_plots(evaluation, learning_curve([read_validations(run.path)])))

    def page() -> "Page":
        return run_page(
            run,
            evaluation,
            plots,
            list(run_examples(_shower(store), evaluation, embed_split(run, store, split, device))),
            environment=read_json(run.path / ENVIRONMENT, "run's environment"),
            commands=[*_extraction(store), train_command(run.config, run.result["pairs"])],
            made_with=_made_with(run.path),
        )

    return Views(plots, page)


def _store_of_study(folder: Path, kept: Json, data: Path | None, find: Find, warn: Warn) -> "Store | None":
    """The store that `kept` records, at `data` if that is given; None, with a warning, when it has gone."""

    if data is not None:
        store = open_store(data)
        if store.content_hash != kept["content_hash"]:
            raise MismatchError(
                f"{data} holds other rows than the store of {folder} ({store.content_hash[:8]}, not "
                f"{kept['content_hash'][:8]}); name that one, or leave --data out for a page without examples"
            )
        return store
    found = find(kept["content_hash"], kept["path"])
    if found is None:
        warn(
            f"the store is neither in the workspace nor at {kept['path']}: the page has no examples; "
            "name the store with --data"
        )
    return found


def _shower(store: "Store") -> "Shower":
    """Shows rows of `store`, each picture decoded once."""

    @cache
    def picture(uri: str) -> str | None:
        data = picture_bytes(uri)
        return None if data is None else thumbnail(data, EDGE)

    return Shower(store, picture)


def _disagreements(folder: Path, verdicts: Json, shower: "Shower", device: str) -> "Iterator[Block]":
    """Every arm against the reference, in both directions, with the first seed that both have a run of."""

    split, reference = verdicts["evaluation"]["split"], verdicts["reference"]

    @cache
    def embedded(run: Path) -> "Embeddings":
        return embed_split(load_run(run, device), shower.store, split, device)

    for arm in (found["arm"] for found in verdicts["arms"] if found["arm"] != reference):
        for direction, count in DISAGREEING.items():
            ours, theirs = (read_ranks(folder, name, direction) for name in (reference, arm))
            common = [seed for seed in ours.by_seed if seed in theirs.by_seed]
            runs = {seed: [run_folder(folder, name, seed) for name in (reference, arm)] for seed in common}
            kept = [seed for seed in common if all(map(is_complete_run, runs[seed]))]
            if not common:
                continue
            found = disagreements(ours, theirs, (kept or common)[0], count)
            there = {
                name: embedded(run)
                for name, run in zip((reference, arm), runs[found.seed], strict=True)
                if is_complete_run(run)
            }
            if found.gains or found.losses:
                yield disagreement_examples(shower, direction, found, (reference, arm), there)


def _curves(folder: Path, verdicts: Json, warn: Warn) -> "dict[str, LearningCurve]":
    """Of every arm whose finished runs are all still there."""

    curves = {}
    for arm in verdicts["arms"]:
        try:
            runs = [read_validations(run_folder(folder, arm["arm"], seed)) for seed in arm["seeds"]]
        except DataError as problem:
            warn(f"no learning curve of arm {arm['arm']}: {problem}")
            continue
        if curve := learning_curve(runs):
            curves[arm["arm"]] = curve
    return curves


def _reliability(folder: Path, verdicts: Json, study: Json, warn: Warn) -> "dict[str, dict[str, Reliability]]":
    """By direction, every arm whose evaluations are all still there."""

    by_direction: dict[str, dict[str, Reliability]] = {}
    for arm in verdicts["arms"]:
        runs = [run_folder(folder, arm["arm"], seed) for seed in arm["seeds"]]
        try:
            place = Path(study["store"]["path"]), study["store"]["content_hash"]
            found = read_reliability(runs, *place, study["split"])
        except DataError as problem:
            warn(f"no reliability of arm {arm['arm']}: {problem}")
            continue
        for direction, kept in found.items():
            by_direction.setdefault(direction, {})[arm["arm"]] = kept
    return by_direction


def _records_of_a_run(folder: Path, verdicts: Json) -> tuple[Json, Json]:
    """Configuration and environment of the first finished run that is still there; empty when none is."""

    for arm in verdicts["arms"]:
        for path in (run_folder(folder, arm["arm"], seed) for seed in arm["seeds"]):
            if is_complete_run(path):
                environment = read_json(path / ENVIRONMENT, "run's environment")
                kept = {key: value for key, value in environment.items() if key not in ("settings", "stage")}
                return read_json(path / CONFIG, "run's configuration"), kept
    return {}, {}


def _extraction(store: "Store | None") -> list[str]:
    """The command that made the store; none for imported latents, or without the store."""

    if store is None or store.made_by.get("stage") != "extract":
        return []
    return [extract_command(store.dataset, store.vision, store.text)]


def _made_with(folder: Path) -> str:

    return f"made by alignvl {alignvl_version()} from {folder.resolve()}"
