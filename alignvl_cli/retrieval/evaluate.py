"""Evaluates a run on a split of a store, and keeps the result beside the run.

Exact ranks in both directions, how far a FAISS index agrees with them, and a warning of whatever flatters the figures.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from torch import Tensor

from alignvl_cli.align.ranks import rank_queries
from alignvl_cli.artifacts import check_parts, committed, file_sha256, frame_of, made_by, read_json, write_json
from alignvl_cli.errors import MismatchError, UsageError
from alignvl_cli.retrieval.calibration import Modesty, modesty
from alignvl_cli.retrieval.eccv import BeyondPairs, beyond_pairs
from alignvl_cli.retrieval.embeddings import Embeddings, embed_split
from alignvl_cli.retrieval.hubness import (
    BANK_SPLIT,
    Corrected,
    Correction,
    Hubness,
    asking,
    choose_normalisation,
    hubness,
    inverted_softmax_penalties,
    normalisation_penalties,
)
from alignvl_cli.retrieval.metrics import (
    DEFAULT_PROTOCOL,
    DIRECTIONS,
    RECALL_AT,
    Fold,
    Protocol,
    QueryRanks,
    Resampled,
    RetrievalMetrics,
    cut_folds,
    direction_metrics,
    relevance,
    resample,
)
from alignvl_cli.retrieval.nearest import FLAT, Agreement, flat_index, found_shares
from alignvl_cli.settings import HubnessReport
from alignvl_cli.store.reader import ALL, SplitRows, Store
from alignvl_cli.training.run_folder import Run

if TYPE_CHECKING:
    import pandas

TRAIN = BANK_SPLIT
LONGEST_NAME = 180
"""Characters of a file's name; file systems take 255 bytes."""
FindStore = Callable[[str, str], Store | None]
"""(content hash, where it was) -> the store, wherever it is now."""
SCHEMA, TABLE_SCHEMA = "alignvl.eval/1", "alignvl.eval-table/1"


@dataclass(frozen=True)
class Evaluation:
    """What `alignvl eval` found for one run on one split."""

    run: str
    store: str
    split: str
    selection_split: str
    images: int
    """In the gallery; those without a caption are never queries."""
    captions: int
    repeated_captions: int
    """Captions less distinct captions: each is a tie for another one of the very same text."""
    captions_per_image: tuple[int, int]
    """Fewest and most."""
    metrics: RetrievalMetrics
    agreement: Agreement
    image_to_text: QueryRanks
    text_to_image: QueryRanks
    warnings: tuple[str, ...]
    evaluation_set: str
    """Hash of the split's images and captions, whatever encoders made the latents: equal means comparable."""
    provenance: dict[str, Any]
    protocol: Protocol = DEFAULT_PROTOCOL
    resampled: Resampled | None = None
    """None without `--bootstrap`."""
    modesty: Modesty | None = None
    """None without `--calibration`."""
    hubness: Hubness | None = None
    """None without `--hubness`."""
    beyond: BeyondPairs | None = None
    """None without `--eccv`."""

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "run": self.run,
            "store": self.store,
            "split": self.split,
            "selection_split": self.selection_split,
            "images": self.images,
            "captions": self.captions,
            "repeated_captions": self.repeated_captions,
            "captions_per_image": list(self.captions_per_image),
            "queries": {
                "image_to_text": len(self.image_to_text.rank_Q),
                "text_to_image": len(self.text_to_image.rank_Q),
            },
            "folds": self.protocol.folds,
            "identical_hits": self.protocol.identical_hits,
            "protocol": self.protocol.text,
            "metrics": self.metrics.to_json(),
            "ci95": self.resampled and self.resampled.ci95(),
            "calibration": self.modesty and self.modesty.to_json(),
            "hubness": self.hubness and self.hubness.to_json(),
            "eccv": self.beyond and self.beyond.to_json(),
            "index": {"factory": FLAT, "agreement_at_10": self.agreement.share, "queries": self.agreement.queries},
            "warnings": list(self.warnings),
            "evaluation_set": self.evaluation_set,
            "provenance": self.provenance,
        }

    def records(self) -> list[dict[str, Any]]:
        """The rows of `to_frame`."""
        corrected = self.hubness and self.hubness.corrected
        rows = [self._record(direction, None) for direction in DIRECTIONS]
        return rows + [self._record(direction, corrected) for direction in DIRECTIONS if corrected]

    def _record(self, direction: str, corrected: Corrected | None) -> dict[str, Any]:
        metrics = corrected.metrics if corrected else self.metrics
        record: dict[str, Any] = {
            "run": self.run,
            "store": self.store,
            "split": self.split,
            "folds": self.protocol.folds,
            "identical_hits": self.protocol.identical_hits,
            "images": self.images,
            "captions": self.captions,
            "direction": direction,
            "correction": corrected.name if corrected else "",
            "queries": len(getattr(self, direction).rank_Q),
            **getattr(metrics, direction).to_json(),
            "rsum": metrics.rsum,
            "mean_recall": metrics.mean_recall,
        }
        if self.hubness:
            occurrence = (corrected or self.hubness).occurrence[direction]
            parameters = corrected.parameters[direction] if corrected else {}
            record["parameters"] = ", ".join(f"{key} {value:.3g}" for key, value in parameters.items())
            record |= {name: getattr(occurrence, name) for name in OCCURRENCE}
        if corrected:
            return record
        if self.resampled:
            record |= _bounds(self.resampled.ci95(), direction, "")
        for state, ending in STATES.items():
            at = self.modesty and getattr(self.modesty, state)
            if at:
                found = getattr(at, direction)
                record |= {f"temperature{ending}": at.temperature}
                record |= {f"{name}{ending}": getattr(found, name) for name in MEASURES}
        for verdicts, by_direction in (self.beyond.verdicts if self.beyond else {}).items():
            if judged := by_direction.get(direction):
                figures = {"queries": judged.queries, "mAP@R": judged.map_at_r, **judged.hit_rate}
                record |= {f"{verdicts}.{name}": figure for name, figure in figures.items()}
        return record

    def to_frame(self) -> "pandas.DataFrame":
        """A row a direction, and one more each under a hubness correction (`correction`: its name, else empty).

        Columns: run, store, split, folds, identical_hits, images, captions, direction, correction, queries; `R@K` and
        `mAP@R` (percent), `median_rank`, `mean_rank` (from 1), `mrr`; `rsum` and `mean_recall`, of both directions.
        With `bootstrap` the 95 % intervals, `METRIC_low` and `METRIC_high`; with `calibration` temperature, accuracy,
        confidence, overconfidence, ece, ece_equal_mass, brier, auroc, aurc (shares), nll (nats), and again with
        `_fitted`; with `hubs` parameters, skewness, antihubs (a share), largest; with `eccv` `VERDICTS.METRIC`.
        """
        return frame_of(self.records())


OCCURRENCE = ("skewness", "antihubs", "largest")
STATES = {"raw": "", "fitted": "_fitted"}
"""Temperature of a modesty report -> how a column's name ends."""
MEASURES = ("accuracy", "confidence", "overconfidence", "ece", "ece_equal_mass", "nll", "brier", "auroc", "aurc")
TOTALS = ("rsum", "mean_recall")


def _bounds(ci95: Mapping[str, Any], direction: str, ending: str) -> dict[str, float]:
    """Intervals of one direction and of the totals, as columns."""
    intervals = {**ci95[direction], **{name: ci95[name] for name in TOTALS}}
    return {
        f"{name}{ending}_{side}": bound
        for name, pair in intervals.items()
        for side, bound in zip(("low", "high"), pair, strict=True)
    }


@dataclass(frozen=True)
class EvaluationTable:
    """Several runs on one evaluation set, in the order asked; the first is what the others are compared with."""

    evaluations: tuple[Evaluation, ...]

    def differences(self) -> list[dict[str, Any] | None]:
        """Interval of each run's difference to the first, resampled together; None for the first, and without
        `--bootstrap`."""
        first = self.evaluations[0].resampled
        return [
            evaluation.resampled.less(first).ci95() if number and first and evaluation.resampled else None
            for number, evaluation in enumerate(self.evaluations)
        ]

    def records(self) -> list[dict[str, Any]]:
        """The rows of `to_frame`."""
        rows: list[dict[str, Any]] = []
        for evaluation, ci95 in zip(self.evaluations, self.differences(), strict=True):
            mine = evaluation.records()
            for record, first in zip(mine, rows[: len(DIRECTIONS)], strict=False):  # corrected rows are not compared
                names = [*evaluation.metrics.image_to_text.to_json(), *TOTALS]
                record |= {f"{name}_difference": record[name] - first[name] for name in names}
                record |= _bounds(ci95, record["direction"], "_difference") if ci95 else {}
            rows += mine
        return rows

    def to_frame(self) -> "pandas.DataFrame":
        """As `Evaluation.to_frame`, the runs in the order asked, and of all but the first `METRIC_difference` to it;
        with `bootstrap` that one's 95 % interval, `METRIC_difference_low` and `METRIC_difference_high`."""
        return frame_of(self.records())

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": TABLE_SCHEMA,
            "results": [evaluation.to_json() for evaluation in self.evaluations],
            "difference_to_first_ci95": self.differences(),
        }


def evaluate(
    run: Run,
    store: Store,
    split: str,
    *,
    protocol: Protocol = DEFAULT_PROTOCOL,
    bootstrap: bool = False,
    calibration: bool = False,
    hubs: HubnessReport | None = None,
    eccv: Path | None = None,
    device: str = "cpu",
    find: FindStore | None = None,
) -> Evaluation:
    """Rank every query of `split` exactly, in both directions, and hold a FAISS index of each gallery to it.

    `bootstrap` adds intervals, `calibration` the modesty report, `hubs` the hubness report, `eccv` (Karpathy's
    `dataset_coco.json`) figures of COCO under wider verdicts. With fewer wrong candidates than K, R@K is 100 whatever
    the model; a warning says so. So does one of images that the run was trained or selected on, told by their bytes:
    `find` gives the stores that it was trained on by their content hash.

    Raises MismatchError for a store of other encoders, DataError for an absent split, one without captions, or anything
    that is not finite, UsageError for folds together with a report on the whole gallery.
    """
    if protocol.folds > 1 and (calibration or hubs or eccv):
        raise UsageError(
            "--folds cuts the gallery; --calibration, --hubness and --eccv are about all of it: leave --folds out"
        )
    embeddings = embed_split(run, store, split, device)
    rows = embeddings.rows
    texts = [store.text_caption[row] for row in rows.text]
    folds = cut_folds(rows, protocol.folds)
    by_image, by_text = _query_ranks(embeddings, folds, texts, store.image_id, protocol)
    found = _agreement(embeddings)
    captions_I = np.bincount(rows.text_image, minlength=len(rows.image))
    warnings = [*_flattery(run, store, rows, split, find), *_warnings(split, folds, protocol, found)]
    if split in (run.split_used, ALL) and (calibration or hubs is HubnessReport.nnn):
        warnings.append(
            f"the temperature, or the hub correction, is fitted on split {run.split_used!r} of {store.path}, which is "
            "evaluated here: what comes of it is flattered"
        )
    judged = None
    if calibration:
        judged = _modesty(run, store, embeddings, device)
        if judged.fitted is None:
            warnings.append(f"{store.path} has no split {run.split_used!r} to fit a temperature on: calibration is raw")

    def measure(penalties: Mapping[str, Tensor]) -> RetrievalMetrics:
        return _metrics(_query_ranks(embeddings, folds, texts, store.image_id, protocol, penalties), protocol)

    hub_report: Hubness | None = None
    if hubs:
        hub_report = hubness(embeddings, _correction(hubs, run, store, embeddings, device), measure)
    return Evaluation(
        run=str(run.path),
        store=str(store.path),
        split=split,
        selection_split=run.split_used,
        images=len(rows.image),
        captions=len(rows.text),
        repeated_captions=len(texts) - len(set(texts)),
        captions_per_image=(int(captions_I.min()), int(captions_I.max())),
        metrics=_metrics((by_image, by_text), protocol),
        agreement=found,
        image_to_text=by_image,
        text_to_image=by_text,
        warnings=tuple(warnings),
        evaluation_set=_evaluation_set(store, rows, texts),
        provenance=made_by(
            "eval",
            {"split": split, "device": device},
            encoder_hash=store.encoder_hash,
            store_content_hash=store.content_hash,
            adapters_sha256=run.config["adapters_sha256"],
        ),
        protocol=protocol,
        resampled=resample(by_image, by_text, protocol.recall_at) if bootstrap else None,
        modesty=judged,
        hubness=hub_report,
        beyond=None if eccv is None else beyond_pairs(embeddings, store, eccv),
    )


def compare(evaluations: list[Evaluation]) -> EvaluationTable:
    """Put runs side by side; MismatchError when two were evaluated on different images or captions."""
    first = evaluations[0]
    for other in evaluations[1:]:
        if (other.evaluation_set, other.protocol) != (first.evaluation_set, first.protocol):
            raise MismatchError(
                f"{_where(first)} and {_where(other)} are different evaluation sets, so their figures cannot stand "
                "side by side; name one store for all runs with --data, and one --split"
            )
    return EvaluationTable(tuple(evaluations))


def _query_ranks(
    embeddings: Embeddings,
    folds: list[Fold],
    captions: list[str],
    image_id: list[str],
    protocol: Protocol,
    penalties: Mapping[str, Tensor] | None = None,
) -> tuple[QueryRanks, QueryRanks]:
    """Image-to-text and text-to-image ranks of all folds, told in rows and ids of the store."""
    rows, device = embeddings.rows, embeddings.img_IE.device
    owner_row_T = rows.image[rows.text_image]
    parts: dict[str, list[tuple[np.ndarray, ...]]] = {direction: [] for direction in DIRECTIONS}
    for number, fold in enumerate(folds):
        img_IE = embeddings.img_IE[torch.from_numpy(fold.image_I).to(device)]
        txt_TE = embeddings.txt_TE[torch.from_numpy(fold.text_T).to(device)]
        answers = relevance(fold, [captions[position] for position in fold.text_T], protocol, device)
        image_row_I, text_row_T = rows.image[fold.image_I], rows.text[fold.text_T]
        asked = {
            "image_to_text": (img_IE, txt_TE, image_row_I, image_row_I),
            "text_to_image": (txt_TE, img_IE, text_row_T, owner_row_T[fold.text_T]),
        }
        for direction, (query_QE, gallery_GE, row_N, owner_N) in asked.items():
            penalty_G = None if penalties is None else penalties[direction]
            ranks = rank_queries(query_QE, gallery_GE, answers[direction], penalty_G=penalty_G)
            asked_Q = ranks.row_Q.cpu().numpy()
            parts[direction].append(
                (
                    ranks.rank_Q.cpu().numpy(),
                    ranks.precision_Q.cpu().double().numpy(),
                    row_N[asked_Q],
                    owner_N[asked_Q],
                    np.full(len(asked_Q), number),
                )
            )
    return (_joined(parts["image_to_text"], image_id), _joined(parts["text_to_image"], image_id))


def _joined(parts: list[tuple[np.ndarray, ...]], image_id: list[str]) -> QueryRanks:
    rank_Q, precision_Q, row_Q, owner_Q, fold_Q = (np.concatenate(column) for column in zip(*parts, strict=True))
    return QueryRanks(rank_Q, precision_Q, row_Q, [image_id[row] for row in owner_Q], fold_Q)


def _metrics(ranks: tuple[QueryRanks, QueryRanks], protocol: Protocol) -> RetrievalMetrics:
    return RetrievalMetrics(*(direction_metrics(found, protocol.recall_at) for found in ranks))


def _agreement(embeddings: Embeddings) -> Agreement:
    """Both galleries' agreement with exact search, every query that was asked counting alike."""
    shares, firsts = [], []
    for query_QE, gallery_GE in asking(embeddings).values():
        query, gallery = query_QE.cpu().numpy(), gallery_GE.cpu().numpy()
        share_Q, k = found_shares(flat_index(gallery), query, gallery)
        shares.append(share_Q)
        firsts.append(k)
    return Agreement.measured(np.concatenate(shares), max(firsts))


def _modesty(run: Run, store: Store, embeddings: Embeddings, device: str) -> Modesty:
    """The report, its temperature fitted on the split that selected the epoch, where the store has that."""
    there = run.split_used in store.split_sizes()
    held_out = embed_split(run, store, run.split_used, device) if there else None
    return modesty(embeddings, run.temperature, held_out, run.split_used)


def _correction(hubs: HubnessReport, run: Run, store: Store, embeddings: Embeddings, device: str) -> Correction | None:
    if hubs is HubnessReport.report:
        return None
    if hubs is HubnessReport.inverted_softmax:
        penalties = inverted_softmax_penalties(embeddings, run.temperature)
        return Correction(
            hubs.value, True, {direction: {"temperature": run.temperature} for direction in DIRECTIONS}, penalties
        )
    bank = embed_split(run, store, BANK_SPLIT, device)
    chosen = choose_normalisation(embed_split(run, store, run.split_used, device), bank)
    parameters = {direction: choice.to_json() for direction, choice in chosen.items()}
    return Correction(hubs.value, False, parameters, normalisation_penalties(embeddings, bank, chosen))


def _flattery(run: Run, store: Store, rows: SplitRows, split: str, find: FindStore | None) -> Iterator[str]:
    """A warning for each way in which the run has seen the images that it is evaluated on."""
    seen = "images are ones, by their SHA-256, that"
    evaluated = _digests(store, rows.image)
    trained = [(reference, TRAIN, "was trained on") for reference in run.config["stores"]]
    selected = (run.config.get("selection_store") or run.config["stores"][0], run.split_used, "was selected on")
    absent: dict[str, str] = {}
    counts: dict[str, set[bytes]] = {}
    for reference, used, what in [*trained, selected]:
        content, place = reference["content_hash"], reference["path"]
        other = store if content == store.content_hash else find(content, place) if find else None
        if other is None or _hashed(other) != _hashed(store):
            absent[content] = place
        elif used in other.split_sizes():
            counts.setdefault(what, set()).update(evaluated & _digests(other, other.rows(used).image))
    for what, shared in counts.items():
        if shared:
            of = f"{len(shared):,} of {len(evaluated):,} different {seen} {run.path} {what}"
            yield f"split {split!r}: {of}: its figures are flattered"
    for place in absent.values():
        yield (
            f"{place}, which {run.path} was trained on, is not here, or has other hashes of its images: whether images "
            f"of split {split!r} are among them cannot be told"
        )


def _hashed(store: Store) -> str:
    """What the SHA-256 of its images are of; latents that were imported without pictures have no other."""
    return str(store.dataset.get("sha256_of", "picture"))


def _digests(store: Store, row_I: np.ndarray) -> set[bytes]:
    """The different SHA-256 of the images at `row_I`."""
    return {digest.tobytes() for digest in store.image_sha256[row_I]}


def _warnings(split: str, folds: list[Fold], protocol: Protocol, found: Agreement) -> list[str]:
    warnings = []
    wrong = min(_wrong_candidates(fold) for fold in folds)
    trivial = [f"R@{k}" for k in protocol.recall_at if wrong < k]
    if trivial:
        warnings.append(
            f"split {split!r} has {wrong} wrong candidates for some query: {', '.join(trivial)} cannot miss there"
        )
    if found.share < 1:
        warnings.append(f"the FAISS index agrees with exact search on {found.share:.2%} of the first {found.k} only")
    return warnings


def _wrong_candidates(fold: Fold) -> int:
    """The fewest that any query has, identical texts apart."""
    captions_I = np.bincount(fold.text_image_T, minlength=len(fold.image_I))
    return min(int(captions_I.sum() - captions_I.max()), len(captions_I) - 1)


def _evaluation_set(store: Store, rows: SplitRows, texts: list[str]) -> str:
    digest = hashlib.sha256()
    for part in ([store.image_id[row] for row in rows.image], texts):
        for value in part:
            encoded = value.encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
        digest.update(b"\xff")
    digest.update(np.ascontiguousarray(store.image_sha256[rows.image]).tobytes())
    digest.update(np.ascontiguousarray(rows.text_image, dtype="<i8").tobytes())
    return digest.hexdigest()


def _where(evaluation: Evaluation) -> str:
    return (
        f"{evaluation.run} on {evaluation.store}, split {evaluation.split!r} "
        f"({evaluation.images} images, {evaluation.captions} captions),"
    )


def save_evaluation(run: Run, evaluation: Evaluation) -> Path:
    """Write the JSON and, beside it, the ranks, each whole or not at all; returns the JSON's path (`evaluation_path`).

    The Parquet has a row a query: direction, query_row (in the store's `/image` or `/text`), query_id (the image's, or
    the caption's image's) and rank, 0 being a hit at 1. An earlier evaluation of the same content, split and options is
    replaced.
    """
    reports = {
        "bootstrap": evaluation.resampled,
        "calibration": evaluation.modesty,
        "hubness": evaluation.hubness,
        "eccv": evaluation.beyond,
    }
    asked = [name for name, report in reports.items() if report is not None]
    if evaluation.hubness and evaluation.hubness.corrected:
        asked.append(evaluation.hubness.corrected.name)
    place = Path(evaluation.store), evaluation.provenance["store_content_hash"], evaluation.split
    path = evaluation_path(run.path, *place, evaluation.protocol, asked)
    path.parent.mkdir(exist_ok=True)
    ranks = path.with_suffix(".parquet")
    with committed(ranks) as scratch:
        pyarrow.parquet.write_table(_ranks_table(evaluation), scratch)
    write_json(path, {**evaluation.to_json(), "sha256": {ranks.name: file_sha256(ranks)}})
    return path


def read_evaluation(path: Path) -> dict[str, Any]:
    """A saved evaluation, whose ranks beside it are verified; DataError for one that is missing or damaged."""
    evaluation = read_json(path, "evaluation")
    check_parts(path.parent, evaluation.get("sha256", {}), "evaluation's ranks")
    return evaluation


def evaluation_path(
    run: Path,
    store: Path,
    content_hash: str,
    split: str,
    protocol: Protocol = DEFAULT_PROTOCOL,
    reports: Sequence[str] = (),
) -> Path:
    """Where an evaluation is saved: `RUN/eval/STORE-HASH-SPLIT[-OPTION]....json`, HASH being of the store's content, so
    that other stores and other options are other files. Its ranks, `.parquet`, are there when it is."""
    name = f"{store.stem}-{content_hash[:8]}-{split}"
    if protocol.recall_at != RECALL_AT:
        name += "-recall-" + "-".join(map(str, protocol.recall_at))
    name += f"-{protocol.folds}-folds" if protocol.folds > 1 else ""
    name += "-identical-hits" if protocol.identical_hits else ""
    name += "".join(f"-{report}" for report in reports)
    if len(name) > LONGEST_NAME:
        name = f"{name[:LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return run / "eval" / (re.sub(r"[^\w.+-]", "_", name) + ".json")


def calibrated_path(run: Path, store: Path, content_hash: str, split: str) -> Path:
    """Where the evaluation with a calibration lies that a study keeps of each run; earlier versions had other names."""
    path = evaluation_path(run, store, content_hash, split, reports=["calibration"])
    earlier = run / "eval" / (re.sub(r"[^\w.+-]", "_", f"{store.stem}-{split}") + ".json")
    return earlier if earlier.is_file() and not path.is_file() else path


def _ranks_table(evaluation: Evaluation) -> pyarrow.Table:
    directions: dict[str, QueryRanks] = {
        "image_to_text": evaluation.image_to_text,
        "text_to_image": evaluation.text_to_image,
    }
    return pyarrow.table(
        {
            "direction": [name for name, ranks in directions.items() for _ in ranks.id_Q],
            "query_row": np.concatenate([ranks.row_Q for ranks in directions.values()]).astype(np.int64),
            "query_id": [query for ranks in directions.values() for query in ranks.id_Q],
            "rank": np.concatenate([ranks.rank_Q for ranks in directions.values()]).astype(np.int64),
        }
    )
