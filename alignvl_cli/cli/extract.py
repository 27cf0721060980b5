"""`alignvl extract`: frozen-encoder latents of a dataset into a store."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignvl_cli.cli.console import Session
from alignvl_cli.cli.data import open_pairs
from alignvl_cli.cli.options import DatasetArgument
from alignvl_cli.declarations import given
from alignvl_cli.errors import MismatchError, RejectedError, UsageError
from alignvl_cli.settings import (
    BUNDLED,
    CacheSettings,
    DatasetOptions,
    Device,
    EncoderSettings,
    ExtractConfig,
    ExtractSettings,
    Trust,
    too_many_rejected,
)

if TYPE_CHECKING:
    from alignvl_cli.datasets.dataset import Dataset
    from alignvl_cli.encoders.text import TextEncoder
    from alignvl_cli.encoders.vision import VisionEncoder
    from alignvl_cli.extraction.up_to_date import Comparison

NAMED = 3
"""Ids that a message names."""


def extract(
    session: Session,
    dataset: DatasetArgument = "demo:emoji",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Store to make. Default: named in the workspace.")
    ] = None,
    *,
    encoders: EncoderSettings,
    trust: Trust,
    options: DatasetOptions,
    cached: CacheSettings,
    config: ExtractConfig,
    asked: ExtractSettings,
) -> None:
    """Encode images and captions into a store.

    Each distinct image and caption goes through its frozen encoder once. Prints the store's path.

    The same command again does nothing when the store is up to date, and resumes an extraction that was interrupted.
    """
    if asked.as_json and not asked.plan:
        raise UsageError("--json acts on --plan alone: without it the result is the store's path")

    from alignvl_cli.datasets.dataset import require_pictures
    from alignvl_cli.distributed import ranks_here, use_own_gpu
    from alignvl_cli.extraction.up_to_date import encoders_request, unchanged_store, write_stamps

    ranks = ranks_here()
    if not ranks.is_main:
        session = replace(session, quiet=True)
    pairs = open_pairs(session, dataset, options, cached)
    for note in pairs.notes:
        session.note(note)
    known = [output] if output else sorted(session.workspace.root.glob(f"stores/{pairs.name}-*.h5"))
    specs = {"vision": encoders.vision, "text": encoders.text}
    decisive = {**asdict(encoders), **asdict(trust), "device": asked.device, "precision": asked.precision}
    decisive |= {"dtype": config.dtype, "max_pixels": config.max_pixels}
    is_anew = asked.plan or asked.overwrite or asked.restart
    complete = [store for store in known if not store.with_name(f"{store.name}.partial").exists()]
    if not is_anew and (same := unchanged_store(complete, pairs, specs, decisive)):
        if ranks.is_main:
            _say_up_to_date(session, *same, pairs, config)
        return

    from alignvl_cli.devices import choose_device

    place = choose_device(asked.device)
    if place == Device.cuda and ranks.is_shared:
        use_own_gpu(ranks)
    if not any(store.exists() for store in known):  # a store may outlive its pictures
        require_pictures(pairs)

    from alignvl_cli.encoders.bundled import bundled_folder
    from alignvl_cli.encoders.text import load_text
    from alignvl_cli.encoders.vision import load_vision
    from alignvl_cli.extraction.estimate import choose_batches
    from alignvl_cli.extraction.events import Finished
    from alignvl_cli.extraction.plan import existing_store_matches, make_plan
    from alignvl_cli.extraction.run import run_extraction
    from alignvl_cli.extraction.shards import remove_leftover
    from alignvl_cli.remote import shown
    from alignvl_cli.report.progress import ExtractionProgress

    images = load_vision(
        encoders.vision,
        pooling=encoders.image_pooling,
        layers=encoders.image_layers,
        views=encoders.views,
        device=place,
        precision=asked.precision,
        trust=trust,
    )
    captions = load_text(
        encoders.text,
        pooling=encoders.text_pooling,
        layers=encoders.text_layers,
        prefix=encoders.text_prefix,
        device=place,
        precision=asked.precision,
        trust=trust,
    )
    for note in filter(None, (images.layers.note, captions.layers.note)):
        session.note(note)
    plan = make_plan(pairs, images, captions, config)
    store = output or session.workspace.store_path(pairs.name, plan.encoder_hash)
    if asked.plan:
        _show_estimate(session, pairs, images, captions, config, store, as_json=asked.as_json)
        return
    folders = {side: bundled_folder(spec) for side, spec in specs.items() if spec.startswith(BUNDLED)}
    request = encoders_request(specs, decisive, folders)
    if not is_anew and existing_store_matches(store, plan):
        remove_leftover(store)
        if ranks.is_main:
            _say_up_to_date(session, store, _compared(session, store, pairs, images, config, request), pairs, config)
        return
    flags = {**given(encoders), **given(trust), **given(options), **given(config)}
    flags |= {flag: value for flag, value in given(asked).items() if flag in ("device", "precision")}
    work = run_extraction(
        pairs,
        images,
        captions,
        store,
        config,
        overwrite=asked.overwrite,
        restart=asked.restart,
        reuse=asked.reuse,
        settings={
            "dataset": shown(dataset),
            "vision": encoders.vision,
            "text": encoders.text,
            "image_root": options.image_root and shown(str(options.image_root)),
            "given": {
                flag: shown(str(value)) if isinstance(value, str | Path) else value for flag, value in flags.items()
            },
            **asdict(config),
        },
        counter=session.workspace.next_store_counter(),
        ranks=ranks,
        batches=choose_batches(pairs, images, captions, config, store, ranks),
    )
    event = None
    with ExtractionProgress(session.err, quiet=session.quiet) as progress:
        for event in work:
            progress.show(event)
    if ranks.is_main and isinstance(event, Finished) and event.stamps is not None:
        write_stamps(store, event.summary.content_hash, pairs.items, event.stamps, event.rejected, request)
    if ranks.is_main:
        session.result(store)
    if isinstance(event, Finished):
        _require_few_rejected(event.summary.rejected, pairs, config)


def _compared(
    session: Session,
    store: Path,
    pairs: "Dataset",
    images: "VisionEncoder",
    config: ExtractConfig,
    request: dict[str, Any] | None,
) -> "Comparison":
    """The pictures that are there against those that the complete store was made of; MismatchError if they differ."""
    from alignvl_cli.extraction.up_to_date import Comparison, compare_pictures
    from alignvl_cli.report.progress import ExtractionProgress

    with ExtractionProgress(session.err, quiet=session.quiet) as progress:
        for found in compare_pictures(store, pairs, images.preprocess, config, request):
            if not isinstance(found, Comparison):
                progress.show(found)
    assert isinstance(found, Comparison)
    if not found.is_same:
        differences = [
            f"{len(ids)} of {len(pairs.items)} {what} ({_named(ids)})"
            for ids, what in (
                (found.changed, "pictures have changed since"),
                (found.readable, "pictures could not be read then and can be now"),
            )
            if ids
        ]
        raise MismatchError(
            f"{store} is complete, and made of other pictures: {'; '.join(differences)}; give --overwrite to replace "
            "it (latents of the other pictures are reused), or choose another --output"
        )
    return found


def _say_up_to_date(
    session: Session, store: Path, found: "Comparison", pairs: "Dataset", config: ExtractConfig
) -> None:
    if found.gone:
        session.warn(
            f"{len(found.gone)} of {len(pairs.items)} pictures cannot be read (moved? --image-root), and were not "
            f"compared ({_named(found.gone)}); {store} has them as they were"
        )
    session.note(f"{store} is up to date, made of the same data by the same encoders: nothing to do")
    session.result(store)
    _require_few_rejected(found.rejected, pairs, config)


def _require_few_rejected(rejected: int, pairs: "Dataset", config: ExtractConfig) -> None:
    if too_many_rejected(rejected, len(pairs.items), config.max_rejected):
        raise RejectedError(
            f"{rejected} of {len(pairs.items)} images were rejected, more than --max-rejected"
            f" {config.max_rejected:g} allows; the store is complete without them, and its /rejected says why each was"
        )


def _named(ids: list[str]) -> str:
    return ", ".join(ids[:NAMED]) + (", ..." if len(ids) > NAMED else "")


def _show_estimate(
    session: Session,
    pairs: "Dataset",
    images: "VisionEncoder",
    captions: "TextEncoder",
    config: ExtractConfig,
    store: Path,
    *,
    as_json: bool,
) -> None:
    from alignvl_cli.extraction.estimate import estimate
    from alignvl_cli.report.data import estimate_table

    found = estimate(pairs, images, captions, store, config)
    if as_json:
        session.document({"schema": "alignvl.extract-plan/1", "store": str(store), **asdict(found)})
    else:
        session.show(estimate_table(str(store), found))
