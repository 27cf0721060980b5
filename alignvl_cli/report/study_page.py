"""A finished study as a page: what it settled, in words, and everything that this rests on.

`verdicts` and `study` are what `verdicts.json` and `study.json` hold.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
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
from alignvl_cli.ablation.records import read_begun, run_folders
from alignvl_cli.ablation.study import PRIMARIES
from alignvl_cli.artifacts import canonical_json, read_json
from alignvl_cli.errors import DataError, MismatchError
from alignvl_cli.report.artifacts import shown
from alignvl_cli.report.evaluation import DIRECTIONS
from alignvl_cli.report.examples import DISAGREEING, Shower, disagreement_examples
from alignvl_cli.report.figures import Plot
from alignvl_cli.report.page import (
    Block,
    Code,
    Drawing,
    Judgement,
    Judgements,
    Notes,
    Page,
    TableBlock,
    Views,
    extraction_of,
    facts,
    made_with_of,
    section,
    sections,
    shown_settings,
)
from alignvl_cli.report.plots import RELIABILITY, study_plots
from alignvl_cli.report.reproduce import ablate_command, study_toml
from alignvl_cli.report.study import study_notes, study_tables, verdicts_of
from alignvl_cli.report.surface import surface_plots
from alignvl_cli.report.tables import Cell, Table
from alignvl_cli.report.text import counted
from alignvl_cli.retrieval.embeddings import Embeddings, embed_split
from alignvl_cli.store.reader import Store, open_store
from alignvl_cli.training.run_folder import CONFIG, ENVIRONMENT, is_complete_run, load_run

Json = Mapping[str, Any]
Find = Callable[[str, str], Store | None]
"""The store of a content hash, also looked for at a path."""
Warn = Callable[[str], None]
Runs = Mapping[tuple[str, str, int], Path]
"""Cell, arm and seed -> folder."""
SIDES = ("vision", "text")
TONES = {
    "better": ("better", "▲"),
    "worse": ("worse", "▼"),
    "different, within the margin": ("same", "≈"),
    "equivalent within the margin": ("same", "="),
    None: ("reference", "●"),
}
"""Verdict -> its tone and mark; of the others, nothing is known."""
OPEN = ("open", "?")
JUDGED = {"overconfidence": "overconfidence", "ece": "ECE", "ece_fitted": "ECE, tau fitted"}


def study_views(folder: Path, data: Path | None, device: str, *, find: Find, warn: Warn) -> Views:
    """Of a study, or the part that is finished; DataError when no run is. Making the page raises MismatchError when
    `data` is another store than the study's."""
    verdicts, study = verdicts_of(folder), read_begun(folder)
    if verdicts.get("cells"):
        plots = list(surface_plots(verdicts))
        return Views(plots, lambda: surface_page(verdicts, study, plots, made_with=made_with_of(folder)))
    runs = run_folders(folder, study)
    curves, reliability = _curves(runs, verdicts, warn), _reliability(runs, verdicts, study, warn)
    plots = list(study_plots(verdicts, study, curves, reliability))

    def page() -> Page:
        store = _store_of_study(folder, study["store"], data, find, warn)
        config, environment = _records_of_a_run(runs, verdicts)
        examples: list[Block] = []
        if store is not None and not verdicts.get("partial"):  # the ranks are gathered at the end
            examples = list(_disagreements(folder, runs, verdicts, Shower.of(store), device))
        return study_page(
            verdicts,
            study,
            plots,
            examples,
            encoders={side: config[side] for side in SIDES if side in config},
            machine=environment,
            commands=[*extraction_of(store), ablate_command(f"{verdicts['name']}.toml", study)],
            made_with=made_with_of(folder),
        )

    return Views(plots, page)


def surface_page(verdicts: Json, study: Json, plots: Sequence[Plot], *, made_with: str) -> Page:
    """Of a study of several cells."""
    tables = [TableBlock(table) for table in study_tables(verdicts)]
    drawings = [Drawing.of(plot) for plot in plots]
    stores = {cell["set"]: {key: cell[key] for key in ("path", "content_hash", "pairs")} for cell in study["cells"]}
    name = f"{verdicts['name']}.toml"
    return Page(
        kind="study",
        title=verdicts["name"],
        lead=verdicts["question"],
        summary=_summary(verdicts["reference"], [f for f in verdicts["over_sets"] if f["condition"] is None]),
        counts=(
            f"{len(study['arms'])} arms, {counted(len(verdicts['cells']), 'cell')}, "
            f"{counted(len(verdicts['seeds']), 'seed')} each",
            f"stores {', '.join(stores)}",
        ),
        warnings=tuple(verdicts["warnings"]),
        sections=sections(
            section("verdicts", "Over sets", tables[0], drawings[0]),
            section("cells", "Cell by cell", drawings[1], *tables[1:], Notes(tuple(study_notes(verdicts)))),
            section("effects", "Effects", *drawings[2:]),
            section("settings", "Settings", _varied(study), facts("Of all arms", _shared(study), is_folded=True)),
            section("provenance", "Provenance", facts("Stores", stores), facts("Made by", study["made_by"])),
            section(
                "again",
                "Make it again",
                Code(f"The study, as {name}", study_toml(study)),
                Code("The commands", ablate_command(name, study)),
            ),
        ),
        footer=made_with,
    )


def _store_of_study(folder: Path, kept: Json, data: Path | None, find: Find, warn: Warn) -> Store | None:
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


def _disagreements(folder: Path, runs: Runs, verdicts: Json, shower: Shower, device: str) -> Iterator[Block]:
    """Every arm against the reference, in both directions, with the first seed that both have a run of."""
    split, reference = verdicts["evaluation"]["split"], verdicts["reference"]

    @cache
    def embedded(run: Path) -> Embeddings:
        return embed_split(load_run(run, device), shower.store, split, device)

    for arm in (found["arm"] for found in verdicts["arms"] if found["arm"] != reference):
        for direction, count in DISAGREEING.items():
            ours, theirs = (read_ranks(folder, name, direction) for name in (reference, arm))
            common = [seed for seed in ours.by_seed if seed in theirs.by_seed]
            places = {seed: [runs["", name, seed] for name in (reference, arm)] for seed in common}
            kept = [seed for seed in common if all(map(is_complete_run, places[seed]))]
            if not common:
                continue
            found = disagreements(ours, theirs, (kept or common)[0], count)
            there = {
                name: embedded(run)
                for name, run in zip((reference, arm), places[found.seed], strict=True)
                if is_complete_run(run)
            }
            if found.gains or found.losses:
                yield disagreement_examples(shower, direction, found, (reference, arm), there)


def _curves(runs: Runs, verdicts: Json, warn: Warn) -> dict[str, LearningCurve]:
    """Of every arm whose finished runs are all still there."""
    curves = {}
    for arm in verdicts["arms"]:
        try:
            logs = [read_validations(runs["", arm["arm"], seed])[0] for seed in arm["seeds"]]
        except DataError as problem:
            warn(f"no learning curve of arm {arm['arm']}: {problem}")
            continue
        if curve := learning_curve(logs):
            curves[arm["arm"]] = curve
    return curves


def _reliability(runs: Runs, verdicts: Json, study: Json, warn: Warn) -> dict[str, dict[str, Reliability]]:
    """By direction, every arm whose evaluations are all still there."""
    by_direction: dict[str, dict[str, Reliability]] = {}
    for arm in verdicts["arms"]:
        places = [runs["", arm["arm"], seed] for seed in arm["seeds"]]
        try:
            place = Path(study["store"]["path"]), study["store"]["content_hash"]
            found = read_reliability(places, *place, study["split"])
        except DataError as problem:
            warn(f"no reliability of arm {arm['arm']}: {problem}")
            continue
        for direction, kept in found.items():
            by_direction.setdefault(direction, {})[arm["arm"]] = kept
    return by_direction


def _records_of_a_run(runs: Runs, verdicts: Json) -> tuple[Json, Json]:
    """Configuration and environment of the first finished run that is still there; empty when none is."""
    for arm in verdicts["arms"]:
        for path in (runs["", arm["arm"], seed] for seed in arm["seeds"]):
            if is_complete_run(path):
                environment = read_json(path / ENVIRONMENT, "run's environment")
                kept = {key: value for key, value in environment.items() if key not in ("settings", "stage")}
                return read_json(path / CONFIG, "run's configuration"), kept
    return {}, {}


def study_page(
    verdicts: Json,
    study: Json,
    plots: Sequence[Plot],
    examples: Sequence[Block],
    *,
    encoders: Json,
    machine: Json,
    commands: Sequence[str],
    made_with: str,
) -> Page:
    """`encoders` is what made the store, `machine` what trained; `commands` make the store and the study again."""
    arms, *others = study_tables(verdicts)
    tables = [TableBlock(table) for table in (replace(arms, title="Arms"), *others)]
    evaluation, seeds = verdicts["evaluation"], verdicts["seeds"]
    drawings = {plot.name: Drawing.of(plot) for plot in plots}
    reliability = [drawing for name, drawing in drawings.items() if name.startswith(RELIABILITY)]
    curves = [drawing for name, drawing in drawings.items() if name.startswith(("sweep-", "learning"))]
    return Page(
        kind="study",
        title=verdicts["name"],
        lead=verdicts["question"],
        summary=_summary(verdicts["reference"], verdicts["arms"]),
        counts=(
            f"{len(verdicts['arms'])} arms, {counted(len(seeds), 'seed')} each",
            f"{evaluation['images']:,} images and {evaluation['captions']:,} captions of split {evaluation['split']}",
            f"store {evaluation['store']}",
        ),
        warnings=tuple(verdicts["warnings"]),
        sections=sections(
            section(
                "verdicts",
                "Verdicts",
                _judgements(verdicts["arms"], verdicts["primary"]),
                drawings["differences"],
                tables[0],
            ),
            section("effects", "Effects", drawings.get("effects"), *tables[1:-1]),
            section("recalls", "Recalls", tables[-1], Notes(tuple(study_notes(verdicts)))),
            section("curves", "Curves", *curves),
            section("confidence", "Confidence", _modesty(verdicts), *reliability),
            section("examples", "Examples", *examples),
            section("settings", "Settings", _varied(study), facts("Of all arms", _shared(study), is_folded=True)),
            section("provenance", "Provenance", *_provenance(verdicts, study, encoders, machine)),
            section(
                "again",
                "Make it again",
                Code(f"The study, as {verdicts['name']}.toml", study_toml(study)),
                Code("The commands", "\n".join(commands)),
            ),
        ),
        footer=made_with,
    )


def _summary(reference: str, arms: Sequence[Json]) -> str:
    """How many arms came out how, against the reference."""
    found = Counter(arm["verdict"] for arm in arms if arm["verdict"] is not None)
    parts = [f"{count} {verdict}" for verdict, count in found.items()]
    return f"Against {reference}: " + "; ".join(parts) + "."


def _judgements(arms: Sequence[Json], primary: str) -> Judgements:
    rows = []
    scale = PRIMARIES[primary].scale
    for arm in arms:
        tone, mark = TONES.get(arm["verdict"], OPEN)
        summary = arm["metrics"].get(primary)
        spread = "" if summary is None or summary["sd"] is None else f" ± {scale * summary['sd']:.1f}"
        figure = "no finished run" if summary is None else f"{scale * summary['mean']:.1f}{spread} %"
        rows.append(Judgement(tone, mark, arm["arm"], arm["words"], figure))
    return Judgements(tuple(rows))


def _modesty(verdicts: Json) -> TableBlock | None:
    """Overconfidence and calibration error by arm and direction, in percent; None when no run has them."""
    columns = [(direction, name) for direction in DIRECTIONS for name in JUDGED]
    rows = []
    for arm in verdicts["arms"]:
        found = [(arm["metrics"].get(f"{direction}.{name}"), name) for direction, name in columns]
        if any(summary for summary, _ in found):
            rows.append((arm["arm"], *(_percent(summary, name) for summary, name in found)))
    if not rows:
        return None
    headers = ("arm", *(f"{DIRECTIONS[direction]} {JUDGED[name]}" for direction, name in columns))
    title = "Mean confidence less accuracy, and expected calibration error, in percent (descriptive: not tested)"
    return TableBlock(Table.of(title, headers, rows))


def _percent(summary: Json | None, name: str) -> Cell:
    if summary is None:
        return Cell("-")
    sign = "+" if name == "overconfidence" else ""
    spread = "" if summary["sd"] is None else f"± {100 * summary['sd']:.1f}"
    return Cell(f"{100 * summary['mean']:{sign}.1f}", below=spread)


def _varied(study: Json) -> TableBlock:
    """The settings in which arms differ."""
    arms = {arm: shown_settings(kept["settings"]) for arm, kept in study["arms"].items()}
    keys = [key for key, is_shared in _keys(study) if not is_shared]
    rows = [[arm, *(shown(settings[key]) for key in keys)] for arm, settings in arms.items()]
    return TableBlock(Table.of("What the arms differ in", ("arm", *keys), rows, range(1 + len(keys))))


def _shared(study: Json) -> dict[str, Any]:
    settings = shown_settings(next(iter(study["arms"].values()))["settings"])
    return {key: settings[key] for key, is_shared in _keys(study) if is_shared}


def _keys(study: Json) -> Iterator[tuple[str, bool]]:
    """Every setting, and whether all arms share its value."""
    settings = [shown_settings(kept["settings"]) for kept in study["arms"].values()]
    for key in settings[0]:
        yield key, len({canonical_json(other.get(key)) for other in settings}) == 1


def _provenance(verdicts: Json, study: Json, encoders: Json, machine: Json) -> Iterator[Block]:
    yield facts("Data", {"store": study["store"], **{key: study[key] for key in ("split", "selection_split")}})
    yield facts("Machine", {"device": study["device"], "threads of a run": study["threads"], **machine})
    yield facts("Encoders", {side: kept["about"] for side, kept in encoders.items()}, is_folded=True)
    records = {side: kept["record"] for side, kept in encoders.items()}
    yield facts("Encoders: what decides a latent", records, is_folded=True)
    yield facts("Made by", study["made_by"], is_folded=True)
    failed = {f"{arm['arm']}, seed {run['seed']}": run["reason"] for arm in verdicts["arms"] for run in arm["failed"]}
    if failed:
        yield facts("Runs that failed", failed)
