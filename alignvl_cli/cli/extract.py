"""`alignvl extract`: frozen-encoder latents of a dataset into a store."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignvl_cli.cli.console import Session
from alignvl_cli.cli.options import DatasetArgument
from alignvl_cli.errors import MismatchError, RejectedError, UsageError
from alignvl_cli.settings import (
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
    config: ExtractConfig,
    asked: ExtractSettings,
) -> None:
    """Encode images and captions into a store.

    Each distinct image and caption goes through its frozen encoder once. Prints the store's path.

    The same command again does nothing when the store is complete and of the pictures that are there, and goes on
    where it stopped when it is not complete.
    """
    if asked.as_json and not asked.plan:
        raise UsageError("--json acts on --plan alone: without it the result is the store's path")

    from alignvl_cli.datasets.dataset import require_pictures
    from alignvl_cli.datasets.formats import open_dataset
    from alignvl_cli.devices import choose_device
    from alignvl_cli.distributed import ranks_here, use_own_gpu

    ranks = ranks_here()
    if not ranks.is_main:
        session = replace(session, quiet=True)
    place = choose_device(asked.device)
    if place == Device.cuda and ranks.is_shared:
        use_own_gpu(ranks)
    pairs = open_dataset(dataset, options)
    for note in pairs.notes:
        session.note(note)
    known = [output] if output else list(session.workspace.root.glob(f"stores/{pairs.name}-*.h5"))
    if not any(store.exists() for store in known):  # a store may outlive its pictures
        require_pictures(pairs)

    from alignvl_cli.encoders.text import load_text
    from alignvl_cli.encoders.vision import load_vision
    from alignvl_cli.extraction.estimate import choose_batches
    from alignvl_cli.extraction.events import Finished
    from alignvl_cli.extraction.plan import existing_store_matches, make_plan
    from alignvl_cli.extraction.run import run_extraction
    from alignvl_cli.extraction.shards import remove_leftover
    from alignvl_cli.extraction.up_to_date import write_stamps
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
    if not (asked.overwrite or asked.restart) and existing_store_matches(store, plan):
        remove_leftover(store)
        if ranks.is_main:
            _check_up_to_date(session, store, pairs, images, config)
        return
    work = run_extraction(
        pairs,
        images,
        captions,
        store,
        config,
        overwrite=asked.overwrite,
        restart=asked.restart,
        settings={
            "vision": encoders.vision,
            "text": encoders.text,
            "image_root": options.image_root and str(options.image_root),
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
        write_stamps(store, event.summary.content_hash, pairs.items, event.stamps)
    if ranks.is_main:
        session.result(store)
    if isinstance(event, Finished):
        _require_few_rejected(event.summary.rejected, pairs, config)


def _check_up_to_date(
    session: Session, store: Path, pairs: "Dataset", images: "VisionEncoder", config: ExtractConfig
) -> None:
    """There is nothing to do for a complete store if the pictures are those that it was made of; else MismatchError."""
    from alignvl_cli.extraction.up_to_date import Comparison, compare_pictures
    from alignvl_cli.report.progress import ExtractionProgress

    with ExtractionProgress(session.err, quiet=session.quiet) as progress:
        for found in compare_pictures(store, pairs, images.preprocess, config):
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
            "it, or choose another --output"
        )
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
