"""Tables of evaluations: recall of one run or of several, confidence, hubs, wider verdicts; and of classification.

All of them are views of `Evaluation.records`, the rows of its frame.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType

from alignvl_cli.report.tables import Cell, Table, best_of

if TYPE_CHECKING:
    from alignvl_cli.retrieval.classify import Classification
    from alignvl_cli.retrieval.evaluate import Evaluation

Record = Mapping[str, Any]
DIRECTIONS = {"image_to_text": "image to text", "text_to_image": "text to image"}
STACKED = {"image_to_text": "image\nto text\n", "text_to_image": "text to\nimage\n"}
"""The directions above a narrow column."""
AVERAGES = {
    "mAP@R": ("mAP@R", ".1f"),
    "median_rank": ("median rank", "g"),
    "mean_rank": ("mean rank", ".1f"),
    "mrr": ("MRR", ".3f"),
}
"""Column of a record beside the recalls -> its header and form."""
STATES = {"": "as trained", "_fitted": "tau fitted"}
"""How a column's name ends -> the temperature that its figure is of."""
MODESTY = {
    "temperature": ("tau", 1, ".3f"),
    "accuracy": ("accuracy", 100, ".1f"),
    "confidence": ("confidence", 100, ".1f"),
    "overconfidence": ("overconfidence", 100, "+.1f"),
    "ece": ("ECE", 100, ".1f"),
    "ece_equal_mass": ("ECE equal mass", 100, ".1f"),
    "nll": ("NLL", 1, ".3f"),
    "brier": ("Brier", 1, ".3f"),
    "auroc": ("AUROC", 1, ".3f"),
    "aurc": ("AURC", 1, ".3f"),
}
"""Column of a record -> its row's name, the unit it is shown in, and its form."""


def short_names(paths: Sequence[str]) -> list[str]:
    """The shortest endings of the paths, in whole parts, that tell them apart; equal paths stay equal."""
    distinct = {PurePath(path).parts for path in paths}
    taken = 1
    while len({parts[-taken:] for parts in distinct}) < len(distinct):
        taken += 1
    return [str(PurePath(*PurePath(path).parts[-taken:])) for path in paths]


def recall_table(evaluations: Sequence["Evaluation"], title: str = "") -> Table:
    """One run by direction, or several side by side, with what was counted beneath it."""
    return _by_direction(evaluations[0], title) if len(evaluations) == 1 else _side_by_side(evaluations, title)


def _by_direction(evaluation: "Evaluation", title: str) -> Table:
    columns = {**{name: (name, ".1f") for name in _recalls(evaluation)}, **AVERAGES}
    rows: list[list[str | Cell]] = [
        [
            _row_name(record, evaluation),
            *(
                Cell(format(record[name], form), below=_interval(record, name, form))
                for name, (_, form) in columns.items()
            ),
        ]
        for record in evaluation.records()
    ]
    headers = ("direction", *(header for header, _ in columns.values()))
    return Table.of(title, headers, rows, notes=tuple(_recall_notes([evaluation])))


def _recalls(evaluation: "Evaluation") -> list[str]:
    return list(evaluation.metrics.image_to_text.hit_rate)


def _row_name(record: Record, evaluation: "Evaluation") -> str:
    words = DIRECTIONS[record["direction"]]
    if not record["correction"]:
        return words
    return f"{words}, {record['correction']}{' (transductive)' * _is_transductive(evaluation)}"


def _is_transductive(evaluation: "Evaluation") -> bool:
    return bool(evaluation.hubness and evaluation.hubness.corrected and evaluation.hubness.corrected.transductive)


def _interval(record: Record, name: str, form: str = ".1f", sign: str = "") -> str:
    """Of a figure that has one, else nothing."""
    if f"{name}_low" not in record:
        return ""
    return " to ".join(format(record[f"{name}_{side}"], sign + form) for side in ("low", "high"))


def _side_by_side(evaluations: Sequence["Evaluation"], title: str) -> Table:
    """A row a run; compared as shown, so that equal figures share the bold and a difference adds up on paper."""
    from alignvl_cli.retrieval.evaluate import EvaluationTable

    records = [record for record in EvaluationTable(tuple(evaluations)).records() if not record["correction"]]
    runs = [dict(zip(DIRECTIONS, pair, strict=True)) for pair in zip(records[::2], records[1::2], strict=True)]
    columns = [(direction, recall) for direction in DIRECTIONS for recall in _recalls(evaluations[0])]
    columns.append(("image_to_text", "rsum"))
    figures = [[round(run[direction][name], 1) for direction, name in columns] for run in runs]
    bold = [best_of(column) for column in zip(*figures, strict=True)]

    def cell(run: int, column: int) -> Cell:
        (direction, name), figure = columns[column], figures[run][column]
        if not run:
            below = _interval(runs[run][direction], name)
        else:
            interval = _interval(runs[run][direction], f"{name}_difference", sign="+")
            below = f"{figure - figures[0][column]:+.1f}" + (f"\n{interval}" if interval else "")
        return Cell(f"{figure:.1f}", bold=bold[column][run], below=below)

    names = short_names([evaluation.run for evaluation in evaluations])
    rows: list[list[str | Cell]] = [
        [name, *(cell(run, column) for column in range(len(columns)))] for run, name in enumerate(names)
    ]
    headers = ("run", *(STACKED[direction] + name for direction, name in columns[:-1]), "RSUM")
    return Table.of(title, headers, rows, notes=tuple(_recall_notes(evaluations)))


def _recall_notes(evaluations: Sequence["Evaluation"]) -> list[str]:
    """What stands under every table: sums, evaluation set, protocol, and how far the FAISS index is right."""
    first = evaluations[0]
    fewest, most = first.captions_per_image
    an_image = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    selection = ", ".join(dict.fromkeys(evaluation.selection_split for evaluation in evaluations))
    agreement = min(evaluation.agreement.share for evaluation in evaluations)
    return [
        *_sums(evaluations),
        f"split {first.split} of {first.store}; epoch selected on split {selection}",
        f"{first.images:,} images, {first.captions:,} captions ({an_image} an image), "
        f"{first.repeated_captions:,} of them repeat another's text",
        first.protocol.text,
        f"FAISS Flat index: {agreement:.2%} of its first 10 are the exact ones",
    ]


def _sums(evaluations: Sequence["Evaluation"]) -> list[str]:
    """RSUM of one run, or what the further lines of several are; and what the intervals are, if there are any."""
    record, resampled = evaluations[0].records()[0], evaluations[0].resampled
    sums = "second line: difference to the first run"
    if len(evaluations) == 1:
        sums = ", ".join(
            f"{words} {record[name]:.1f}" + (f" ({_interval(record, name)})" if resampled else "")
            for words, name in (("RSUM", "rsum"), ("mean recall", "mean_recall"))
        )
    if resampled is None:
        return [sums]
    paired = "" if len(evaluations) == 1 else "; for the others of the difference, all runs resampled alike"
    return [
        sums,
        f"95 % intervals: {len(resampled.rsum_S):,} resamples of images with their captions, galleries fixed{paired}",
    ]


def warnings_of(evaluations: Sequence["Evaluation"]) -> list[str]:
    """Each warning once."""
    return list(dict.fromkeys(warning for evaluation in evaluations for warning in evaluation.warnings))


def modesty_table(evaluations: Sequence["Evaluation"], title: str = "") -> Table:
    """A row each measure and run, a column each direction as trained and after the temperature fitted on validation:
    ten measures side by side do not fit a terminal of 80 columns."""
    runs = [{record["direction"]: record for record in found.records()[:2]} for found in evaluations]
    columns = [
        (direction, state)
        for direction in DIRECTIONS
        for state in STATES
        if any(f"temperature{state}" in run[direction] for run in runs)
    ]

    def shown(record: Record, measure: str, state: str) -> str:
        if measure + state not in record:
            return ""
        (_, unit, form), figure = MODESTY[measure], record[measure + state]
        return "-" if figure is None else format(unit * figure, form)

    rows = []
    several = len(evaluations) > 1
    names = short_names([evaluation.run for evaluation in evaluations])
    for measure, (words, *_) in MODESTY.items():
        for name, run in zip(names, runs, strict=True):
            figures = (shown(run[direction], measure, state) for direction, state in columns)
            rows.append([words, *([name] if several else []), *figures])
    headers = (
        *("measure", "run")[: 1 + several],
        *(STACKED[way] + STATES[state].replace(" ", "\n") for way, state in columns),
    )
    return Table.of(title, headers, rows, range(1 + several), notes=tuple(_modesty_notes(evaluations)))


def _modesty_notes(evaluations: Sequence["Evaluation"]) -> list[str]:
    """What stands under the table."""
    reports = [evaluation.modesty for evaluation in evaluations if evaluation.modesty]
    fitted = {(report.fitted_on, report.fitted_gallery_images) for report in reports if report.fitted}
    notes = [
        f"confidence: softmax(cosine / tau) over the gallery's {reports[0].gallery_images:,} images, captions of one "
        "image summed; accuracy, confidence, overconfidence and ECE in %, NLL in nats; compare on one gallery alone"
    ]
    if fitted:
        split, images = min(fitted, key=str)
        notes.append(
            f"tau fitted: the one temperature, for both directions, of least NLL on split {split} ({images:,} images)"
        )
    return notes


def hubness_table(evaluations: Sequence["Evaluation"], title: str = "") -> Table:
    """A row a run, direction and correction: skewness, anti-hubs, the greatest hub, and recalls."""
    recalls, several = _recalls(evaluations[0]), len(evaluations) > 1
    names = short_names([evaluation.run for evaluation in evaluations])
    rows = []
    for name, evaluation in zip(names, evaluations, strict=True):
        records = evaluation.records() if evaluation.hubness else []
        for record in sorted(records, key=lambda record: list(DIRECTIONS).index(record["direction"])):
            correction = f"{record['correction']} ({record['parameters']})" if record["correction"] else "none"
            rows.append(
                [
                    *([name] if several else []),
                    DIRECTIONS[record["direction"]],
                    correction,
                    "-" if record["skewness"] is None else f"{record['skewness']:.2f}",
                    f"{100 * record['antihubs']:.1f} %",
                    f"{record['largest']:,}",
                    *(f"{record[recall]:.1f}" for recall in recalls),
                ]
            )
    words = ("run", "direction", "correction")[not several :]
    headers = (*words, "skewness", "anti-hubs", "greatest hub", *recalls)
    return Table.of(title, headers, rows, range(len(words)), notes=tuple(_hubness_notes(evaluations)))


def _hubness_notes(evaluations: Sequence["Evaluation"]) -> list[str]:
    """What stands under the table."""
    reports = [evaluation.hubness for evaluation in evaluations if evaluation.hubness]
    k = reports[0].occurrence["text_to_image"].k
    notes = [
        f"skewness of how often a gallery row is among a query's first {k} (0: evenly); anti-hubs are among nobody's"
    ]
    corrected = reports[0].corrected
    if corrected and corrected.transductive:
        notes.append(
            f"{corrected.name} is TRANSDUCTIVE: it uses all test queries together, so its rows are no result of "
            "answering one query at a time"
        )
    elif corrected:
        notes.append(f"{corrected.name}: hubs told by the training split's queries, parameters chosen on validation")
    return notes


def beyond_table(evaluations: Sequence["Evaluation"]) -> Table:
    """COCO under verdicts wider than its pairs: a row a run, verdicts and direction."""
    rows = [
        [
            name,
            verdicts,
            words,
            f"{record[f'{verdicts}.queries']:,}",
            *(f"{record[f'{verdicts}.{metric}']:.1f}" for metric in ("mAP@R", "R@1", "R@5", "R@10")),
        ]
        for name, evaluation in zip(short_names([found.run for found in evaluations]), evaluations, strict=True)
        for verdicts in (evaluation.beyond.verdicts if evaluation.beyond else ())
        for record in evaluation.records()
        for words in [DIRECTIONS[record["direction"]]]
        if f"{verdicts}.queries" in record
    ]
    return Table.of("", ("run", "verdicts", "direction", "queries", "mAP@R", "R@1", "R@5", "R@10"), rows, (0, 1, 2))


def classification_table(found: "Classification") -> RenderableType:
    """Top-1, top-5 and the mean over classes, then a row a class, the commonest first; what was counted beneath."""
    low, high = found.top1_ci95
    figures = (found.top5, found.mean_per_class, found.largest_class)
    totals = [f"{found.top1:.1f}", f"{low:.1f} to {high:.1f}", *(f"{figure:.1f}" for figure in figures)]
    classes = [
        [result.label, f"{result.images:,}", f"{result.top1:.1f}"]
        for result in sorted(found.per_class, key=lambda result: -result.images)
    ]
    notes = (
        f"{found.images:,} labelled images of split {found.split} of {found.store}, {len(found.labels)} classes; "
        f"{found.unlabelled:,} without a label",
        f"each class: mean of its prompts {', '.join(found.templates)}; ties lose",
        "largest class: what always naming the commonest label would reach",
    )
    return Group(
        Table.of("", ("top-1", "95 % interval", "top-5", "mean per class", "largest class"), [totals], ()),
        Table.of("", ("label", "images", "top-1"), classes, notes=notes),
    )
