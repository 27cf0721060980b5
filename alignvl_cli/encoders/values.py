"""Prepared pictures to the values that a vision model reads, on its device."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from alignvl_cli.encoders.pixels import Preprocess

Values = Callable[[np.ndarray], Tensor]


def values_of(
    preprocess: Preprocess,
    device: torch.device | str,
    dtype: torch.dtype,
    layout: torch.memory_format = torch.contiguous_format,
) -> Values:
    """What turns a stack of prepared pictures into (B, 3, H, W) of `dtype` on `device`, in memory as `layout` says.

    uint8 (B, H, W, 3) travels as it is and is looked up there in the table, of which each entry is rounded to `dtype`
    once; float32 (B, 3, H, W) is values already.
    """
    table = None
    if preprocess.value_C256 is not None:
        table = torch.from_numpy(preprocess.value_C256).flatten().to(device, dtype)
    first_C = torch.arange(0, 768, 256, dtype=torch.int32, device=device)

    def values(pictures_B: np.ndarray) -> Tensor:
        owned_B = torch.from_numpy(np.require(pictures_B, requirements=["C", "W"]))  # torch warns of read-only memory
        if owned_B.dtype != torch.uint8:
            return owned_B.to(device, dtype).contiguous(memory_format=layout)
        assert table is not None
        pixel_BHWC = owned_B.to(device)
        entry = (pixel_BHWC.int() + first_C).flatten()
        value_BHWC = table.index_select(0, entry).view(pixel_BHWC.shape)
        return value_BHWC.permute(0, 3, 1, 2).contiguous(memory_format=layout)

    return values
