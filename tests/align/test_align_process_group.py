"""The comparison shared out among processes, played by threads: each has the whole loss and its own rows' gradients."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from test_align_losses import KEYS, SMOOTHINGS, E, N, inputs

from alignvl_cli.align.losses import contrastive
from alignvl_cli.align.tiles import ProcessGroup
from alignvl_cli.settings import Loss


class Exchange:
    """What threads lay down at a barrier for one another."""

    def __init__(self, size):
        self.laid, self.barrier = [None] * size, threading.Barrier(size, timeout=30)

    def all_of(self, rank, tensor):
        self.laid[rank] = tensor.clone()
        self.barrier.wait()
        everyones = torch.stack(self.laid)
        self.barrier.wait()
        return everyones


@dataclass(frozen=True)
class Threads(ProcessGroup):
    exchange: Exchange | None = None

    def all_reduce(self, *tensors):
        for tensor in tensors:
            tensor.copy_(self.exchange.all_of(self.rank, tensor).sum(dim=0))

    def all_reduce_logsumexp(self, log):
        log.copy_(self.exchange.all_of(self.rank, log).logsumexp(dim=0))


def compared(loss, smoothing, keys, tile, group=None):
    """Loss, hard loss, and the gradients of embeddings, scale and bias."""
    leaves, frozen = inputs(torch.float64)
    bias = leaves[3] if loss is Loss.sigmoid else None
    others = {} if group is None else {"group": group}
    found = contrastive(loss, *leaves[:3], bias, smoothing, keys_KN=keys, frozen=frozen, tile=tile, **others)
    gradients = torch.autograd.grad(found.loss, leaves if bias is not None else leaves[:3])
    return [*(part.detach() for part in found), *gradients]


def shared_out(size, *what):
    """The same by `size` threads, the embeddings' gradients put together from each one's own rows."""
    exchange = Exchange(size)
    ranks = [Threads(rank, size, exchange) for rank in range(size)]
    with ThreadPoolExecutor(size) as pool:
        found = list(pool.map(lambda group: compared(*what, group), ranks))
    for one in found:
        for number in (0, 1, *range(4, len(one))):
            assert torch.allclose(one[number], found[0][number], rtol=0, atol=1e-12)
    rows = N // size
    own = [torch.cat([one[side][rank * rows : (rank + 1) * rows] for rank, one in enumerate(found)]) for side in (2, 3)]
    return [*found[0][:2], *own, *found[0][4:]]


@pytest.mark.parametrize("loss", Loss)
@pytest.mark.parametrize("smoothing", SMOOTHINGS, ids=str)
@pytest.mark.parametrize("keys", [None, KEYS], ids=["all entries", "duplicates masked"])
@pytest.mark.parametrize(("size", "tile"), [(3, None), (3, 2), (9, 4)])
def test_processes_that_share_a_comparison_find_what_one_finds(loss, smoothing, keys, size, tile):
    alone = compared(loss, smoothing, keys, None)
    together = shared_out(size, loss, smoothing, keys, tile)
    for one, other in zip(alone, together, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_a_process_compares_its_own_rows_alone():
    """Its largest product has as many entries as its rows with those of one process: the work is shared out."""
    entries = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal entries
            out = function(*args, **(kwargs or {}))
            if function is torch.ops.aten.mm.default and args[0].shape[1] == E:
                entries += out.numel()
            return out

    (img, txt, scale, _), frozen = inputs()
    counted = {}
    for size in (1, 3):
        entries = 0
        with Watch():
            contrastive(Loss.infonce, img, txt, scale, frozen=frozen, group=ProcessGroup(size - 1, size))
        counted[size] = entries
    assert counted == {1: N * N, 3: N * N // 3}
