"""Evaluates a run on a split: exact ranks both ways, the agreement of FAISS galleries, and what was counted."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from torch import Tensor

from alignvl_cli.align.ranks import RECALL_AT, image_to_text_ranks, text_to_image_ranks
from alignvl_cli.errors import MismatchError
from alignvl_cli.provenance import committed, made_by, write_json
from alignvl_cli.retrieval.embeddings import Embeddings, embed_split
from alignvl_cli.retrieval.evaluation import Evaluation, EvaluationTable, QueryRanks
from alignvl_cli.retrieval.metrics import RetrievalMetrics, direction_metrics
from alignvl_cli.retrieval.nearest import Agreement, agreement, flat_index
from alignvl_cli.runs.folder import Run
from alignvl_cli.store.reader import SplitRows, Store


def evaluate(run: Run, store: Store, split: str, *, device: str = "cpu") -> Evaluation:
    """Rank every query of `split` exactly, in both directions, and hold a FAISS index of each gallery to it.

    With fewer wrong candidates than K, R@K is 100 whatever the model; a warning says so. Raises MismatchError for a
    store of other encoders, DataError for an absent split, one without captions, or anything that is not finite.
    """
    embeddings = embed_split(run, store, split, device)
    rows = embeddings.rows
    captions_I = np.bincount(rows.text_image, minlength=len(rows.image))
    image_to_text, text_to_image = _query_ranks(embeddings, store)
    found = _agreement(embeddings.img_IE, embeddings.txt_TE)
    texts = [store.text_caption[row] for row in rows.text]
    return Evaluation(
        run=str(run.path),
        store=str(store.path),
        split=split,
        selection_split=run.split_used,
        images=len(rows.image),
        captions=len(rows.text),
        repeated_captions=len(texts) - len(set(texts)),
        captions_per_image=(int(captions_I.min()), int(captions_I.max())),
        metrics=RetrievalMetrics(direction_metrics(image_to_text.rank_Q), direction_metrics(text_to_image.rank_Q)),
        agreement=found,
        image_to_text=image_to_text,
        text_to_image=text_to_image,
        warnings=tuple(_warnings(run, store, split, captions_I, found)),
        evaluation_set=_evaluation_set(store, rows, texts),
        provenance=made_by(
            "eval",
            {"split": split, "device": device},
            encoder_hash=store.encoder_hash,
            store_content_hash=store.content_hash,
            adapters_sha256=run.config["adapters_sha256"],
        ),
    )


def compare(evaluations: list[Evaluation]) -> EvaluationTable:
    """Put runs side by side; MismatchError when two were evaluated on different images or captions."""
    first = evaluations[0]
    for other in evaluations[1:]:
        if other.evaluation_set != first.evaluation_set:
            raise MismatchError(
                f"{_where(first)} and {_where(other)} are different evaluation sets, so their figures cannot stand "
                "side by side; name one store for all runs with --data, and one --split"
            )
    return EvaluationTable(tuple(evaluations))


def save_evaluation(run: Run, evaluation: Evaluation) -> Path:
    """Write `RUN/eval/STORE-SPLIT.json` and the ranks beside it, each whole or not at all; returns the JSON's path.

    The Parquet has a row a query: direction, query_row (in the store's `/image` or `/text`), query_id (the image's, or
    the caption's image's) and rank, 0 being a hit at 1. An earlier evaluation on a store and split of these names is
    replaced.
    """
    folder = run.path / "eval"
    folder.mkdir(exist_ok=True)
    name = re.sub(r"[^\w.+-]", "_", f"{Path(evaluation.store).stem}-{evaluation.split}")
    with committed(folder / f"{name}.parquet") as scratch:
        pyarrow.parquet.write_table(_ranks_table(evaluation), scratch)
    path = folder / f"{name}.json"
    write_json(path, evaluation.to_json())
    return path


def _query_ranks(embeddings: Embeddings, store: Store) -> tuple[QueryRanks, QueryRanks]:
    """Image-to-text and text-to-image ranks, told in rows and ids of the store."""
    rows, img_IE, txt_TE = embeddings.rows, embeddings.img_IE, embeddings.txt_TE
    text_image_T = torch.from_numpy(rows.text_image).to(img_IE.device)
    by_image = image_to_text_ranks(img_IE, txt_TE, text_image_T)
    by_text = text_to_image_ranks(img_IE, txt_TE, text_image_T)
    image_row_Q = rows.image[by_image.row_Q.cpu().numpy()]
    owner_row_T = rows.image[rows.text_image]
    return (
        QueryRanks(by_image.rank_Q.cpu().numpy(), image_row_Q, [store.image_id[row] for row in image_row_Q]),
        QueryRanks(by_text.rank_Q.cpu().numpy(), rows.text, [store.image_id[row] for row in owner_row_T]),
    )


def _agreement(img_IE: Tensor, txt_TE: Tensor) -> Agreement:
    """Both galleries' agreement with exact search, weighted by the queries asked."""
    image, text = img_IE.cpu().numpy(), txt_TE.cpu().numpy()
    parts = [agreement(flat_index(text), image, text), agreement(flat_index(image), text, image)]
    queries = sum(part.queries for part in parts)
    return Agreement(
        k=max(part.k for part in parts),
        queries=queries,
        share=sum(part.share * part.queries for part in parts) / queries,
    )


def _warnings(run: Run, store: Store, split: str, captions_I: np.ndarray, found: Agreement) -> list[str]:
    warnings = []
    if split == run.split_used:
        warnings.append(
            f"{run.path} was selected on split {split!r}, the one evaluated here: its figures are flattered"
        )
    trained_on = {reference["content_hash"] for reference in run.config["stores"]}
    if split in ("train", "all") and store.content_hash in trained_on:
        warnings.append(f"{run.path} was trained on pairs of split {split!r}: its figures are flattered")
    wrong = min(int(captions_I.sum() - captions_I.max()), len(captions_I) - 1)
    trivial = [f"R@{k}" for k in RECALL_AT if wrong < k]
    if trivial:
        warnings.append(
            f"split {split!r} has {wrong} wrong candidates for some query: {', '.join(trivial)} cannot miss there"
        )
    if found.share < 1:
        warnings.append(f"the FAISS index agrees with exact search on {found.share:.2%} of the first {found.k} only")
    return warnings


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
