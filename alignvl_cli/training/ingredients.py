"""What happens to a batch between the store and the loss: an ablated ingredient is absent from these lists.

Letters: N rows of the batch, D and C widths of image and text latents, E shared width; K keys a row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from alignvl_cli.align.mixing import draw_coefficient, mix
from alignvl_cli.align.perturbation import NOISE, Sampler, standard_deviation
from alignvl_cli.align.streams import Stream, Streams
from alignvl_cli.config import MixCoefficient, NoiseKind, NoisePosition, NoiseUnits, TrainConfig
from alignvl_cli.training.batches import Slices
from alignvl_cli.training.data import SplitLatents


class Batch(NamedTuple):
    """Latents (N, D) and (N, C), or embeddings (N, E), row i of one belonging to row i of the other."""

    image: Tensor
    text: Tensor
    keys_KN: Tensor | None
    """What each row shows (its dominant component, when mixed); None without `--mask-duplicates`."""


Transform = Callable[[Batch, Slices], Batch]


@dataclass(frozen=True)
class Gather:
    """The rows of a slice, as they lie in memory."""

    data: SplitLatents
    keys_KT: Tensor | None

    def __call__(self, pair_N: Tensor) -> Batch:
        return Batch(
            self.data.image_ID.index_select(0, self.data.text_image_T.index_select(0, pair_N)),
            self.data.text_TC.index_select(0, pair_N),
            None if self.keys_KT is None else self.keys_KT.index_select(1, pair_N),
        )


@dataclass(frozen=True)
class FuseMix:
    """Blend the anchors with the next slice, shuffled, by one coefficient for both modalities."""

    gather: Gather
    alpha: float
    coefficient: MixCoefficient
    streams: Streams

    def __call__(self, batch: Batch, slices: Slices) -> Batch:
        rows = len(slices.next_N)
        order_N = torch.randperm(rows, generator=self.streams[Stream.partners], device=slices.next_N.device)
        partner = self.gather(slices.next_N[order_N])
        shape = (rows, 1) if self.coefficient is MixCoefficient.pair else ()
        lam = draw_coefficient(self.alpha, shape, self.streams[Stream.coefficient])
        lam = lam.to(batch.image.device, non_blocking=True)
        keys_KN = batch.keys_KN
        if keys_KN is not None and partner.keys_KN is not None:
            keys_KN = torch.where(lam.reshape(-1) >= 0.5, keys_KN, partner.keys_KN)
        return Batch(mix(batch.image, partner.image, lam), mix(batch.text, partner.text, lam), keys_KN)


@dataclass(frozen=True)
class Perturb:
    """Independent zero-mean noise on both modalities."""

    sampler: Sampler
    image_std: float
    text_std: float
    streams: Streams

    def __call__(self, batch: Batch, slices: Slices) -> Batch:
        return Batch(
            batch.image + self.sampler(batch.image, self.image_std, self.streams[Stream.noise_image]),
            batch.text + self.sampler(batch.text, self.text_std, self.streams[Stream.noise_text]),
            batch.keys_KN,
        )


def noise_std(config: TrainConfig, latent_rms: dict[str, float]) -> dict[str, float]:
    """The noise's standard deviation by modality, in the units of the latents."""
    std = standard_deviation(config.noise_std, config.noise_match)
    return {side: std * (rms if config.noise_units is NoiseUnits.rms else 1.0) for side, rms in latent_rms.items()}


def input_transforms(
    config: TrainConfig, gather: Gather, latent_rms: dict[str, float], streams: Streams
) -> Iterator[Transform]:
    """What is done to the latents, in this order, before the adapters."""
    if config.mix:
        yield FuseMix(gather, config.mix_alpha, config.mix_coefficient, streams)
    if config.noise is not NoiseKind.none and config.noise_position is NoisePosition.input:
        yield _perturb(config, latent_rms, streams)


def output_transforms(config: TrainConfig, latent_rms: dict[str, float], streams: Streams) -> Iterator[Transform]:
    """What is done to the embeddings before they are normalised."""
    if config.noise is not NoiseKind.none and config.noise_position is NoisePosition.output:
        yield _perturb(config, latent_rms, streams)


def _perturb(config: TrainConfig, latent_rms: dict[str, float], streams: Streams) -> Perturb:
    std = noise_std(config, latent_rms)
    return Perturb(NOISE[config.noise], std["image"], std["text"], streams)
