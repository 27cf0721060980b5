"""A run as a page: its recalls, how sure it is, its hubs, how it learned, and what it finds."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from alignvl_cli.report.evaluation import HUBNESS_COLUMNS, hubness_notes, hubness_rows, recall_grid, recall_notes
from alignvl_cli.report.figures import Plot
from alignvl_cli.report.page import (
    Block,
    Code,
    Drawing,
    Notes,
    Page,
    TableBlock,
    facts,
    section,
    sections,
    shown_settings,
)
from alignvl_cli.report.reliability import MODESTY_COLUMNS, STATES, modesty_notes, modesty_rows, reliability_figure
from alignvl_cli.report.study_plots import learning_plot
from alignvl_cli.report.tables import Cell, Table

if TYPE_CHECKING:
    from alignvl_cli.ablation.analysis import LearningCurve
    from alignvl_cli.retrieval.evaluate import Evaluation
    from alignvl_cli.training.run_folder import Run

Json = Mapping[str, Any]


def run_plots(evaluation: "Evaluation", curve: "LearningCurve | None") -> Iterator[Plot]:
    """Every plot that there is something to draw of."""
    modesty = evaluation.modesty
    for state, words in STATES.items():
        if modesty is not None and getattr(modesty, state) is not None:
            yield Plot(
                name=f"reliability-{state}",
                title=f"Reliability, {words}.",
                caption="Accuracy by confidence; on the dashed line it is as sure as it is right.",
                draw=partial(reliability_figure, modesty, [state]),
            )
    if curve is not None:
        chosen = evaluation.selection_split
        yield Plot(
            name="learning",
            title="Learning curve.",
            caption=f"Mean recall on split {chosen}, which selects the epoch.",
            draw=partial(learning_plot, {"": curve}, chosen),
        )


def run_page(
    run: "Run",
    evaluation: "Evaluation",
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
            section("recalls", "Recalls", _recalls(evaluation), Notes(tuple(recall_notes(both)))),
            section(
                "confidence",
                "Confidence",
                _table(
                    "Confidence against accuracy",
                    ("direction", "temperature", *MODESTY_COLUMNS),
                    [[direction, state, *figures] for _, direction, state, figures in modesty_rows(both)],
                ),
                Notes(tuple(modesty_notes(both))),
                *(drawings.get(f"reliability-{state}") for state in STATES),
            ),
            section(
                "hubs",
                "Hubs",
                _table(
                    "How unevenly the gallery is found",
                    ("direction", "correction", *HUBNESS_COLUMNS, *evaluation.metrics.image_to_text.hit_rate),
                    [figures for _, *figures in hubness_rows(both)],
                ),
                Notes(tuple(hubness_notes(both))),
            ),
            section("learning", "Learning", drawings.get("learning")),
            section("examples", "Examples", *examples),
            section("provenance", "Provenance", *_provenance(run, environment)),
            section("again", "Make it again", Code("The commands", "\n".join(commands))),
        ),
        footer=made_with,
    )


def _what(settings: Json) -> str:
    method = settings.get("method", "contrastive")
    return f"Recipe {settings['recipe']}" if method == "contrastive" else f"Closed form {method}"


def _summary(evaluation: "Evaluation") -> str:
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


def _recalls(evaluation: "Evaluation") -> TableBlock:
    grid = recall_grid([evaluation])
    rows = tuple((Cell(name), *(Cell(cell.text, below=cell.interval) for cell in cells)) for name, cells in grid.rows)
    headers = (grid.corner, *(column for _, column in grid.headers))
    return TableBlock(Table(title="Recall, in percent, with 95 % intervals", headers=headers, left=(0,), rows=rows))


def _table(title: str, headers: tuple[str, ...], rows: Sequence[Sequence[str]]) -> TableBlock:
    plain = tuple(header.replace("-\n", "").replace("\n", " ") for header in headers)
    cells = tuple(tuple(map(Cell, row)) for row in rows)
    return TableBlock(Table(title=title, headers=plain, left=(0, 1), rows=cells))


def _provenance(run: "Run", environment: Json) -> Iterator[Block]:
    config = run.config
    yield facts("Settings", shown_settings(config["settings"]))
    yield facts("Training", run.result, is_folded=True)
    yield facts("Data", {"stores": [store["path"] for store in config["stores"]], "content hash": run.store_hash})
    yield facts("Machine", {key: value for key, value in environment.items() if key not in ("settings", "libraries")})
    yield facts("Libraries", environment.get("libraries", {}), is_folded=True)
    yield facts("Encoders", {"vision": run.vision["about"], "text": run.text["about"]}, is_folded=True)
    records = {"encoder hash": run.encoder_hash, "vision": run.vision["record"], "text": run.text["record"]}
    yield facts("Encoders: what decides a latent", records, is_folded=True)
