"""Pictures and captions whose pairing is unknown (`--unpaired`): where they come from, and what they add to a step's
loss (SOTAlign, arXiv 2602.23353; `align.transport` has the maths, `closed_form` makes the teacher).

Letters: I images, T captions, N and M images and captions of an unpaired batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from alignvl_cli.align.adapters import AdapterPair
from alignvl_cli.align.streams import Stream, Streams
from alignvl_cli.align.transport import klot
from alignvl_cli.devices import sent
from alignvl_cli.errors import UsageError
from alignvl_cli.store.reader import Store
from alignvl_cli.training.data import FLOAT_BYTES, Rows, StoredRows, is_within
from alignvl_cli.training.subsets import SelectedPairs

UNPAIRED_ROWS = 256
"""Of each modality in a step, or all where there are fewer: twice as many take four times the time."""


@dataclass(frozen=True)
class UnpairedRows:
    """All that is known of each modality: the pairs' own rows, and those without a pair."""

    image: Rows
    text: Rows
    images: int
    """Of them in no pair."""
    captions: int


@dataclass(frozen=True)
class Unpaired:
    """What a step draws from, and what it is held against."""

    rows: UnpairedRows
    teacher: AdapterPair
    """Solved for on the pairs, in eval mode, with the preparation of the adapters that learn from it."""
    streams: Streams
    device: str

    def loss(self, adapters: AdapterPair) -> Tensor:
        """KL between the teacher's and the adapters' transport plans of a fresh batch, in nats."""
        image_ND, text_MC = (
            sent(drawn(rows, UNPAIRED_ROWS, self.streams), self.device) for rows in (self.rows.image, self.rows.text)
        )
        img_NE, txt_ME = adapters.image.body(image_ND), adapters.text.body(text_MC)
        with torch.autocast(image_ND.device.type, enabled=False):
            with torch.no_grad():
                teacher_NM = _unit(self.teacher.image.body(image_ND)) @ _unit(self.teacher.text.body(text_MC)).T
            return klot(img_NE.float(), txt_ME.float(), teacher_NM)


def drawn(rows: Rows, most: int, streams: Streams) -> Tensor:
    """At most so many of the rows, in some order."""
    # numpy draws without replacement in the time of what is drawn; its seed is the stream's.
    seed = int(torch.randint(2**63 - 1, (), generator=streams[Stream.unpaired]).item())
    place_N = np.random.default_rng(seed).choice(len(rows), min(len(rows), most), replace=False)
    return rows.read(place_N) if isinstance(rows, StoredRows) else rows[torch.from_numpy(place_N)]


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(rows, dim=1)


def unpaired_rows(
    stores: Sequence[Store], unpaired: Sequence[Store], selected: SelectedPairs, split: str, budget: int | None
) -> UnpairedRows:
    """The rows of the pairs `selected` from `stores`, and those of `split` of the stores `unpaired`: of one that is
    trained on too, what its pairs leave. In memory unless they exceed the `budget`. UsageError when nothing is left."""
    named = {store.content_hash: store for store in unpaired}
    trained = {store.content_hash for store in stores}
    others = [store for key, store in named.items() if key not in trained]

    def rows_of(side: str, kept: StoredRows) -> Iterator[np.ndarray]:
        for store, rows in zip(stores, kept.stored, strict=True):
            yield getattr(store.rows(split), side) if store.content_hash in named else rows
        for store in others:
            yield getattr(store.rows(split), side)

    every = [*stores, *others]
    image = StoredRows(every, list(rows_of("image", selected.image)), Store.image_block)
    text = StoredRows(every, list(rows_of("text", selected.text)), Store.text_block)
    images, captions = len(image) - len(selected.text_image_T.unique()), len(text) - len(selected.text)
    if not images and not captions:
        raise UsageError(
            "every picture and caption of the unpaired data is in a training pair: name other stores with --unpaired, "
            "or train on fewer pairs with --subset"
        )
    if budget is not None:  # of which the pairs have their part already
        budget -= FLOAT_BYTES * (selected.image.numel() + selected.text.numel())
    if is_within(budget, image, text):
        return UnpairedRows(image.resident(), text.resident(), images, captions)
    return UnpairedRows(image, text, images, captions)
