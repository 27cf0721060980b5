"""The latents that a batch is gathered from: resident float32 tensors, or, under `--memory-budget`, a shuffle buffer.

A pair is a text row with its image, so pairs are numbered as the texts are. The buffer holds some blocks of
neighbouring pairs at a time: the blocks are shuffled, and the pairs of the blocks that are shuffled together too.

Letters: I images, T captions of the split, P pairs, N rows of a batch, B pairs of a block, S blocks in memory, D and C
widths of image and text latents; K keys a pair.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from alignvl_cli.align.adapters import AsStored
from alignvl_cli.devices import sent
from alignvl_cli.errors import DataError, MismatchError, UsageError
from alignvl_cli.store.reader import Store

FLOAT_BYTES = 4
BLOCK_ROWS = 16_384
"""Rows read or normalised at once: what a block costs in memory beyond the resident tensors."""


@dataclass(frozen=True)
class SplitLatents:
    """Rows of one split, of one store or of several in order."""

    image_ID: Tensor
    text_TC: Tensor
    text_image_T: Tensor
    """Row in `image_ID` of each text's image."""

    @property
    def pairs(self) -> int:
        return len(self.text_TC)

    def rows(self, pair_N: Tensor) -> tuple[Tensor, Tensor]:
        """Image (N, D) and text (N, C) latents of these pairs."""
        image_N = self.text_image_T.index_select(0, pair_N)
        return self.image_ID.index_select(0, image_N), self.text_TC.index_select(0, pair_N)

    def epoch_order(self, generator: torch.Generator) -> Tensor:
        """One permutation of all pairs: drawn on the CPU, so that it is the same on every machine."""
        return sent(torch.randperm(self.pairs, generator=generator), self.text_TC.device)

    def to(self, device: str) -> "SplitLatents":
        return replace(
            self,
            image_ID=self.image_ID.to(device),
            text_TC=self.text_TC.to(device),
            text_image_T=self.text_image_T.to(device),
        )


def require_same_encoders(stores: Sequence[Store]) -> None:
    """MismatchError unless the latents of all stores come from the same encoders."""
    first = stores[0]
    for store in stores[1:]:
        if store.encoder_hash != first.encoder_hash:
            names = [f"{store.path} holds latents of {_names(store)}" for store in (first, store)]
            raise MismatchError(f"{names[0]}, {names[1]}: adapters serve one pair of encoders; extract both alike")


def _names(store: Store) -> str:
    towers = [side["about"].get("id", "an unnamed model") for side in (store.vision, store.text)]
    return f"{towers[0]} and {towers[1]} ({store.encoder_hash[:8]})"


def require_split(store: Store, split: str, remedy: str) -> None:
    """DataError, ending in `remedy`, when the store has no image in `split`."""
    sizes = store.split_sizes()
    if split not in sizes:
        there = ", ".join(f"{name} ({count:,} images)" for name, count in sizes.items())
        raise DataError(f"{store.path}: no image in split {split!r} (it has {there}); {remedy}")


class StoredRows:
    """One modality of a split as it lies in the stores, one after the other; what is read is verified.

    Stands in for a resident tensor (`shape`, `split`, `len`); `prepare` has a step applied to whatever is read.
    """

    def __init__(
        self, stores: Sequence[Store], rows: Sequence[np.ndarray], read: Callable[[Store, np.ndarray], np.ndarray]
    ) -> None:
        """`rows` are those of each store, and `read` is `Store.image_block` or `Store.text_block`."""
        self._stores, self._rows, self._read = stores, rows, read
        self._offsets = np.cumsum([0, *map(len, rows)])
        width = (stores[0].image_latent if read is Store.image_block else stores[0].text_latent).shape[1]
        self.shape = (int(self._offsets[-1]), width)
        self._stored_width = width
        self._steps: list[AsStored] = []

    @property
    def stored(self) -> Sequence[np.ndarray]:
        """The rows of each store, by its own numbers."""
        return self._rows

    def prepare(self, step: AsStored) -> None:
        """Apply `step`, after those before it, to all rows that are read from now on."""
        self._steps.append(step)
        self.shape = (self.shape[0], step(torch.zeros(1, self.shape[1])).shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def numel(self) -> int:
        return self.shape[0] * self.shape[1]

    def read(self, position_N: np.ndarray) -> Tensor:
        """Rows (N, width) by their position in the split; the mapped pages are given back."""
        found = torch.empty(len(position_N), self._stored_width)
        store_N = np.searchsorted(self._offsets, position_N, side="right") - 1
        for number in np.unique(store_N):
            here_N = np.flatnonzero(store_N == number)
            rows = self._rows[number][position_N[here_N] - self._offsets[number]]
            found[torch.from_numpy(here_N)] = torch.from_numpy(self._read(self._stores[number], rows))
            self._stores[number].release()
        for step in self._steps:
            found = step(found)
        return found

    def split(self, rows: int) -> Iterator[Tensor]:
        """All rows, so many at a time."""
        for start in range(0, len(self), rows):
            yield self.read(np.arange(start, min(start + rows, len(self))))

    def pick(self, position_N: np.ndarray) -> "StoredRows":
        """Only the rows at these positions, which ascend."""
        edges = np.searchsorted(position_N, self._offsets)
        picked = [
            rows[position_N[start:end] - offset]
            for rows, start, end, offset in zip(self._rows, edges, edges[1:], self._offsets, strict=False)
        ]
        return StoredRows(self._stores, picked, self._read)

    def resident(self) -> Tensor:
        """All rows in one tensor; the peak is the tensor and a block."""
        whole = torch.empty(self.shape)
        done = 0
        for block in self.split(BLOCK_ROWS):
            whole[done : done + len(block)] = block
            done += len(block)
        return whole


Rows = Tensor | StoredRows


def is_within(budget: int | None, image: StoredRows, text: StoredRows) -> bool:
    """Whether `--memory-budget` leaves room for all of these latents."""
    return budget is None or FLOAT_BYTES * (image.numel() + text.numel()) <= budget


def stored_split(stores: Sequence[Store], split: str) -> tuple[StoredRows, StoredRows, Tensor]:
    """Images, texts, and the row of each text's image, of `split` of all `stores`, one store after the other.

    DataError if a store lacks the split, or has no pair in it.
    """
    rows = [store.rows(split) for store in stores]
    for store, store_rows in zip(stores, rows, strict=True):
        if not len(store_rows.text):
            raise DataError(f"{store.path}: no image of split {split!r} has a caption")
    offsets = np.cumsum([0, *(len(store_rows.image) for store_rows in rows)])
    text_image = [store_rows.text_image + offset for store_rows, offset in zip(rows, offsets, strict=False)]
    return (
        StoredRows(stores, [store_rows.image for store_rows in rows], Store.image_block),
        StoredRows(stores, [store_rows.text for store_rows in rows], Store.text_block),
        torch.from_numpy(np.concatenate(text_image)),
    )


def load_split(stores: Sequence[Store], split: str) -> SplitLatents:
    """The rows of `split` of all `stores`, resident. DataError if a store lacks it, or has no pair."""
    image, text, text_image_T = stored_split(stores, split)
    return SplitLatents(image_ID=image.resident(), text_TC=text.resident(), text_image_T=text_image_T)


def blocks(latent_ND: Tensor | StoredRows) -> Iterator[Tensor]:
    """Consecutive views of a resident tensor, or rows read as they are asked for."""
    return iter(latent_ND.split(BLOCK_ROWS))


def prepared(latent_ND: Tensor, step: AsStored) -> Tensor:
    """A resident tensor after `step` of its preparation, block by block: in place, unless the width changes."""
    if type(step) is AsStored:
        return latent_ND
    width = step(latent_ND[:1]).shape[1]
    result = latent_ND if width == latent_ND.shape[1] else latent_ND.new_empty(len(latent_ND), width)
    for block_BD, place_BK in zip(blocks(latent_ND), blocks(result), strict=True):
        place_BK.copy_(step(block_BD))
    return result


def root_mean_square(latent_ND: Tensor | StoredRows) -> float:
    """Of all entries, summed in float64."""
    return (sum(block.double().square().sum().item() for block in blocks(latent_ND)) / latent_ND.numel()) ** 0.5


def duplicate_keys(stores: Sequence[Store], split: str) -> Tensor:
    """(2, T) numbers, equal where two pairs show the same image bytes (first row) or have the same caption (second)."""
    image_keys, caption_keys = [], []
    numbers: dict[str, int] = {}
    image_numbers: dict[bytes, int] = {}
    for store in stores:
        rows = store.rows(split)
        captions, hashes = store.text_caption, store.image_sha256
        caption_keys += [numbers.setdefault(captions[row], len(numbers)) for row in rows.text]
        images = [image_numbers.setdefault(hashes[row].tobytes(), len(image_numbers)) for row in rows.image]
        image_keys += [images[position] for position in rows.text_image]
    return torch.tensor([image_keys, caption_keys])


BUFFER_BLOCKS = 16
"""Blocks whose pairs are shuffled together. Twice as many are held: a step's anchors and partners are neighbours in the
order of the epoch, and lie in two such groups of blocks at most."""
SMALLEST_BLOCK = 16
LARGEST_BLOCK = 16_384


class ShuffleBuffer:
    """One split, of which `2 * BUFFER_BLOCKS` blocks are in memory; the least recently used makes room.

    Pairs are numbered in the order of their images, so that the pairs of a block share the images of a block.
    """

    def __init__(self, image: StoredRows, text: StoredRows, text_image_T: Tensor, budget: int, batch_size: int) -> None:
        """`budget` bytes of latents in memory. UsageError when two buffers of them do not hold the batch."""
        self.image_ID, self.text_TC = image, text
        image_T = text_image_T.numpy()
        self._text_P = np.argsort(image_T, kind="stable")
        self._image_P = image_T[self._text_P]
        pair_bytes = FLOAT_BYTES * (image.shape[1] + text.shape[1])  # at most: captions of one image share its latent
        held = 2 * BUFFER_BLOCKS
        self._block = min(LARGEST_BLOCK, budget // (held * pair_bytes))
        wanted = max(SMALLEST_BLOCK, -(-2 * batch_size // BUFFER_BLOCKS))
        if self._block < wanted:
            raise UsageError(
                f"--memory-budget {_as_size(budget)}: --batch-size {batch_size} with latents of this width needs at "
                f"least {_as_size(held * wanted * pair_bytes)}, two shuffle buffers of twice the batch"
            )
        block_starts = range(0, self.pairs, self._block)
        most_images = max(len(np.unique(self._image_P[start : start + self._block])) for start in block_starts)
        held = min(held, len(block_starts))
        self._image_SBD = torch.empty(held, most_images, image.shape[1])
        self._text_SBC = torch.empty(held, self._block, text.shape[1])
        self._image_row_SB = torch.zeros(held, self._block, dtype=torch.int64)
        self._slot_of_block = torch.full((len(block_starts),), -1)
        self._loaded: OrderedDict[int, int] = OrderedDict()

    @property
    def pairs(self) -> int:
        return len(self._text_P)

    @property
    def pair_text_P(self) -> Tensor:
        """Row in the split of each pair's text."""
        return torch.from_numpy(self._text_P)

    def epoch_order(self, generator: torch.Generator) -> Tensor:
        """All pairs: blocks in random order, and the pairs of each sixteen blocks in random order."""
        blocks = torch.arange(self.pairs).split(self._block)
        order = torch.randperm(len(blocks), generator=generator).tolist()
        shuffled = []
        for start in range(0, len(order), BUFFER_BLOCKS):
            buffer = torch.cat([blocks[number] for number in order[start : start + BUFFER_BLOCKS]])
            shuffled.append(buffer[torch.randperm(len(buffer), generator=generator)])
        return torch.cat(shuffled)

    def rows(self, pair_N: Tensor) -> tuple[Tensor, Tensor]:
        """Image (N, D) and text (N, C) latents of these pairs, read from the store where they are not in memory."""
        block_N, place_N = pair_N // self._block, pair_N % self._block
        self._hold(block_N.unique().tolist())
        slot_N = self._slot_of_block[block_N]
        image_N = slot_N * self._image_SBD.shape[1] + self._image_row_SB[slot_N, place_N]
        text_N = slot_N * self._block + place_N
        image_ND = self._image_SBD.flatten(0, 1).index_select(0, image_N)
        return image_ND, self._text_SBC.flatten(0, 1).index_select(0, text_N)

    def _hold(self, blocks: list[int]) -> None:
        """Bring `blocks` into memory, which has room for them all."""
        for number in blocks:
            if number in self._loaded:
                self._loaded.move_to_end(number)
        for number in blocks:
            if number not in self._loaded:
                self._load(number)

    def _load(self, number: int) -> None:
        if len(self._loaded) < len(self._text_SBC):
            slot = len(self._loaded)
        else:
            evicted, slot = self._loaded.popitem(last=False)
            self._slot_of_block[evicted] = -1
        taken = slice(number * self._block, (number + 1) * self._block)
        images, image_row = np.unique(self._image_P[taken], return_inverse=True)
        self._image_SBD[slot, : len(images)] = self.image_ID.read(images)
        self._text_SBC[slot, : len(image_row)] = self.text_TC.read(self._text_P[taken])
        self._image_row_SB[slot, : len(image_row)] = torch.from_numpy(image_row)
        self._slot_of_block[number] = slot
        self._loaded[number] = slot


def _as_size(size: int) -> str:
    """Bytes as `--memory-budget` takes them, rounded up."""
    return f"{-(-size // 10**6)}MB" if size >= 10**7 else f"{-(-size // 1000)}kB"
