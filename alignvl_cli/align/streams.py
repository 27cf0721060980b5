"""Named random streams of one seed: arms that share a seed share every draw that they have in common.

Nothing here, and nothing that draws from here, touches a global generator.
"""

import hashlib
from collections.abc import Mapping
from enum import StrEnum

import torch
from torch import Tensor


class Stream(StrEnum):
    """What each generator draws."""

    init_image = "init/image"
    init_text = "init/text"
    permutation = "permutation"
    partners = "partners"
    coefficient = "coefficient"
    noise_image = "noise/image"
    noise_text = "noise/text"
    dropout_image = "dropout/image"
    dropout_text = "dropout/text"
    corruption = "corruption"
    subset = "subset"
    unpaired = "unpaired"


ON_DEVICE = {Stream.noise_image, Stream.noise_text, Stream.dropout_image, Stream.dropout_text}
"""Streams that fill tensors in every step, drawn where they are needed; the others draw on the CPU."""


class Streams:
    """One `torch.Generator` a stream, its seed derived from the run's seed and the stream's name."""

    def __init__(self, seed: int, device: str = "cpu") -> None:
        self._generators = {
            stream: torch.Generator(device if stream in ON_DEVICE else "cpu").manual_seed(stream_seed(seed, stream))
            for stream in Stream
        }

    def __getitem__(self, stream: Stream) -> torch.Generator:
        return self._generators[stream]

    def states(self) -> dict[str, Tensor]:
        """The state of each stream, as a uint8 tensor under its name; `restore` takes it back."""
        return {stream.value: generator.get_state() for stream, generator in self._generators.items()}

    def restore(self, states: Mapping[str, Tensor]) -> None:
        """Continue where `states` were taken."""
        for stream, generator in self._generators.items():
            if stream is not Stream.unpaired or stream.value in states:  # earlier versions had none of it
                generator.set_state(states[stream.value])


def stream_seed(seed: int, name: str) -> int:
    """63 bits of SHA-256 of seed and name: neighbouring seeds and names give unrelated streams."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1
