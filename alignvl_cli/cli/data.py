"""`alignvl data check`: what is wrong with a dataset, before anything is made of it."""

import time
from typing import TYPE_CHECKING

from alignvl_cli.cli.console import Session
from alignvl_cli.cli.options import DatasetArgument
from alignvl_cli.declarations import given
from alignvl_cli.errors import RejectedError, UsageError
from alignvl_cli.settings import CacheSettings, CheckSettings, DatasetOptions, Trust

if TYPE_CHECKING:
    from alignvl_cli.datasets.dataset import Dataset


def open_pairs(session: Session, dataset: str, options: DatasetOptions, cached: CacheSettings) -> "Dataset":
    """The dataset, with progress while what lies behind a URL is copied."""
    from alignvl_cli.datasets.formats import cache_at, open_dataset
    from alignvl_cli.remote import is_url

    if not is_url(dataset):
        if kept := given(cached):
            raise UsageError(f"--{next(iter(kept))} has no effect on {dataset}, which is no URL; leave it out")
        return open_dataset(dataset, options)

    from alignvl_cli.extraction.events import Progress, Stage
    from alignvl_cli.report.progress import ExtractionProgress

    began = time.perf_counter()
    with ExtractionProgress(session.err, quiet=session.quiet) as progress:

        def show(done: int, total: int) -> None:
            if total < MIB:
                return
            rate = done / MIB / (time.perf_counter() - began)
            progress.show(Progress(Stage.copied, round(done / MIB), round(total / MIB), rate))

        return open_dataset(dataset, options, cache_at(cached.cache_dir, cached.cache_size, show))


MIB = 1 << 20


def check(
    session: Session,
    dataset: DatasetArgument = "demo:emoji",
    *,
    options: DatasetOptions,
    cached: CacheSettings,
    trust: Trust,
    asked: CheckSettings,
) -> None:
    """Look for what is wrong with a dataset: files, duplicates, captions.

    Names missing and unreadable images, exact and near duplicates within and across splits, repeated and
    overlong captions, images without captions. Leaves with 6 when more images are unreadable than --max-rejected
    allows.
    """
    if asked.text_prefix is not None and asked.text is None:
        raise UsageError("--text-prefix is what an encoder puts before captions; name the encoder with --text")

    from alignvl_cli.datasets.check import CheckProgress, check_dataset
    from alignvl_cli.encoders.decoding import decode_image
    from alignvl_cli.extraction.events import Progress, Stage
    from alignvl_cli.remote import shown
    from alignvl_cli.report.data import check_document, check_tables, check_warnings
    from alignvl_cli.report.progress import ExtractionProgress

    pairs = open_pairs(session, dataset, options, cached)
    captions = None
    if asked.text is not None:
        from alignvl_cli.encoders.text import load_caption_reader

        captions = load_caption_reader(asked.text, prefix=asked.text_prefix, trust=trust)
    with ExtractionProgress(session.err, quiet=session.quiet) as progress:
        for event in check_dataset(
            pairs,
            decode_image,
            max_pixels=asked.max_pixels,
            max_rejected=asked.max_rejected,
            workers=asked.workers,
            text=captions,
        ):
            if isinstance(event, CheckProgress):
                progress.show(Progress(Stage.images, event.done, event.total, event.rate))
    assert not isinstance(event, CheckProgress)
    if asked.as_json:
        session.document(check_document(shown(dataset), event))
    else:
        session.show(check_tables(shown(dataset), event))
    for note in event.notes:
        session.note(note)
    for warning in check_warnings(event):
        session.warn(warning)
    if event.too_many_rejected:
        raise RejectedError(
            f"{event.rejected} of {event.images} images cannot be read, more than --max-rejected {asked.max_rejected:g}"
            " allows; --json lists each with the reason"
        )
