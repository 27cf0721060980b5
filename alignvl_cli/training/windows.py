"""Training on more latents than memory may hold (`--memory-budget`): blocks of neighbouring pairs are shuffled, a
window of blocks is in memory at a time, and the pairs of a window are shuffled among themselves.

Letters: P pairs, N rows of a batch, B pairs of a block, S blocks in memory, D and C widths of image and text latents.
"""

from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor

from alignvl_cli.errors import UsageError
from alignvl_cli.training.data import FLOAT_BYTES, StoredRows

WINDOW_BLOCKS = 16
"""Blocks whose pairs are shuffled together. Twice as many are held: a step's anchors and partners are neighbours in the
order of the epoch, and lie in two windows at most."""
SMALLEST_BLOCK = 16
LARGEST_BLOCK = 16_384


class WindowedLatents:
    """One split, of which `2 * WINDOW_BLOCKS` blocks are in memory; the least recently used makes room.

    Pairs are numbered in the order of their images, so that the pairs of a block share the images of a block.
    """

    def __init__(self, image: StoredRows, text: StoredRows, text_image_T: Tensor, budget: int, batch_size: int) -> None:
        """`budget` bytes of latents in memory. UsageError when two windows of them do not hold the batch."""
        self.image_ID, self.text_TC = image, text
        image_T = text_image_T.numpy()
        self._text_P = np.argsort(image_T, kind="stable")
        self._image_P = image_T[self._text_P]
        pair_bytes = FLOAT_BYTES * (image.shape[1] + text.shape[1])  # at most: captions of one image share its latent
        held = 2 * WINDOW_BLOCKS
        self._block = min(LARGEST_BLOCK, budget // (held * pair_bytes))
        wanted = max(SMALLEST_BLOCK, -(-2 * batch_size // WINDOW_BLOCKS))
        if self._block < wanted:
            raise UsageError(
                f"--memory-budget {_as_size(budget)}: --batch-size {batch_size} with latents of this width needs at "
                f"least {_as_size(held * wanted * pair_bytes)}, two windows of twice the batch"
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
        """All pairs: blocks in random order, and within each window of blocks the pairs in random order."""
        blocks = torch.arange(self.pairs).split(self._block)
        order = torch.randperm(len(blocks), generator=generator).tolist()
        windows = []
        for start in range(0, len(order), WINDOW_BLOCKS):
            window = torch.cat([blocks[number] for number in order[start : start + WINDOW_BLOCKS]])
            windows.append(window[torch.randperm(len(window), generator=generator)])
        return torch.cat(windows)

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
