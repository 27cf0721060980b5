"""`alignvl data check`: what is wrong with a dataset, before anything is made of it."""

from typing import Annotated

import typer

from alignvl_cli.cli.console import Session
from alignvl_cli.cli.options import (
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
from alignvl_cli.errors import RejectedError, UsageError
from alignvl_cli.settings import MAX_PIXELS, DatasetOptions, Trust


def check(
    session: Session,
    dataset: DatasetArgument = "demo:emoji",
    text: Annotated[
        str | None,
        typer.Option(help="Text encoder (Hub id or folder) whose longest input is held against the captions."),
    ] = None,
    text_prefix: Annotated[
        str | None, typer.Option(metavar="TEXT", help="As for extract: what --text puts before every caption.")
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
    if text_prefix is not None and text is None:
        raise UsageError("--text-prefix is what an encoder puts before captions; name the encoder with --text")
    options = DatasetOptions(
        image_root=image_root, image_column=image_column, caption_column=caption_column, format=data_format
    )

    from alignvl_cli.datasets.check import Looked, check_dataset
    from alignvl_cli.datasets.formats import open_dataset
    from alignvl_cli.encoders.decoding import decode_image
    from alignvl_cli.extraction.events import Progress, Stage
    from alignvl_cli.report.data import check_document, check_tables, check_warnings
    from alignvl_cli.report.progress import ExtractionProgress

    pairs = open_dataset(dataset, options)
    captions = None
    if text is not None:
        from alignvl_cli.encoders.text import load_caption_reader

        trust = Trust(remote_code=trust_remote_code, pickle=allow_pickle)
        captions = load_caption_reader(text, prefix=text_prefix, trust=trust)
    with ExtractionProgress(session.err, quiet=session.quiet) as progress:
        for event in check_dataset(
            pairs, decode_image, max_pixels=max_pixels, max_rejected=max_rejected, workers=workers, text=captions
        ):
            if isinstance(event, Looked):
                progress.show(Progress(Stage.images, event.done, event.total, event.rate))
    assert not isinstance(event, Looked)
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
