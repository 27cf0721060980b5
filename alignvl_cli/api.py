"""The stages as plain Python functions: what `from alignvl_cli import ...` gives.

Each takes its subject first (a path, or the object itself) and its settings by keyword, under the names of the flags;
it calls what the command of its name calls, prints nothing, and returns when the work is done. `on_event` is called
with each event of a long work, e.g. to draw progress. What a command refuses with an exit code is an
`alignvl_cli.errors.AlignvlError` here: UsageError (2), DataError (3), MismatchError (4), ...
"""

import math
import operator
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar, overload

from PIL import Image

from alignvl_cli.ablation import run as ablation
from alignvl_cli.ablation.setup import set_up
from alignvl_cli.ablation.study import load_study, parse_study
from alignvl_cli.ablation.verdicts import StudyVerdicts
from alignvl_cli.datasets.formats import cache_at, open_dataset
from alignvl_cli.datasets.lookalikes import Lookalikes
from alignvl_cli.devices import choose_device
from alignvl_cli.encoders.decoding import decode_image
from alignvl_cli.encoders.text import load_text, text_list
from alignvl_cli.encoders.vision import load_vision
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.export.copying import copy_artefact
from alignvl_cli.extraction.run import run_extraction
from alignvl_cli.recipes import WITH_UNPAIRED, trainings
from alignvl_cli.remote import shown
from alignvl_cli.report import map as mapping
from alignvl_cli.retrieval import classify as classification
from alignvl_cli.retrieval import evaluate as evaluation
from alignvl_cli.retrieval import index as indexing
from alignvl_cli.retrieval import search as searching
from alignvl_cli.retrieval.dual_encoder import DualEncoder
from alignvl_cli.retrieval.factory import AUTO
from alignvl_cli.retrieval.metrics import RECALL_AT, Protocol
from alignvl_cli.retrieval.queries import Combined, Like, Query, cutoff, embed, itself, terms_of
from alignvl_cli.settings import (
    AUTO_LAYERS,
    CACHE_GIB,
    DEFAULT_TEXT,
    DEFAULT_VISION,
    PRECISION,
    DatasetFormat,
    DatasetOptions,
    Device,
    ExtractConfig,
    Gallery,
    HubCorrection,
    HubnessReport,
    MapSettings,
    Pooling,
    Precision,
    StoreDtype,
    Trust,
    by_flag,
    layers_asked,
    views_asked,
)
from alignvl_cli.store.joined import join_stores
from alignvl_cli.store.reader import Store, open_store
from alignvl_cli.training.run import count_pairs, train_run
from alignvl_cli.training.run_folder import Run, load_run

__all__ = [
    "Combined",
    "DualEncoder",
    "Like",
    "build_index",
    "classify",
    "copy_artefact",
    "evaluate",
    "extract",
    "open_store",
    "run_study",
    "search",
    "train",
    "write_map",
]

OnEvent = Callable[[Any], None]


def extract(
    dataset: str | Path = "demo:emoji",
    *,
    output: str | Path,
    vision: str = DEFAULT_VISION,
    text: str = DEFAULT_TEXT,
    image_pooling: Pooling | str | None = None,
    text_pooling: Pooling | str | None = None,
    image_layers: str = AUTO_LAYERS,
    text_layers: str = AUTO_LAYERS,
    views: int = 1,
    text_prefix: str | None = None,
    format: DatasetFormat | str | None = None,
    image_root: str | Path | None = None,
    image_column: str = "image",
    caption_column: str | None = None,
    batch_size: int | None = None,
    workers: int | None = 0,
    max_rejected: float = 0.01,
    device: Device | str = Device.auto,
    precision: Precision | str = Precision.auto,
    dtype: StoreDtype | str = StoreDtype.float32,
    overwrite: bool = False,
    reuse: str | Path | None = None,
    cache_dir: str | Path | None = None,
    cache_size: float = CACHE_GIB,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    on_event: OnEvent | None = None,
) -> Store:
    """Encode the pictures and captions of `dataset` (anything that `alignvl extract` takes) into the store `output`.

    An interrupted extraction of the same settings is resumed. Latents of the same pictures and captions are reused from
    the store at `reuse`, or else from the one that `overwrite` replaces ("none": from none). `workers` processes
    decode pictures beside this one; a script that asks for any must be importable (`if __name__ == "__main__":`). The
    store has I image latents (I, D) and T text latents (T, C).

    Raises UsageError when `output` is there without `overwrite`, DataError when nothing can be read or a model is
    missing, MismatchError when the unfinished extraction there had other settings, or nothing of `reuse` can be reused.
    """
    options = DatasetOptions(
        image_root=image_root,
        image_column=image_column,
        caption_column=caption_column,
        format=_choice(DatasetFormat, "format", format),
    )
    config = ExtractConfig(
        batch_size=batch_size,
        workers=workers,
        dtype=_choice(StoreDtype, "dtype", dtype),
        max_rejected=max_rejected,
    )
    place, number = _place(device), _choice(Precision, "precision", precision)
    trust = Trust(remote_code=trust_remote_code, pickle=allow_pickle)
    cache = cache_at(None if cache_dir is None else Path(cache_dir), cache_size)
    pairs = open_dataset(str(dataset), options, cache)
    pooling = _choice(Pooling, "image_pooling", image_pooling)
    images = load_vision(
        vision,
        pooling=pooling,
        layers=layers_asked(image_layers, "image-layers"),
        views=views_asked(str(views)),
        device=place,
        precision=number,
        trust=trust,
    )
    pooling = _choice(Pooling, "text_pooling", text_pooling)
    captions = load_text(
        text,
        pooling=pooling,
        layers=layers_asked(text_layers, "text-layers"),
        prefix=text_prefix,
        device=place,
        precision=number,
        trust=trust,
    )
    settings = {"vision": vision, "text": text, "image_root": image_root and shown(str(image_root)), **asdict(config)}
    older = None if reuse is None else Path(reuse)
    work = run_extraction(
        pairs, images, captions, Path(output), config, overwrite=overwrite, reuse=older, settings=settings
    )
    _last(work, on_event)
    return open_store(output)


def train(
    stores: Store | str | Path | Sequence[Store | str | Path],
    *,
    output: str | Path,
    val: str | Path | None = None,
    unpaired: Sequence[Store | str | Path] = (),
    overwrite: bool = False,
    on_event: OnEvent | None = None,
    **settings: Any,
) -> Run:
    """Train the two adapters on the "train" split of `stores`, select on the "val" split of `val` (default: the first
    store), and fill the run folder `output`. Of `unpaired` stores the pictures and captions are used, not their
    pairing.

    `settings` are the flags of `alignvl train` with underscores, and what is not given is as there:
    `train(store, output="run", mix=False, noise="uniform", noise_std=0.5, seed=3)`.

    Raises UsageError for an unknown setting, a wrong value or one without effect, a batch larger than the data allow,
    or when something is at `output`; DataError, MismatchError for stores that are unsound or do not fit together;
    DivergedError when the loss is no number any more.
    """
    opened = [_store(store) for store in ([stores] if isinstance(stores, Store | str | Path) else stores)]
    given = {**(WITH_UNPAIRED if unpaired else {}), **by_flag(settings)}
    config, *others = trainings(given, pairs=count_pairs([store.path for store in opened]))
    val = None if val is None else Path(val)
    without_pairs = [_store(store) for store in unpaired]
    work = train_run(
        *(opened, Path(output), config),
        val=val,
        unpaired=without_pairs,
        overwrite=overwrite,
        given=given,
        others=others,
    )
    _last(work, on_event)
    return load_run(Path(output), _place(config.device))


def evaluate(
    run: Run | str | Path,
    store: Store | str | Path | None = None,
    *,
    split: str = "test",
    recall_k: Sequence[int] = RECALL_AT,
    folds: int = 1,
    identical_hits: bool = False,
    bootstrap: bool = False,
    calibration: bool = False,
    hubness: HubnessReport | str | None = None,
    eccv: str | Path | None = None,
    device: Device | str = Device.auto,
) -> evaluation.Evaluation:
    """Exact recall of a run on `split` of `store` (default: the one it was trained on), in both directions; ties lose.

    Percentages are in `.metrics`, the rank of each of the Q queries (0: a hit at 1) in `.image_to_text.rank_Q` and
    `.text_to_image.rank_Q`. Nothing is written.

    Raises DataError for an absent split, MismatchError for a store of other encoders, UsageError for settings that
    exclude each other.
    """
    place = _place(device)
    loaded = _run(run, place)
    return evaluation.evaluate(
        loaded,
        _store_of(loaded, store),
        split,
        protocol=Protocol(recall_at=tuple(recall_k), folds=folds, identical_hits=identical_hits),
        bootstrap=bootstrap,
        calibration=calibration,
        hubs=_choice(HubnessReport, "hubness", hubness),
        eccv=None if eccv is None else Path(eccv),
        device=place,
    )


def build_index(
    run: Run | str | Path,
    store: Store | str | Path | Sequence[Store | str | Path] | None = None,
    *,
    output: str | Path,
    split: str = "all",
    factory: str = AUTO,
    memory: int | None = None,
    hubness: HubCorrection | str | None = None,
    device: Device | str = Device.auto,
    overwrite: bool = False,
) -> indexing.Index:
    """Index the images and the captions of `split` of `store` (default: the one the run was trained on), or of each of
    several, at `output`.

    Of several stores (`.record.stores`) an id that more than one has stands as `NAME:ID`, NAME being its store's file
    without the ending; a picture that more than one has is a row of each, and one hit with a count.
    `factory` is a FAISS factory string, or "auto"; `memory` the bytes that the indexes may take (default: half of what
    is free). Raises UsageError when something is at `output` without `overwrite`, or for a factory that does not do or
    fit, or two stores that hold the same; DataError for a split that a store lacks; MismatchError for a store of other
    encoders.
    """
    place = _place(device)
    loaded = _run(run, place)
    several = [store] if store is None or isinstance(store, Store | str | Path) else store
    indexing.build_index(
        loaded,
        join_stores([_store_of(loaded, one) for one in several]),
        split,
        Path(output),
        factory=factory,
        memory=memory,
        correction=_choice(HubCorrection, "hubness", hubness),
        device=place,
        overwrite=overwrite,
    )
    return indexing.open_index(Path(output))


def search(
    index: indexing.Index | str | Path,
    queries: Iterable[Query],
    *,
    encoder: DualEncoder | None = None,
    of: Gallery | str | None = None,
    k: int = 10,
    threshold: float | None = None,
    min_precision: float | None = None,
    group_duplicates: bool = False,
    device: Device | str = Device.auto,
) -> list[list[searching.Hit]]:
    """The first `k` hits of each query that score `threshold` or more; duplicates are one hit, with a count.

    Queries are texts, pictures as `Path` or PIL image, `Like(id)` for an image of the index, or `Combined((weight,
    query), ...)` of these. `of` is the gallery, "image" or "text"; by default pictures find captions, and all others
    images. `min_precision` leaves out what scores less than the hits of which this share is right, as the validation
    split's queries told when the index was built. With `group_duplicates` images that are alike to the eye are one hit,
    whose `duplicates` are the ids of the others: perceptual hashes within 6 of 64 bits and mean colours within 12 of
    255, as in `alignvl data check`; a UserWarning says where pictures were not at hand to be looked at, and only
    identical files were grouped. `encoder` saves loading the index's run once more for each call.

    Scores of a compressed index are those of the store that it was made of; where that is not here they are
    approximate, and a UserWarning says how far, as one does of a text that is longer than the model reads.

    Raises UsageError for one query alone, a `k` below 1, a `threshold` that no hit can score,
    texts and pictures together (but in a `Combined`), an id that the index does
    not have, parts that cancel each other out, a `min_precision` that is not known or never reached, or
    `group_duplicates` of captions; MismatchError for an encoder of other adapters than the index's.
    """
    opened = index if isinstance(index, indexing.Index) else indexing.open_index(Path(index))
    if isinstance(queries, str | Path | Image.Image | Like | Combined) or hasattr(queries, "columns"):
        raise UsageError(f"search: wanted a list of queries, not one ({type(queries).__name__})")
    asked = list(queries)
    pictures = [query for query in asked if isinstance(query, Path | Image.Image)]
    if pictures and len(pictures) < len(asked):
        raise UsageError("search: wanted texts alone or pictures alone (a path as pathlib.Path, not as str)")
    if min_precision is not None and not PRECISION.holds(min_precision):
        raise UsageError(f"min_precision: wanted {PRECISION.wanted}, got {min_precision}")
    k = _count("k", k)
    if threshold is not None:
        threshold = _threshold(threshold, opened)
    encoder = encoder or DualEncoder.load(opened.run_path, device)
    if texts := _texts_of(asked):
        for sentence in searching.cut_texts(encoder, texts):
            warnings.warn(sentence, stacklevel=2)
    query_QE = embed(opened, encoder, lambda: _behind(opened).store, asked)
    gallery = _choice(Gallery, "of", of) or (Gallery.text if pictures else Gallery.image)
    without = [itself(opened, terms_of(query), gallery) for query in asked]
    if group_duplicates and gallery is Gallery.text:
        raise UsageError("group_duplicates: it groups images, and this search finds captions; ask for of='image'")
    look = Lookalikes(decode_image) if group_duplicates else None
    rescore, approximate = searching.scoring(opened, encoder, gallery, lambda: _behind(opened))
    if approximate and min_precision is None:
        warnings.warn(approximate, stacklevel=2)
    if min_precision is not None:
        least, _ = cutoff(opened, map(terms_of, asked), gallery, min_precision, approximate)
        threshold = least if threshold is None else max(threshold, least)
    found = searching.search(
        opened, encoder, query_QE, k=k, of=gallery, threshold=threshold, rescore=rescore, without=without, look=look
    )
    if look is not None and (unseen := look.unseen(hit.uri for hits in found for hit in hits)):
        warnings.warn(unseen, stacklevel=2)
    return found


def _count(name: str, value: object) -> int:
    """A whole number of 1 or more, of any integer type."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError as problem:
        raise UsageError(f"{name}: wanted a whole number, got {value!r}") from problem
    if number < 1:
        raise UsageError(f"{name}: wanted 1 or more, got {number}")
    return number


def _threshold(value: float, index: indexing.Index) -> float:
    if isinstance(value, str) or not math.isfinite(value):
        raise UsageError(f"threshold: wanted a number, got {value!r}")
    if value > 1 and index.record.hubness is None:
        raise UsageError(f"threshold {value:g}: no hit can score that, a score is a cosine and at most 1")
    return float(value)


def _texts_of(queries: Sequence[Query]) -> list[str]:
    """Different texts of the queries and of their parts."""
    return [*dict.fromkeys(part for query in queries for _, part in terms_of(query) if isinstance(part, str))]


def write_map(
    index: indexing.Index | str | Path,
    *,
    output: str | Path,
    of: Gallery | str | None = None,
    neighbours: int = 15,
    seed: int = 0,
    encoder: DualEncoder | None = None,
    overwrite: bool = False,
) -> Path:
    """Place the images and captions of an index (of one gallery: "image" or "text") in the plane by UMAP, and write the
    Parquet file `output` and a PNG beside it; returns its path.

    A row has kind, id, uri, caption, captions, split, vector, x, y, `neighbors` {ids: rows of the file, distances: 1 -
    cosine} and, of images, `image` {bytes}; a picture that is not at hand has none. The same seed gives the same places
    on the same machine. Raises UsageError when something is at `output` without `overwrite`, or without umap-learn or
    matplotlib; DataError for vectors that cannot be read back, or fewer than four rows.
    """
    asked = MapSettings(of=_choice(Gallery, "of", of), neighbours=neighbours, seed=seed)
    path = Path(output)
    mapping.require_ready(path, overwrite)
    opened = index if isinstance(index, indexing.Index) else indexing.open_index(Path(index))
    encoder = encoder or DualEncoder.load(opened.run_path, "cpu")
    made = mapping.make_map(opened, encoder, _behind(opened).store, of=asked.of, k=asked.neighbours, seed=asked.seed)
    mapping.save_map(made, path)
    mapping.save_picture(made, path)
    return path


def _behind(index: indexing.Index) -> indexing.StoreBehind:
    """What an index was made of, if it is where it was."""
    return indexing.store_behind(index.record, _store_at)


def _store_at(content_hash: str, path: str) -> Store | None:
    try:
        store = open_store(path)
    except DataError:
        return None
    return store if store.content_hash == content_hash else None


def classify(
    run: DualEncoder | str | Path,
    store: Store | str | Path | None = None,
    *,
    split: str = "test",
    labels: Iterable[str] | Mapping[str, str] | None = None,
    templates: Iterable[str] = classification.TEMPLATES,
    device: Device | str = Device.auto,
) -> classification.Classification:
    """Give each labelled image of `split` of `store` (default: the one the run was trained on) to the nearest class.

    `labels` are the classes, or {label: words that stand for it in a prompt}; default: those that the split has.
    Raises DataError when no image has a label, or one has a label that is no class; UsageError for a template without
    `{}`, or for one text where a list is wanted.
    """
    templates = text_list(templates, "templates")
    if labels is not None and not isinstance(labels, Mapping):
        labels = {label: label for label in text_list(labels, "labels")}
    encoder = run if isinstance(run, DualEncoder) else DualEncoder.load(run, device)
    return classification.classify(
        encoder.run,
        encoder.encode_text,
        _store_of(encoder.run, store),
        split,
        classes=labels,
        templates=templates,
        device=encoder.device,
    )


def run_study(
    study: str | Path | Mapping[str, Any],
    store: Store | str | Path | None = None,
    *,
    output: str | Path,
    seeds: Sequence[int] | None = None,
    margin: float | None = None,
    jobs: int | None = 1,
    threads: int = 1,
    device: Device | str = Device.auto,
    on_event: OnEvent | None = None,
) -> StudyVerdicts:
    """Train and evaluate every arm of `study` (a TOML file, or what one holds) with every seed, and compare them; on
    `store`, or on the stores that the study names under [data], by paths from its file or from here.

    Runs of the same content in `output` are reused. `jobs` processes make runs, each with so many `threads`; None: as
    many as the machine has room for, and then the script must be importable (`if __name__ == "__main__":`).

    Raises UsageError for a study that does not resolve or has no store, or two; DivergedError when every run diverged.
    """
    asked = parse_study(study) if isinstance(study, Mapping) else load_study(Path(study))
    named = asked.data.stores if asked.data else ()
    if bool(named) == (store is not None):
        raise UsageError("a study has either a `store` or stores under [data]: give one of the two")
    home = Path() if isinstance(study, Mapping) else Path(study).parent
    stores = [_store(home / name).path for name in named] if store is None else _store(store).path
    setup = set_up(asked.changed(seeds, margin), stores, _choice(Device, "device", device), threads)
    finished = _last(ablation.run_study(setup, Path(output), jobs), on_event)
    assert isinstance(finished, ablation.Finished)
    return finished.verdicts


def _last(events: Any, on_event: OnEvent | None) -> Any:
    """The last event, after `on_event` has seen all."""
    event = None
    for event in events:
        if on_event is not None:
            on_event(event)
    return event


Choice = TypeVar("Choice", bound=StrEnum)


@overload
def _choice(kind: type[Choice], name: str, value: str) -> Choice: ...
@overload
def _choice(kind: type[Choice], name: str, value: str | None) -> Choice | None: ...
def _choice(kind: type[Choice], name: str, value: str | None) -> Choice | None:
    """UsageError for a value that is none of the choices."""
    if value is not None and value not in list(kind):
        raise UsageError(f"{name}: wanted one of {', '.join(kind)}, got {value!r}")
    return None if value is None else kind(value)


def _place(device: Device | str) -> str:
    return choose_device(_choice(Device, "device", device))


def _store(store: Store | str | Path) -> Store:
    return store if isinstance(store, Store) else open_store(store)


def _run(run: Run | str | Path, device: str) -> Run:
    if not isinstance(run, Run):
        return load_run(Path(run), device)
    run.adapters.to(device)
    return run


def _store_of(run: Run, store: Store | str | Path | None) -> Store:
    """The store named, else the one the run was trained on, if it is where it was."""
    if store is not None:
        return _store(store)
    found = open_store(run.store_path)
    if found.content_hash != run.store_hash:
        raise DataError(f"{run.path}: the store it was trained on is not at {run.store_path} any more; name the store")
    return found
