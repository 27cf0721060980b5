"""The processes that compare one batch together: alone, nothing is exchanged; `training` has those of torchrun."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Peers:
    """This process's place among `size` processes, each of which compares its share of the rows with all of them."""

    rank: int = 0
    size: int = 1

    def share_of(self, rows: int, rank: int) -> range:
        """The rows of a process; `rows` is a multiple of `size`."""
        share = rows // self.size
        return range(rank * share, (rank + 1) * share)

    def add(self, *tensors: Tensor) -> None:
        """Sum each over the processes, in place."""

    def add_exponentials(self, log: Tensor) -> None:
        """The logarithm of the exponentials' sum over the processes, in place."""


ALONE = Peers()
