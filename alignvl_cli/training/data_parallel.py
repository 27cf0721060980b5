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
from alignvl_cli.align.tiles import Peers
from alignvl_cli.distributed import ranks_here, use_own_gpu
from alignvl_cli.errors import AlignvlError, UsageError

PATIENCE = timedelta(minutes=5)
"""How long a process waits for the others before it gives up. The longest that one works alone is a checkpoint."""


@dataclass(frozen=True)
class Team(Peers):
    """This process's place among `size` processes; alone by default, and then nothing is exchanged."""

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def require_shares(self, batch_size: int) -> None:
        """UsageError unless a batch can be shared out evenly."""
        if batch_size % self.size:
            raise UsageError(
                f"--batch-size {batch_size}: {self.size} processes share the rows of a batch, so it must be a "
                f"multiple of {self.size}, as {batch_size - batch_size % self.size or self.size} is"
            )

    def share(self, whole_N: Tensor) -> Tensor:
        """This process's rows (R, ...) of a tensor (N, ...)."""
        own = self.share_of(len(whole_N), self.rank)
        return whole_N[own.start : own.stop]

    def whole(self, share_RE: Tensor) -> Tensor:
        """The embeddings (N, E) of all processes; the gradient flows to this process's own rows."""
        if self.size == 1:
            return share_RE
        parts = [torch.empty_like(share_RE) for _ in range(self.size)]
        with _in_touch():
            dist.all_gather(parts, share_RE.detach().contiguous())
        parts[self.rank] = share_RE
        return torch.cat(parts)

    def add(self, *tensors: Tensor) -> None:
        """Sum each over the processes, in place."""
        if self.size == 1:
            return
        with _in_touch():
            for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
                work.wait()

    def add_exponentials(self, log: Tensor) -> None:
        """The logarithm of the exponentials' sum over the processes, in place."""
        if self.size == 1:
            return
        parts = [torch.empty_like(log) for _ in range(self.size)]
        with _in_touch():
            dist.all_gather(parts, log.contiguous())
        torch.logsumexp(torch.stack(parts), dim=0, out=log)

    def place_dropout(self, adapters: AdapterPair) -> None:
        """Have every dropout draw its masks for the whole batch, and use this process's rows of them."""
        for module in adapters.modules():
            if isinstance(module, StreamDropout):
                module.part, module.parts = self.rank, self.size

    def add_gradients(self, adapters: AdapterPair) -> None:
        """Sum the gradients over the processes, in place. That of the temperature is whole in each of them already."""
        whole = {"tau", "log_t", "bias"}
        grads = [parameter.grad for name, parameter in adapters.named_parameters() if name not in whole]
        self.add(*(grad for grad in grads if grad is not None))

    def agree(self, value: float) -> float:
        """The leader's value, which decides for all: on unlike machines the others' may differ in the last bit."""
        if self.size == 1:
            return value
        told = torch.tensor(value, dtype=torch.float64, device=_device())
        with _in_touch():
            dist.broadcast(told, 0)
        return told.item()

    def start_alike(self, adapters: AdapterPair) -> None:
        """Wait until everyone is here, and take the leader's weights."""
        if self.size > 1:
            with _in_touch():
                for tensor in adapters.state_dict().values():
                    dist.broadcast(tensor, 0)


@contextmanager
def joined(device: str) -> Iterator[Team]:
    """The team that `torchrun` started this process in, or a team of one."""
    ranks = ranks_here()
    if not ranks.is_shared:
        yield Team()
        return
    if device == "cuda":
        use_own_gpu(ranks)
    with _in_touch():
        dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Team(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


@contextmanager
def _in_touch() -> Iterator[None]:
    """What torch raises when another process is gone or silent, in words."""
    try:
        yield
    except (RuntimeError, ValueError) as problem:
        raise AlignvlError(
            f"another process of this training is gone, or did not answer for {PATIENCE.seconds} s "
            f"({str(problem).splitlines()[0]}); go on with `alignvl train --resume RUN`, under torchrun as before"
        ) from problem


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
