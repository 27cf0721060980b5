"""A run as a page: its recalls, how sure it is, its hubs, how it learned, and what it finds."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from alignvl_cli.ablation.analysis import LearningCurve, learning_curve, read_validations
from alignvl_cli.artifacts import read_json
from alignvl_cli.recipes import as_flags, departures
from alignvl_cli.report.evaluation import hubness_table, modesty_table, recall_table
from alignvl_cli.report.examples import Shower, run_examples
from alignvl_cli.report.figures import Plot
from alignvl_cli.report.page import (
    Block,
    Code,
    Drawing,
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
from alignvl_cli.report.plots import AT, learning_plot, reliability_figure
from alignvl_cli.report.reproduce import train_command
from alignvl_cli.report.tables import Table
from alignvl_cli.retrieval.embeddings import embed_split
from alignvl_cli.retrieval.evaluate import Evaluation, evaluate
from alignvl_cli.settings import HubnessReport, TrainConfig
from alignvl_cli.store.reader import Store
from alignvl_cli.training.run_folder import ENVIRONMENT, Run

Json = Mapping[str, Any]


def run_views(run: Run, store: Store, split: str, device: str) -> Views:
    """Of a run, evaluated on `split` now; errors as of `alignvl eval`."""
    evaluation = evaluate(run, store, split, bootstrap=True, calibration=True, hubs=HubnessReport.report, device=device)
    curves = [learning_curve([validations]) for validations in read_validations(run.path)]
    plots = list(run_plots(evaluation, curves))

    def page() -> Page:
        return run_page(
            run,
            evaluation,
            plots,
            list(run_examples(Shower.of(store), evaluation, embed_split(run, store, split, device))),
            environment=read_json(run.path / ENVIRONMENT, "run's environment"),
            commands=[*extraction_of(store), train_command(run.config, run.result["pairs"])],
            made_with=made_with_of(run.path),
        )

    return Views(plots, page)


def run_plots(evaluation: Evaluation, curves: Sequence[LearningCurve | None]) -> Iterator[Plot]:
    """Every plot that there is something to draw of; `curves` are of the pairs that were trained."""
    modesty = evaluation.modesty
    for state, words in AT.items():
        if modesty is not None and getattr(modesty, state) is not None:
            yield Plot(
                name=f"reliability-{state}",
                title=f"Reliability, {words}.",
                caption="Accuracy by confidence; on the dashed line it is as sure as it is right.",
                draw=partial(reliability_figure, modesty, [state]),
            )
    drawn = {f"pair {number}": curve for number, curve in enumerate(curves, 1) if curve is not None}
    if drawn:
        chosen = evaluation.selection_split
        yield Plot(
            name="learning",
            title="Learning curve.",
            caption=f"Mean recall on split {chosen}, which selects the epoch.",
            draw=partial(learning_plot, drawn if len(curves) > 1 else {"": drawn["pair 1"]}, chosen),
        )


def run_page(
    run: Run,
    evaluation: Evaluation,
    plots: Sequence[Plot],
    examples: Sequence[Block],
    *,
    environment: Json,
    commands: Sequence[str],
    made_with: str,
) -> Page:
    """`environment` is the run's own record of what it was trained with; `commands` make it again."""
    drawings = {plot.name: Drawing.of(plot) for plot in plots}
    both = [evaluation]
    result = run.result
    return Page(
        kind="run",
        title=run.path.resolve().name,
        lead=_what(run.config["settings"]),
        summary=_summary(evaluation),
        counts=(
            f"{evaluation.images:,} images and {evaluation.captions:,} captions of split {evaluation.split}",
            f"store {evaluation.store}",
            f"{result.get('parameters', 0):,} parameters",
        ),
        warnings=evaluation.warnings,
        sections=sections(
            section("recalls", "Recalls", *_with_notes(recall_table(both, "Recall, in percent, with 95 % intervals"))),
            section(
                "confidence",
                "Confidence",
                *_with_notes(modesty_table(both, "Confidence against accuracy")),
                *(drawings.get(f"reliability-{state}") for state in AT),
            ),
            section("hubs", "Hubs", *_with_notes(hubness_table(both, "How unevenly the gallery is found"))),
            section("learning", "Learning", drawings.get("learning")),
            section("examples", "Examples", *examples),
            section("tried", "Tried on validation", *_tried(run)),
            section("provenance", "Provenance", *_provenance(run, environment)),
            section("again", "Make it again", Code("The commands", "\n".join(commands))),
        ),
        footer=made_with,
    )


def _what(settings: Json) -> str:
    method = settings.get("method", "contrastive")
    return f"Recipe {settings['recipe']}" if method == "contrastive" else f"Closed form {method}"


def _summary(evaluation: Evaluation) -> str:
    recall = evaluation.metrics
    text = (
        f"Mean recall {recall.mean_recall:.1f} %: finds the right image first for "
        f"{recall.text_to_image.hit_rate['R@1']:.1f} % of captions, and a right caption for "
        f"{recall.image_to_text.hit_rate['R@1']:.1f} % of images."
    )
    judged = evaluation.modesty
    if judged is None:
        return text
    sure = 100 * (judged.raw.text_to_image.overconfidence + judged.raw.image_to_text.overconfidence) / 2
    return f"{text} It is {abs(sure):.1f} points {'surer' if sure > 0 else 'less sure'} than it is right."


def _with_notes(table: Table) -> tuple[Block, Block]:
    return TableBlock(table), Notes(table.notes)


def _tried(run: Run) -> Iterator[Block]:
    """Shapes that were compared, pairs that were trained, and how they were joined."""
    figures = ("mean recall", "RSUM")

    def recalls(metrics: Json) -> tuple[str, str]:
        return f"{metrics['mean_recall']:.2f}", f"{metrics['rsum']:.1f}"

    if compared := run.config.get("candidates"):
        rows = [
            (as_flags(one["settings"]) or "the usual settings", f"{one['share']:.0%}", *recalls(one["metrics"]))
            for one in compared
        ]
        yield TableBlock(Table.of("Compared, after a share of the epochs", ("settings", "epochs", *figures), rows))
    members = [TrainConfig.from_json(member) for member in run.config.get("members", ())]
    trained = run.result.get("trained", ())
    if members:
        names = [as_flags(departures(member, members[0])) or "the first" for member in members]
        names += ["one of the best again"] * (len(trained) - len(members))
        pairs = [
            (f"{number}", name, *recalls(one)) for number, (name, one) in enumerate(zip(names, trained, strict=True), 1)
        ]
        yield TableBlock(Table.of("Pairs that were trained", ("pair", "settings", *figures), pairs, left=(0, 1)))
    if choices := run.result.get("ensembles"):
        joined = [
            (", ".join(map(str, one["members"])), f"{one['weight']:g}", *recalls(one), "kept" if one["chosen"] else "")
            for one in choices
        ]
        headers = ("pairs", "weight of the closed form", *figures, "")
        yield TableBlock(Table.of("Joined, before the reduction", headers, joined, left=(0, 4)))


def _provenance(run: Run, environment: Json) -> Iterator[Block]:
    config = run.config
    yield facts("Settings", shown_settings(config["settings"]))
    told = {key: value for key, value in run.result.items() if key not in ("trained", "ensembles")}
    yield facts("Training", told, is_folded=True)
    unpaired = {"unpaired": [store["path"] for store in config["unpaired"]]} if "unpaired" in config else {}
    stores = [store["path"] for store in config["stores"]]
    yield facts("Data", {"stores": stores, **unpaired, "content hash": run.store_hash})
    yield facts("Machine", {key: value for key, value in environment.items() if key not in ("settings", "libraries")})
    yield facts("Libraries", environment.get("libraries", {}), is_folded=True)
    yield facts("Encoders", {"vision": run.vision["about"], "text": run.text["about"]}, is_folded=True)
    records = {"encoder hash": run.encoder_hash, "vision": run.vision["record"], "text": run.text["record"]}
    yield facts("Encoders: what decides a latent", records, is_folded=True)
