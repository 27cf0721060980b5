"""An index: a folder with a FAISS index of a run's images, one of its captions, and what each row is.

`image.faiss`, `text.faiss`, `items.parquet` (modality, row, id, uri, caption, content; with a hub correction also
penalty), and `index.json`: what was indexed with what, how far it can be trusted, and the hashes of the other three.
The folder takes its name only when all four are there.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet

from alignvl_cli.artifacts import (
    file_sha256,
    foreign_file,
    is_litter,
    made_by,
    new_folder,
    read_json,
    stated_format,
    write_json,
)
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.retrieval.embeddings import Embeddings, embed_split, require_same_encoders
from alignvl_cli.retrieval.factory import AUTO, available_memory, build_vectors, choose_factory, score_error
from alignvl_cli.retrieval.hubness import BANK_SPLIT, choose_normalisation, normalisation_penalties
from alignvl_cli.retrieval.nearest import Agreement, agreement, faiss
from alignvl_cli.retrieval.precision import Precision, measure_precision
from alignvl_cli.settings import Gallery, HubCorrection
from alignvl_cli.store.joined import AnyStore, JoinedStore, join_stores, shared_images
from alignvl_cli.store.reader import SplitRows, Store
from alignvl_cli.training.run_folder import Run

SCHEMA = "alignvl.index/1"
FAMILY = "alignvl.index/"
"""What the schema of an index begins with, of this and every other version."""
RECORD = "index.json"


@dataclass(frozen=True, kw_only=True)
class IndexedStore:
    """One of several stores that an index was made of."""

    path: str
    """Where it was then."""
    content_hash: str
    splits: dict[str, int]
    """Images by split, those that are not indexed too."""
    images: int
    """Of it that are indexed."""
    captions: int
    name: str
    """What `renamed` ids have before them, as in `photos:0001.jpg`, since another of the stores has them too."""
    renamed: int
    """Of its images, the indexed ones."""


@dataclass(frozen=True, kw_only=True)
class IndexRecord:
    """The facts of one index; written last, so that a folder with one is complete."""

    run: str
    """Where the run was when the index was made."""
    adapters_sha256: str
    encoder_hash: str
    store: str
    """Where the store was when the index was made; of several, where each was, in words."""
    store_content_hash: str
    """Of several, of all of them in their order."""
    split: str
    factory: dict[str, str]
    """Gallery -> the FAISS factory string; `auto` may choose differently for each."""
    search: dict[str, dict[str, int]]
    """Gallery -> how wide an approximate index searches (nprobe or efSearch), kept in the FAISS file itself."""
    metric: str
    hubness: dict[str, Any] | None
    """The correction that the scores have, and its parameters by gallery; None: scores are cosines."""
    width: int
    """Of the embeddings; a hub correction adds one dimension to the vectors."""
    images: int
    captions: int
    recall_against_exact: dict[str, Agreement]
    """Gallery -> the share of its first 10 that exact search finds too, queried with the other modality."""
    sha256: dict[str, str]
    """File of the folder -> hash."""
    made_by: dict[str, Any]
    score_error: dict[str, float] | None = None
    """Gallery -> how far its scores were found to be from exact ones, at most; None in indexes of earlier versions."""
    precision: dict[str, Precision] | None = None
    """Gallery -> the share of hits that is right, by score; None with a hub correction, of a store without a
    validation split, and in indexes of earlier versions."""
    stores: tuple[IndexedStore, ...] | None = None
    """Each of several stores, in the order of their rows; None, and not written, where there is one."""
    shared_pictures: int | None = None
    """Different pictures, by content, that are indexed of more than one store; None where there is one."""
    validation_seen: int | None = None
    """Images of the validation split, of all stores, that the run was trained on in one of them, by content: they
    flatter what is measured and chosen on that split. None where there is one store."""

    @property
    def made_of(self) -> list[tuple[str, str]]:
        """(content hash, path) of each store."""
        if self.stores is None:
            return [(self.store_content_hash, self.store)]
        return [(store.content_hash, store.path) for store in self.stores]

    def to_json(self) -> dict[str, Any]:
        fields = asdict(self)
        if self.stores is None:
            del fields["stores"], fields["shared_pictures"], fields["validation_seen"]
        counts = {"images": fields.pop("images"), "captions": fields.pop("captions")}
        return {"schema": SCHEMA, "counts": counts, **fields}

    @classmethod
    def read(cls, folder: Path) -> "IndexRecord":
        """The record of an index folder; DataError when it is missing, of another format, or lacks a field."""
        if not (folder / RECORD).is_file():
            raise DataError(f"{folder}: not an index, it holds no {RECORD}; `alignvl index` makes one")
        stored = read_json(folder / RECORD, "index record")
        if not str(stored.get("schema")).startswith(FAMILY):
            raise DataError(f"{folder}: not an index, its {RECORD} is of another program; `alignvl index` makes one")
        if stored.get("schema") != SCHEMA:
            raise DataError(
                f"{folder}: format {stored.get('schema')!r}, but this version reads {SCHEMA!r}: make the index again"
            )
        try:
            fields = {key: value for key, value in stored.items() if key not in ("schema", "counts")}
            measured = {
                gallery: Agreement(**{**found, "interval": tuple(found["interval"])})
                for gallery, found in fields["recall_against_exact"].items()
            }
            curves = fields.get("precision")
            fields["precision"] = curves and {gallery: Precision.read(curve) for gallery, curve in curves.items()}
            if fields.get("stores") is not None:
                fields["stores"] = tuple(IndexedStore(**store) for store in fields["stores"])
            return cls(**{**fields, **stored["counts"], "recall_against_exact": measured})
        except (KeyError, TypeError, AttributeError) as problem:
            raise DataError(
                f"{folder / RECORD}: a field is missing, unknown or wrong ({problem}): make the index again"
            ) from problem


ITEMS = "items.parquet"
FAISS_FILES = {gallery: f"{gallery.value}.faiss" for gallery in Gallery}
PARTS = (*FAISS_FILES.values(), ITEMS)
COLUMNS = ("modality", "row", "id", "uri", "caption", "content")
PENALTY = "penalty"
FAISS_ERRORS = (RuntimeError, MemoryError)
"""What FAISS raises on a file that it cannot read or write."""


@dataclass(frozen=True)
class Items:
    """One gallery's rows, in the order of its FAISS index."""

    id: list[str]
    uri: list[str]
    caption: list[str]
    content: list[str]
    """Equal for rows that are duplicates: the image's SHA-256, or the caption's text."""
    penalty: list[float] | None = None
    """Of the hub correction; None without one, and in indexes of earlier versions."""

    @cached_property
    def copies(self) -> Counter[str]:
        """How many rows share each content."""
        return Counter(self.content)

    @cached_property
    def rows_of(self) -> dict[str, list[int]]:
        """Content -> its rows, ascending."""
        found: dict[str, list[int]] = {}
        for row, content in enumerate(self.content):
            found.setdefault(content, []).append(row)
        return found

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Id -> row; of captions, the last of the image."""
        return {name: row for row, name in enumerate(self.id)}


@dataclass(frozen=True)
class Index:
    """An index opened and checked."""

    path: Path
    record: IndexRecord
    vectors: dict[Gallery, Any]
    """FAISS indexes."""
    items: dict[Gallery, Items]

    def queries(self, query_QE: np.ndarray) -> np.ndarray:
        """Embedded queries as this index takes them."""
        return query_QE if self.record.hubness is None else with_one(query_QE)

    @property
    def run_path(self) -> Path:
        """Where the run was when the index was made."""
        return Path(self.record.run)


@dataclass(frozen=True)
class StoreBehind:
    """The store that an index was made of, or several joined, as far as they were found."""

    store: AnyStore | None
    """None unless all were."""
    missing: tuple[str, ...] = ()
    """What was not found: where it was when the index was made."""


def store_behind(record: IndexRecord, find: Callable[[str, str], Store | None]) -> StoreBehind:
    """What an index was made of. `find` is asked for a store by content hash and former path."""
    found = [(path, find(content_hash, path)) for content_hash, path in record.made_of]
    there = [store for _, store in found if store is not None]
    missing = tuple(path for path, store in found if store is None)
    return StoreBehind(None if missing else join_stores(there), missing)


def open_index(path: Path) -> Index:
    """Open an index, every part's hash and size verified; DataError with the reason when it is not sound."""
    record = IndexRecord.read(path)
    for name in PARTS:
        if not (path / name).is_file() or file_sha256(path / name) != record.sha256.get(name):
            raise DataError(
                f"{path / name} is missing or damaged (its SHA-256 is not the recorded one): make the index again"
            )
    indexes = {gallery: _read_faiss(path / FAISS_FILES[gallery]) for gallery in Gallery}
    items = _read_items(path / ITEMS)
    for gallery in Gallery:
        if indexes[gallery].ntotal != len(items[gallery].id):
            raise DataError(
                f"{path}: {FAISS_FILES[gallery]} has {indexes[gallery].ntotal} rows and {ITEMS} "
                f"{len(items[gallery].id)}: make the index again"
            )
    return Index(path, record, indexes, items)


def with_one(query_QE: np.ndarray) -> np.ndarray:
    """Queries (Q, E + 1) for corrected vectors."""
    return np.column_stack([query_QE, np.ones(len(query_QE), dtype=np.float32)])


def _read_faiss(path: Path) -> Any:
    try:
        return faiss().read_index(str(path))
    except FAISS_ERRORS as problem:
        raise DataError(f"{path}: FAISS cannot read this index ({problem}): make it again") from problem


def _read_items(path: Path) -> dict[Gallery, Items]:
    try:
        there = pyarrow.parquet.read_schema(path).names
        table = pyarrow.parquet.read_table(path, columns=[*COLUMNS, *({PENALTY} & set(there))])
    except (pyarrow.ArrowException, OSError) as problem:
        raise DataError(f"{path}: cannot read the items of this index ({problem}): make it again") from problem
    return {gallery: _gallery_items(table, gallery) for gallery in Gallery}


def _gallery_items(table: pyarrow.Table, gallery: Gallery) -> Items:
    mine = table.filter(pyarrow.compute.equal(table["modality"], gallery.value))
    columns = (column for column in ("id", "uri", "caption", "content", PENALTY) if column in mine.column_names)
    return Items(*(mine[column].to_pylist() for column in columns))


def build_index(
    run: Run,
    store: AnyStore,
    split: str,
    output: Path,
    *,
    factory: str = AUTO,
    memory: int | None = None,
    correction: HubCorrection | None = None,
    device: str = "cpu",
    overwrite: bool = False,
) -> IndexRecord:
    """Project a split of `store`, or of each of several joined, with `run` and index it under `output`, whole or not
    at all.

    `factory` is any FAISS factory string, or `auto`; `memory` is what the indexes may take together, by default half
    of what is available. With a correction every vector gets one more dimension, its hub penalty.

    Raises UsageError when `output` is there already (an empty folder is not), for a factory that does not do or does
    not fit; MismatchError for a store of other encoders; DataError for a split that a store lacks or embeddings that
    are not finite. Each index's recall against exact search, queried with the other modality, is measured and
    recorded, and so is the precision of its hits by score. That, and a hub correction, go by the training and
    validation splits of all stores that have them.
    """
    _require_place(output, overwrite)
    require_same_encoders(run, store)
    for one in store.stores:
        one.rows(split)
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
    errors = {
        gallery.value: score_error(built[gallery][0], _every_other(query_QE, 0), rows_GE)
        for gallery, (rows_GE, query_QE) in sides.items()
    }
    precision = _precision(run, store, embeddings, device) if correction is None else None
    items = _items_table(store, embeddings)
    if correction is not None:
        items = items.append_column(PENALTY, [-np.concatenate([rows_GE[:, -1] for rows_GE, _ in sides.values()])])
    with new_folder(output, replace=True) as scratch:
        for gallery, (index, _) in built.items():
            _write_faiss(index, scratch / FAISS_FILES[gallery])
        pyarrow.parquet.write_table(items, scratch / ITEMS)
        record = IndexRecord(
            run=str(run.path.resolve()),
            adapters_sha256=run.config["adapters_sha256"],
            encoder_hash=run.encoder_hash,
            store=" and ".join(str(one.path.resolve()) for one in store.stores),
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
            score_error=errors,
            precision=precision,
            **(_each_store(run, store, split, items) if isinstance(store, JoinedStore) else {}),
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


def _each_store(run: Run, store: JoinedStore, split: str, items: pyarrow.Table) -> dict[str, Any]:
    """The fields of the record that tell several stores apart."""
    contents, first, stores = items["content"].to_pylist(), 0, []
    times: Counter[str] = Counter()
    for name, one in zip(store.names, store.stores, strict=True):
        rows = one.rows(split)
        times.update({*contents[first : first + len(rows.image)]})
        first += len(rows.image)
        stores.append(
            IndexedStore(
                path=str(one.path.resolve()),
                content_hash=one.content_hash,
                splits=one.split_sizes(),
                images=len(rows.image),
                captions=len(rows.text),
                name=name,
                renamed=sum(one.image_id[row] in store.repeated_ids for row in rows.image),
            )
        )
    return {
        "stores": tuple(stores),
        "shared_pictures": sum(count > 1 for count in times.values()),
        "validation_seen": _validation_seen(run, store),
    }


def _validation_seen(run: Run, store: JoinedStore) -> int:
    trained_on = {reference["content_hash"] for reference in run.config["stores"]}
    trained = [one for one in store.stores if one.content_hash in trained_on and BANK_SPLIT in one.split_sizes()]
    if run.split_used not in store.split_sizes():
        return 0
    return shared_images(trained, BANK_SPLIT, store, run.split_used)


def _items_table(store: AnyStore, embeddings: Embeddings) -> pyarrow.Table:
    rows = embeddings.rows
    captions = [store.text_caption[row] for row in rows.text]
    owner_row_T = rows.image[rows.text_image]
    item_row_N = np.concatenate([rows.image, owner_row_T])
    return pyarrow.table(
        {
            "modality": [Gallery.image.value] * len(rows.image) + [Gallery.text.value] * len(rows.text),
            "row": np.concatenate([np.arange(len(rows.image)), np.arange(len(rows.text))]),
            "id": [store.image_id[row] for row in item_row_N],
            "uri": [store.image_uri[row] for row in item_row_N],
            "caption": first_captions(store, rows) + captions,
            "content": [store.image_sha256[row].tobytes().hex() for row in rows.image] + captions,
        }
    )


def first_captions(store: AnyStore, rows: SplitRows) -> list[str]:
    """The first caption of each image, empty where there is none."""
    found = [""] * len(rows.image)
    for text_row, owner in zip(reversed(rows.text), reversed(rows.text_image), strict=True):
        found[owner] = store.text_caption[text_row]
    return found


def _sides(
    run: Run, store: AnyStore, embeddings: Embeddings, correction: HubCorrection | None, device: str
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


def _precision(run: Run, store: AnyStore, indexed: Embeddings, device: str) -> dict[str, Precision] | None:
    """As the validation split's queries tell it; None where the store has no such split, or no caption in it."""
    if run.split_used not in store.split_sizes() or not len(store.rows(run.split_used).text):
        return None
    return measure_precision(store, indexed, embed_split(run, store, run.split_used, device), run.split_used)


def _every_other(query_QE: np.ndarray, first: int) -> np.ndarray:
    """Queries 1, 3, 5, ... set the search, queries 0, 2, 4, ... measure it; a lone query does both."""
    return query_QE[min(first, len(query_QE) - 1) :: 2]


def _write_faiss(index: Any, path: Path) -> None:
    try:
        faiss().write_index(index, str(path))
    except FAISS_ERRORS as problem:
        raise DataError(f"{path}: FAISS cannot write this index (is the disk full?): {problem}") from problem
