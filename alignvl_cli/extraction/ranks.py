"""Which of several processes this one is, as torchrun says it in the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from alignvl_cli.errors import UsageError


@dataclass(frozen=True, slots=True)
class Ranks:
    """One process among equals that share the shards of one extraction over a common folder."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    """Among the processes of this machine: the number of its GPU."""
    local_count: int = 1

    @property
    def is_shared(self) -> bool:
        return self.count > 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that speaks: prints the result and shows progress."""
        return self.rank == 0


ALONE = Ranks()


def ranks_here(environment: Mapping[str, str] = os.environ) -> Ranks:
    """From RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE; alone where they are not set. UsageError for nonsense."""
    count = _number(environment, "WORLD_SIZE", 1)
    rank = _number(environment, "RANK", 0)
    local_count = _number(environment, "LOCAL_WORLD_SIZE", count)
    local_rank = _number(environment, "LOCAL_RANK", rank)
    if rank >= count or local_rank >= local_count:
        raise UsageError(
            f"RANK {rank} of WORLD_SIZE {count}, LOCAL_RANK {local_rank} of LOCAL_WORLD_SIZE {local_count}: a rank "
            "must be below its size; start the processes with torchrun, or unset these variables"
        )
    return Ranks(rank, count, local_rank, local_count)


def use_own_gpu(ranks: Ranks) -> None:
    """Have `cuda` mean this process's own GPU; UsageError when the machine has fewer GPUs than processes."""
    import torch

    there = torch.cuda.device_count()
    if ranks.local_rank >= there:
        raise UsageError(
            f"LOCAL_RANK {ranks.local_rank}, and this machine has {there} GPUs; start one process for each GPU"
        )
    torch.cuda.set_device(ranks.local_rank)


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    if not text.isdecimal():
        raise UsageError(f"{name}={text!r} in the environment is not a number; start the processes with torchrun")
    return int(text)
