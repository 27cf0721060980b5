"""`alignvl extract`: frozen-encoder latents of a dataset into a store."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignvl_cli.cli.console import Session
from alignvl_cli.cli.options import (
    CaptionColumnOption,
    DatasetArgument,
    DeviceOption,
    FormatOption,
    ImageColumnOption,
    ImageRootOption,
    MaxPixelsOption,
    MaxRejectedOption,
    OverwriteOption,
    PickleOption,
    PrecisionOption,
    TrustOption,
)
from alignvl_cli.errors import MismatchError, RejectedError, UsageError
from alignvl_cli.settings import (
    DEFAULT_TEXT,
    DEFAULT_VISION,
    MAX_PIXELS,
    DatasetOptions,
    Device,
    ExtractConfig,
    Pooling,
    Precision,
    StoreDtype,
    Trust,
    too_many_rejected,
)

if TYPE_CHECKING:
    from alignvl_cli.datasets.dataset import Dataset
    from alignvl_cli.encoders.text import TextEncoder
    from alignvl_cli.encoders.vision import VisionEncoder

ENCODERS, WORK = "Encoders", "Work"
NAMED = 3
"""Ids that a message names."""


def extract(
    session: Session,
    dataset: DatasetArgument = "demo:emoji",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Store to make. Default: named in the workspace.")
    ] = None,
    vision: Annotated[
        str, typer.Option(help="Hub id, id@revision or local folder.", rich_help_panel=ENCODERS)
    ] = DEFAULT_VISION,
    text: Annotated[
        str, typer.Option(help="Hub id, id@revision or local folder.", rich_help_panel=ENCODERS)
    ] = DEFAULT_TEXT,
    image_pooling: Annotated[
        Pooling | None, typer.Option(help="Which vector is the latent. Default: the model's.", rich_help_panel=ENCODERS)
    ] = None,
    text_pooling: Annotated[
        Pooling | None, typer.Option(help="Which vector is the latent. Default: the model's.", rich_help_panel=ENCODERS)
    ] = None,
    text_prefix: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Put before every caption and query, as in 'query: '. Default: what the model's files state.",
            rich_help_panel=ENCODERS,
        ),
    ] = None,
    trust_remote_code: TrustOption = False,
    allow_pickle: PickleOption = False,
    data_format: FormatOption = None,
    image_root: ImageRootOption = None,
    image_column: ImageColumnOption = "image",
    caption_column: CaptionColumnOption = None,
    max_pixels: MaxPixelsOption = MAX_PIXELS,
    max_rejected: MaxRejectedOption = 0.01,
    batch_size: Annotated[
        str,
        typer.Option(
            metavar="N|auto",
            help="Items in one forward; auto: measured on a GPU, by rule on a CPU.",
            rich_help_panel=WORK,
        ),
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option(help="Processes that decode images. Default: by the machine.", rich_help_panel=WORK)
    ] = None,
    device: DeviceOption = Device.auto,
    precision: PrecisionOption = Precision.auto,
    dtype: Annotated[StoreDtype, typer.Option(help="How latents are kept.", rich_help_panel=WORK)] = StoreDtype.float32,
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard what an interrupted extraction left.", rich_help_panel=WORK)
    ] = False,
    overwrite: OverwriteOption = False,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Time a few batches, say what it would take, write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --plan: one JSON document on stdout.")] = False,
) -> None:
    """Encode images and captions into a store.

    Each distinct image and caption goes through its frozen encoder once. Prints the store's path.

    The same command again does nothing when the store is complete and of the pictures that are there, and goes on
    where it stopped when it is not complete.
    """
    if as_json and not plan_only:
        raise UsageError("--json acts on --plan alone: without it the result is the store's path")
    config = ExtractConfig(
        batch_size=_batch_size(batch_size),
        workers=workers,
        dtype=dtype,
        max_pixels=max_pixels,
        max_rejected=max_rejected,
    )
    options = DatasetOptions(
        image_root=image_root, image_column=image_column, caption_column=caption_column, format=data_format
    )

    from alignvl_cli.datasets.formats import open_dataset
    from alignvl_cli.devices import choose_device
    from alignvl_cli.distributed import ranks_here, use_own_gpu

    ranks = ranks_here()
    if not ranks.is_first:
        session = replace(session, quiet=True)
    place = choose_device(device)
    if place == Device.cuda and ranks.is_shared:
        use_own_gpu(ranks)
    pairs = open_dataset(dataset, options)
    for note in pairs.notes:
        session.note(note)

    from alignvl_cli.encoders.text import load_text
    from alignvl_cli.encoders.vision import load_vision
    from alignvl_cli.extraction.estimate import choose_batches
    from alignvl_cli.extraction.events import Finished
    from alignvl_cli.extraction.plan import existing_store_matches, make_plan
    from alignvl_cli.extraction.run import run_extraction
    from alignvl_cli.extraction.shards import remove_leftover
    from alignvl_cli.extraction.up_to_date import write_stamps
    from alignvl_cli.report.progress import ExtractionProgress

    trust = Trust(remote_code=trust_remote_code, pickle=allow_pickle)
    images = load_vision(vision, pooling=image_pooling, device=place, precision=precision, trust=trust)
    captions = load_text(text, pooling=text_pooling, prefix=text_prefix, device=place, precision=precision, trust=trust)
    plan = make_plan(pairs, images, captions, config)
    store = output or session.workspace.store_path(pairs.name, plan.encoder_hash)
    if plan_only:
        _show_estimate(session, pairs, images, captions, config, store, as_json=as_json)
        return
    if not (overwrite or restart) and existing_store_matches(store, plan):
        remove_leftover(store)
        if ranks.is_first:
            _check_up_to_date(session, store, pairs, images, config)
        return
    work = run_extraction(
        pairs,
        images,
        captions,
        store,
        config,
        overwrite=overwrite,
        restart=restart,
        settings={"vision": vision, "text": text, "image_root": image_root and str(image_root), **asdict(config)},
        counter=session.workspace.next_store_counter(),
        ranks=ranks,
        batches=choose_batches(pairs, images, captions, config, store, ranks),
    )
    event = None
    with ExtractionProgress(session.err, quiet=session.quiet) as progress:
        for event in work:
            progress.show(event)
    if ranks.is_first and isinstance(event, Finished) and event.stamps is not None:
        write_stamps(store, event.summary.content_hash, pairs.items, event.stamps)
    if ranks.is_first:
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


def _batch_size(text: str) -> int | None:
    """None for `auto`."""
    if text == "auto":
        return None
    if not text.isdecimal():
        raise UsageError(f"--batch-size: wanted a whole number or 'auto', got '{text}'")
    return int(text)
