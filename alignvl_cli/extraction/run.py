"""An extraction from end to end: images, splits, texts, and the finished shards streamed into one store."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from alignvl_cli.artifacts import made_by
from alignvl_cli.datasets.dataset import Dataset, nothing_readable
from alignvl_cli.datasets.splits import SplitPlan, split_rows
from alignvl_cli.distributed import ALONE, Ranks, choose_workers, started_workers
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.extraction.encoding import Timer
from alignvl_cli.extraction.events import Event, ExtractSummary, Finished, Note, Seconds, Stage
from alignvl_cli.extraction.images import EncodedImages, encode_images
from alignvl_cli.extraction.plan import Batches, Plan, existing_store_matches, make_plan, store_differences
from alignvl_cli.extraction.reuse import NOTHING, Older, open_older
from alignvl_cli.extraction.shards import WorkFolder, remove_leftover, work_folder
from alignvl_cli.extraction.texts import Captions, encode_texts, gather_captions
from alignvl_cli.settings import NO_REUSE, ExtractConfig, StoreDtype, too_many_rejected
from alignvl_cli.store.schema import Rejected
from alignvl_cli.store.writer import StoreAbout, StoreRows, Written, write_store

if TYPE_CHECKING:
    from alignvl_cli.encoders.text import TextEncoder
    from alignvl_cli.encoders.vision import VisionEncoder


@dataclass(frozen=True)
class Encoded:
    """All that the earlier stages found."""

    images: EncodedImages
    captions: Captions
    splits: SplitPlan


def assemble(
    folder: WorkFolder,
    dataset: Dataset,
    vision: "VisionEncoder",
    text: "TextEncoder",
    encoded: Encoded,
    plan: Plan,
    made_by: dict[str, Any],
    output: Path,
) -> Written:
    """Write the store that will be `output` into the work folder; memory holds a block of latents at a time."""
    images, captions = encoded.images, encoded.captions
    accepted = images.accepted
    items = [dataset.items[row] for row in accepted.tolist()]
    rows = StoreRows(
        image_id=[item.id for item in items],
        image_uri=[item.uri for item in items],
        image_label=[item.label for item in items],
        image_sha256=images.sha256[accepted],
        image_split=encoded.splits.codes,
        split_names=encoded.splits.names,
        text_image=captions.image,
        text_caption=captions.caption,
        rejected=[
            Rejected(dataset.items[row].id, dataset.items[row].uri, reason)
            for row, reason in sorted(images.reasons.items())
        ],
    )
    about = StoreAbout(
        vision={"record": vision.record, "about": vision.about},
        text={"record": text.record, "about": text.about},
        encoder_hash=plan.encoder_hash,
        dataset={"name": dataset.name, **dataset.record},
        made_by=made_by,
    )
    text_starts = np.arange(0, len(captions.distinct), plan.text_shard).tolist()
    return write_store(
        folder.assembled,
        rows,
        about,
        folder.gather(Stage.images, images.starts, images.content[accepted]),
        folder.gather(Stage.texts, text_starts, captions.number),
        dtype=StoreDtype(plan.dtype),
        named=output,
    )


def run_extraction(
    dataset: Dataset,
    vision: "VisionEncoder",
    text: "TextEncoder",
    output: Path,
    config: ExtractConfig,
    *,
    overwrite: bool = False,
    restart: bool = False,
    reuse: Path | None = None,
    settings: Mapping[str, Any],
    counter: int = 0,
    ranks: Ranks = ALONE,
    batches: Batches | None = None,
) -> Iterator[Event]:
    """Encode `dataset` into the store `output`, yielding progress; the last record is `Finished`.

    Resumes what an interrupted run with the same plan left in `output`.partial, or discards it with
    `restart`. The store appears under its name whole or not at all. `settings` are recorded with it,
    and so is `counter`, the store's place in its workspace. Several `ranks`, each calling this, share the work over
    the folder; each ends when the store is in place. One that comes when all is done yields no `Finished`.

    Latents of an older store are reused (`open_older`): of the one at `reuse`, or else of the one that is replaced;
    NO_REUSE: of none.

    Raises UsageError when `output` is there and `overwrite` does not say to replace it, DataError
    when nothing can be read, an encoder returns NaN, or another process works on the same store, and
    MismatchError when the interrupted run had other settings, or when nothing of `reuse` can be reused.
    """
    if ranks.is_shared and (overwrite or restart):
        raise UsageError(
            f"several processes cannot agree on --overwrite or --restart; remove {output} and {output}.partial first"
        )
    plan = make_plan(dataset, vision, text, config, batches)
    if not (ranks.is_shared and existing_store_matches(output, plan)):
        remove_leftover(output)
        _check_output(output, plan, overwrite)
    timer = Timer()
    older = _older(reuse, output if overwrite else None, plan)
    plan = replace(plan, reuse=older.on_plan)
    with work_folder(output, plan, restart=restart, is_shared=ranks.is_shared) as folder:
        if ranks.is_shared and existing_store_matches(output, plan):
            folder.discard()
            return
        _check_output(output, plan, overwrite)  # once more, now that nobody else is at work on it
        yield from map(Note, older.notes)
        count = choose_workers(config.workers, len(dataset.items), ranks.local_count)
        is_remote = any(item.source.remote for item in dataset.items)
        with started_workers(count, ahead=is_remote) as workers:
            images = yield from encode_images(dataset.items, vision, plan, folder, workers, timer, older)
        accepted = images.accepted
        if not len(accepted):
            folder.discard()
            reasons = sorted(images.reasons.items())
            raise DataError(nothing_readable(dataset, [(dataset.items[row], reason) for row, reason in reasons]))
        splits = split_rows(
            [dataset.items[row].split for row in accepted.tolist()],
            [images.sha256[row].tobytes() for row in accepted.tolist()],
        )
        yield from (Note(note) for note in [*splits.notes, *_guesses(dataset, images.guessed_bits)])
        captions = gather_captions(dataset.items, accepted)
        if not captions.caption:
            folder.discard()
            raise DataError(f"no caption at all among the {len(accepted)} images that can be read")
        is_truncated, reused = yield from encode_texts(captions.distinct, text, plan, folder, timer, older)
        with timer.measure("write"), folder.turn():
            if ranks.is_shared and folder.became(output):
                written = folder.finished()
                folder.discard()
            else:
                made = made_by("extract", settings, counter=counter, plan=plan.to_json())
                if older.store is not None:
                    made["reused"] = older.on_record(images.reused, reused)
                written = assemble(folder, dataset, vision, text, Encoded(images, captions, splits), plan, made, output)
                folder.finish(output, written)
    rejected = len(images.reasons)
    yield Finished(
        ExtractSummary(
            output=output,
            content_hash=written.content_hash,
            images=len(accepted),
            distinct_images=len(set(images.content[accepted].tolist())),
            images_without_captions=len(accepted) - len(set(captions.image.tolist())),
            captions=len(captions.caption),
            distinct_captions=len(captions.distinct),
            repeated_captions=len(captions.caption) - len(captions.distinct),
            truncated_captions=int(is_truncated[captions.number].sum()),
            cleaned_captions=dataset.cleaned_captions,
            blank_captions=dataset.blank_captions,
            rejected=rejected,
            too_many_rejected=too_many_rejected(rejected, len(dataset.items), config.max_rejected),
            leaks=splits.leaks,
            split_sizes={
                name: splits.codes.count(code) for code, name in enumerate(splits.names) if code in splits.codes
            },
            rounding_error=written.rounding_error,
            resumed=images.resumed,
            reused_from=older.store.path if older.store else None,
            reused_images=images.reused,
            reused_captions=reused,
            workers=count,
            seconds=Seconds(
                decode=timer["decode"],
                encode_images=timer["encode_images"],
                encode_texts=timer["encode_texts"],
                write=timer["write"],
                total=timer.total(),
            ),
        ),
        images.stamps,
        sorted(images.reasons),
    )


def _older(reuse: Path | None, replaced: Path | None, plan: Plan) -> Older:
    """The store whose latents are reused."""
    if reuse is not None:
        return NOTHING if reuse == NO_REUSE else open_older(reuse, plan, is_asked=True)
    return open_older(replaced, plan, is_asked=False) if replaced and replaced.exists() else NOTHING


def _guesses(dataset: Dataset, bits: Mapping[int, int]) -> Iterator[str]:
    if bits:
        row = min(bits)
        yield (
            f"{len(bits)} grey pictures of 16 bits seem to use fewer ({dataset.items[row].id}: {bits[row]}), and were "
            "read so; one that has all 16 and is dark came out too bright: save it with 8 bits"
        )


def _check_output(output: Path, plan: Plan, overwrite: bool) -> None:
    if not output.exists():
        return
    if not overwrite:
        changed = store_differences(output, plan)
        made = f", made of other data or settings ({changed})" if changed else ""
        raise UsageError(
            f"{output} is there already{made}; choose another --output, or give --overwrite to replace a store: "
            "latents of what has not changed are reused"
        )
    if not output.is_file() or not h5py.is_hdf5(output):
        raise UsageError(
            f"{output} is there and is no store, so --overwrite does not replace it; choose another --output"
        )
