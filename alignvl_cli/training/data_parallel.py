"""Training in several processes at once, as `torchrun` starts them: each adapts its share of the rows of a batch and
compares them with all others, and all see the loss of the whole batch.

Every process draws for the whole batch and mixes and perturbs all of it, so that two processes of N / 2 rows train as
one of N does; the adapters' work and the comparison, which are nearly all of it, are shared out.

Letters: N rows of the batch, R rows of this process, E shared width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from alignvl_cli.align.adapters import AdapterPair, StreamDropout
from alignvl_cli.align.tiles import ProcessGroup
from alignvl_cli.distributed import ranks_here, use_own_gpu
from alignvl_cli.errors import AlignvlError, UsageError

TIMEOUT = timedelta(minutes=5)
"""How long a process waits for the others before it gives up. The longest that one works alone is a checkpoint."""


@dataclass(frozen=True)
class DataParallel(ProcessGroup):
    """This process's place among `world_size` processes; alone by default, and then nothing is exchanged."""

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def require_shares(self, batch_size: int) -> None:
        """UsageError unless a batch can be shared out evenly."""
        if batch_size % self.world_size:
            raise UsageError(
                f"--batch-size {batch_size}: {self.world_size} processes share the rows of a batch, so it must be a "
                f"multiple of {self.world_size}, as {batch_size - batch_size % self.world_size or self.world_size} is"
            )

    def own_rows(self, whole_N: Tensor) -> Tensor:
        """This process's rows (R, ...) of a tensor (N, ...)."""
        own = self.rows_of(len(whole_N), self.rank)
        return whole_N[own.start : own.stop]

    def all_gather(self, share_RE: Tensor) -> Tensor:
        """The embeddings (N, E) of all processes; the gradient flows to this process's own rows."""
        if self.world_size == 1:
            return share_RE
        parts = [torch.empty_like(share_RE) for _ in range(self.world_size)]
        with _collective():
            dist.all_gather(parts, share_RE.detach().contiguous())
        parts[self.rank] = share_RE
        return torch.cat(parts)

    def all_reduce(self, *tensors: Tensor) -> None:
        """Sum each over the processes, in place."""
        if self.world_size == 1:
            return
        with _collective():
            for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
                work.wait()

    def all_reduce_logsumexp(self, log: Tensor) -> None:
        """The logarithm of the exponentials' sum over the processes, in place."""
        if self.world_size == 1:
            return
        parts = [torch.empty_like(log) for _ in range(self.world_size)]
        with _collective():
            dist.all_gather(parts, log.contiguous())
        torch.logsumexp(torch.stack(parts), dim=0, out=log)

    def place_dropout(self, adapters: AdapterPair) -> None:
        """Have every dropout draw its masks for the whole batch, and use this process's rows of them."""
        for module in adapters.modules():
            if isinstance(module, StreamDropout):
                module.part, module.parts = self.rank, self.world_size

    def all_reduce_gradients(self, adapters: AdapterPair) -> None:
        """Sum the gradients over the processes, in place. That of the temperature is whole in each of them already."""
        whole = {"tau", "log_t", "bias"}
        grads = [parameter.grad for name, parameter in adapters.named_parameters() if name not in whole]
        self.all_reduce(*(grad for grad in grads if grad is not None))

    def broadcast(self, value: float) -> float:
        """Rank 0's value, which decides for all: on unlike machines the others' may differ in the last bit."""
        if self.world_size == 1:
            return value
        told = torch.tensor(value, dtype=torch.float64, device=_device())
        with _collective():
            dist.broadcast(told, 0)
        return told.item()

    def broadcast_weights(self, adapters: AdapterPair) -> None:
        """Wait until everyone is here, and take rank 0's weights."""
        if self.world_size > 1:
            with _collective():
                for tensor in adapters.state_dict().values():
                    dist.broadcast(tensor, 0)


@contextmanager
def joined(device: str) -> Iterator[DataParallel]:
    """The processes that `torchrun` started together, or this one alone."""
    ranks = ranks_here()
    if not ranks.is_shared:
        yield DataParallel()
        return
    if device == "cuda":
        use_own_gpu(ranks)
    with _collective():
        dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield DataParallel(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


@contextmanager
def _collective() -> Iterator[None]:
    """What torch raises when another process is gone or silent, in words."""
    try:
        yield
    except (RuntimeError, ValueError) as problem:
        raise AlignvlError(
            f"another process of this training is gone, or did not answer for {TIMEOUT.seconds} s "
            f"({str(problem).splitlines()[0]}); resume with `alignvl train --resume RUN`, under torchrun as before"
        ) from problem


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
