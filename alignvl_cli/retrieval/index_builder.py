"""Makes an index of a run and a store, whole or not at all."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.provenance import file_sha256, foreign_file, is_litter, made_by, new_folder, stated_format, write_json
from alignvl_cli.retrieval.embeddings import Embeddings, embed_split
from alignvl_cli.retrieval.factory import AUTO, available_memory, build_vectors, choose_factory
from alignvl_cli.retrieval.hits import Gallery
from alignvl_cli.retrieval.hubness import BANK_SPLIT, choose_normalisation, normalisation_penalties
from alignvl_cli.retrieval.index import FAISS_ERRORS, FAISS_FILES, ITEMS, PARTS, with_one
from alignvl_cli.retrieval.index_record import FAMILY, RECORD, IndexRecord
from alignvl_cli.retrieval.nearest import agreement, faiss
from alignvl_cli.retrieval.protocol import HubCorrection
from alignvl_cli.runs.folder import Run
from alignvl_cli.store.reader import Store


def build_index(
    run: Run,
    store: Store,
    split: str,
    output: Path,
    *,
    factory: str = AUTO,
    memory: int | None = None,
    correction: HubCorrection | None = None,
    device: str = "cpu",
    overwrite: bool = False,
) -> IndexRecord:
    """Project a split of `store` with `run` and index it under `output`, whole or not at all.

    `factory` is any FAISS factory string, or `auto`; `memory` is what the indexes may take together, by default half
    of what is available. With a correction every vector gets one more dimension, its hub penalty.

    Raises UsageError when `output` is there already (an empty folder is not), for a factory that does not do or does
    not fit; MismatchError for a store of other encoders; DataError for an absent split or embeddings that are not
    finite. Each index's recall against exact search, queried with the other modality, is measured and recorded.
    """
    _require_place(output, overwrite)
    embeddings = embed_split(run, store, split, device)
    sides, hubness = _sides(run, store, embeddings, correction, device)
    budget = available_memory() // 2 if memory is None else memory
    total = sum(len(gallery_GE) for gallery_GE, _ in sides.values())
    factories = {
        gallery: choose_factory(factory, len(rows_GE), rows_GE.shape[1], budget * len(rows_GE) // total)
        for gallery, (rows_GE, _) in sides.items()
    }
    built = {
        gallery: build_vectors(factories[gallery], rows_GE, _every_other(query_QE, 1))
        for gallery, (rows_GE, query_QE) in sides.items()
    }
    measured = {
        gallery.value: agreement(built[gallery][0], _every_other(query_QE, 0), rows_GE)
        for gallery, (rows_GE, query_QE) in sides.items()
    }
    with new_folder(output, replace=True) as scratch:
        for gallery, (index, _) in built.items():
            _write_faiss(index, scratch / FAISS_FILES[gallery])
        pyarrow.parquet.write_table(_items_table(store, embeddings), scratch / ITEMS)
        record = IndexRecord(
            run=str(run.path.resolve()),
            adapters_sha256=run.config["adapters_sha256"],
            encoder_hash=run.encoder_hash,
            store=str(store.path.resolve()),
            store_content_hash=store.content_hash,
            split=split,
            factory={gallery.value: chosen for gallery, chosen in factories.items()},
            search={gallery.value: setting for gallery, (_, setting) in built.items()},
            metric="cosine" if hubness is None else "cosine less a hub penalty",
            hubness=hubness,
            width=embeddings.img_IE.shape[1],
            images=len(embeddings.rows.image),
            captions=len(embeddings.rows.text),
            recall_against_exact=measured,
            sha256={name: file_sha256(scratch / name) for name in PARTS},
            made_by=made_by("index", {"split": split, "factory": factory}),
        )
        write_json(scratch / RECORD, record.to_json())
    return record


def _require_place(output: Path, overwrite: bool) -> None:
    """UsageError unless nothing is at `output`, or an empty folder, or with `overwrite` an index and nothing else."""
    if not output.exists() or (output.is_dir() and all(is_litter(path.name) for path in output.iterdir())):
        return
    if not (stated_format(output / RECORD) or "").startswith(FAMILY):
        raise UsageError(f"--output {output}: something that is no index is there; name another place")
    if not overwrite:
        raise UsageError(f"--output {output}: an index is there already; add --overwrite to replace it")
    if (beside := foreign_file(output, {".": (RECORD, *PARTS)})) is not None:
        raise UsageError(
            f"--output {output}: beside the index it holds {beside}, which `alignvl index` never writes, and which "
            "--overwrite would remove too; move it, or name another place"
        )


def _items_table(store: Store, embeddings: Embeddings) -> pyarrow.Table:
    rows = embeddings.rows
    first_caption = [""] * len(rows.image)
    for text_row, owner in zip(reversed(rows.text), reversed(rows.text_image), strict=True):
        first_caption[owner] = store.text_caption[text_row]
    captions = [store.text_caption[row] for row in rows.text]
    owner_row_T = rows.image[rows.text_image]
    item_row_N = np.concatenate([rows.image, owner_row_T])
    return pyarrow.table(
        {
            "modality": [Gallery.image.value] * len(rows.image) + [Gallery.text.value] * len(rows.text),
            "row": np.concatenate([np.arange(len(rows.image)), np.arange(len(rows.text))]),
            "id": [store.image_id[row] for row in item_row_N],
            "uri": [store.image_uri[row] for row in item_row_N],
            "caption": first_caption + captions,
            "content": [store.image_sha256[row].tobytes().hex() for row in rows.image] + captions,
        }
    )


def _sides(
    run: Run, store: Store, embeddings: Embeddings, correction: HubCorrection | None, device: str
) -> tuple[dict[Gallery, tuple[np.ndarray, np.ndarray]], dict[str, Any] | None]:
    """Gallery -> its vectors and the queries of the other modality; and the record of the correction.

    Corrected, a vector is (embedding, -penalty) and a query (embedding, 1): their product is cosine less penalty.
    """
    image, text = embeddings.img_IE.cpu().numpy(), embeddings.txt_TE.cpu().numpy()
    if correction is None:
        return {Gallery.image: (image, text), Gallery.text: (text, image)}, None
    bank = embed_split(run, store, BANK_SPLIT, device)
    chosen = choose_normalisation(embed_split(run, store, run.split_used, device), bank)
    penalties = normalisation_penalties(embeddings, bank, chosen)
    by_gallery = {Gallery.image: "text_to_image", Gallery.text: "image_to_text"}
    penalty = {gallery: penalties[direction].cpu().numpy() for gallery, direction in by_gallery.items()}
    parameters = {gallery.value: chosen[direction].to_json() for gallery, direction in by_gallery.items()}
    corrected = {
        Gallery.image: (np.column_stack([image, -penalty[Gallery.image]]), with_one(text)),
        Gallery.text: (np.column_stack([text, -penalty[Gallery.text]]), with_one(image)),
    }
    return corrected, {"correction": correction.value, "bank": BANK_SPLIT, "parameters": parameters}


def _every_other(query_QE: np.ndarray, first: int) -> np.ndarray:
    """Queries 1, 3, 5, ... set the search, queries 0, 2, 4, ... measure it; a lone query does both."""
    return query_QE[min(first, len(query_QE) - 1) :: 2]


def _write_faiss(index: Any, path: Path) -> None:
    try:
        faiss().write_index(index, str(path))
    except FAISS_ERRORS as problem:
        raise DataError(f"{path}: FAISS cannot write this index (is the disk full?): {problem}") from problem
