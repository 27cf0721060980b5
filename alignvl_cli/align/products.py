"""In which number format the loss may take its matrix products, when the embeddings were rounded to bfloat16 anyway.

The loss itself stays float32: logits, sums and exponentials.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def tensor_cores(allowed: bool) -> Iterator[None]:
    """Products of float32 rows may be TF32 on CUDA within the block, if `allowed`; afterwards as before."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = before or allowed
    try:
        yield
    finally:
        matmul.allow_tf32 = before


def rounded(factor: Tensor, allowed: bool) -> Tensor:
    """A factor of a product in bfloat16, if `allowed`: several times as fast where the hardware has it."""
    return factor.to(torch.bfloat16) if allowed else factor


def add_product(into_RE: Tensor, weight_RC: Tensor, rows_CE: Tensor) -> None:
    """`into += weight @ rows`, in place, the product taken in the format of its factors."""
    if rows_CE.dtype is into_RE.dtype:
        into_RE.addmm_(weight_RC, rows_CE)
    else:
        into_RE += weight_RC @ rows_CE
