"""The last stage: finished shards, streamed into one store."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignvl_cli.config import StoreDtype
from alignvl_cli.extraction.events import Stage
from alignvl_cli.extraction.images import EncodedImages
from alignvl_cli.extraction.plan import Plan
from alignvl_cli.extraction.texts import Captions
from alignvl_cli.extraction.work_folder import WorkFolder
from alignvl_cli.pairs.items import Dataset
from alignvl_cli.pairs.splits import SplitPlan
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
