"""A finished study as a page: what it settled, in words, and everything that this rests on.

`verdicts` and `study` are what `verdicts.json` and `study.json` hold.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignvl_cli.artifacts import canonical_json
from alignvl_cli.report.artifacts import shown
from alignvl_cli.report.evaluation import DIRECTIONS
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
    facts,
    section,
    sections,
    shown_settings,
)
from alignvl_cli.report.reproduce import study_toml
from alignvl_cli.report.study import study_notes, study_tables
from alignvl_cli.report.study_plots import RELIABILITY
from alignvl_cli.report.tables import Cell, Table
from alignvl_cli.report.text import counted

Json = Mapping[str, Any]
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
        summary=_summary(verdicts),
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


def _summary(verdicts: Json) -> str:
    """How many arms came out how, against the reference."""
    found = Counter(arm["verdict"] for arm in verdicts["arms"] if arm["verdict"] is not None)
    parts = [f"{count} {verdict}" for verdict, count in found.items()]
    return f"Against {verdicts['reference']}: " + "; ".join(parts) + "."


def _judgements(arms: Sequence[Json], primary: str) -> Judgements:
    rows = []
    for arm in arms:
        tone, mark = TONES.get(arm["verdict"], OPEN)
        summary = arm["metrics"].get(primary)
        spread = "" if summary is None or summary["sd"] is None else f" ± {summary['sd']:.1f}"
        figure = "no finished run" if summary is None else f"{summary['mean']:.1f}{spread} %"
        rows.append(Judgement(tone, mark, arm["arm"], arm["words"], figure))
    return Judgements(tuple(rows))


def _modesty(verdicts: Json) -> TableBlock | None:
    """Overconfidence and calibration error by arm and direction, in percent; None when no run has them."""
    columns = [(direction, name) for direction in DIRECTIONS for name in JUDGED]
    rows = []
    for arm in verdicts["arms"]:
        found = [(arm["metrics"].get(f"{direction}.{name}"), name) for direction, name in columns]
        if any(summary for summary, _ in found):
            rows.append((Cell(arm["arm"]), *(_percent(summary, name) for summary, name in found)))
    if not rows:
        return None
    headers = ("arm", *(f"{DIRECTIONS[direction]} {JUDGED[name]}" for direction, name in columns))
    title = "Mean confidence less accuracy, and expected calibration error, in percent (descriptive: not tested)"
    return TableBlock(Table(title=title, headers=headers, left=(0,), rows=tuple(rows)))


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
    rows = [(Cell(arm), *(Cell(shown(settings[key])) for key in keys)) for arm, settings in arms.items()]
    headers = ("arm", *keys)
    every = tuple(range(len(headers)))
    return TableBlock(Table(title="What the arms differ in", headers=headers, left=every, rows=tuple(rows)))


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
