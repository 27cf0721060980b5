"""`alignvl data check`: what is wrong with a dataset, before anything is made of it."""

from typing import Annotated

import typer

from alignvl_cli.commands.options import (
    CaptionColumnOption,
    DatasetArgument,
    FormatOption,
    ImageColumnOption,
    ImageRootOption,
    JsonOption,
    MaxPixelsOption,
    MaxRejectedOption,
    PickleOption,
    TrustOption,
)
from alignvl_cli.commands.session import Session
from alignvl_cli.config import MAX_PIXELS, DatasetOptions, Device, Precision, Trust
from alignvl_cli.errors import RejectedError


def check(
    session: Session,
    dataset: DatasetArgument = "demo:emoji",
    text: Annotated[
        str | None,
        typer.Option(help="Text encoder (Hub id or folder) whose longest input is held against the captions."),
    ] = None,
    data_format: FormatOption = None,
    image_root: ImageRootOption = None,
    image_column: ImageColumnOption = "image",
    caption_column: CaptionColumnOption = None,
    max_pixels: MaxPixelsOption = MAX_PIXELS,
    max_rejected: MaxRejectedOption = 0.01,
    workers: Annotated[int | None, typer.Option(help="Processes that decode images. Default: by the machine.")] = None,
    trust_remote_code: TrustOption = False,
    allow_pickle: PickleOption = False,
    as_json: JsonOption = False,
) -> None:
    """Look for what is wrong with a dataset: files, duplicates, captions.

    Names missing and unreadable images, exact and near duplicates within and across splits, repeated and
    overlong captions, images without captions. Leaves with 6 when more images are unreadable than --max-rejected
    allows.
    """
    options = DatasetOptions(
        image_root=image_root, image_column=image_column, caption_column=caption_column, format=data_format
    )

    from alignvl_cli.extraction.check import check_dataset
    from alignvl_cli.extraction.events import Progress
    from alignvl_cli.pairs.dataset import open_dataset
    from alignvl_cli.report.data import check_document, check_tables, check_warnings
    from alignvl_cli.report.extraction_progress import ExtractionProgress

    pairs = open_dataset(dataset, options)
    encoder = None
    if text is not None:
        from alignvl_cli.encoders.text import load_text

        encoder = load_text(
            text,
            pooling=None,
            device=Device.cpu.value,
            precision=Precision.fp32,
            trust=Trust(remote_code=trust_remote_code, pickle=allow_pickle),
        )
    with ExtractionProgress(session.err, quiet=session.quiet) as progress:
        for event in check_dataset(
            pairs, max_pixels=max_pixels, max_rejected=max_rejected, workers=workers, text=encoder
        ):
            if isinstance(event, Progress):
                progress.show(event)
    assert not isinstance(event, Progress)
    if as_json:
        session.document(check_document(dataset, event))
    else:
        session.show(check_tables(dataset, event))
    for note in event.notes:
        session.note(note)
    for warning in check_warnings(event):
        session.warn(warning)
    if event.too_many_rejected:
        raise RejectedError(
            f"{event.rejected} of {event.images} images cannot be read, more than --max-rejected {max_rejected:g}"
            " allows; --json lists each with the reason"
        )
