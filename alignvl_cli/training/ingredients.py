"""What happens to a batch between the store and the loss: an ablated ingredient is absent from these lists.

Anchors and partners of one step are disjoint, and every arm takes equally many steps.

Letters: P pairs, N rows of a batch, D and C widths of image and text latents, E shared width; K keys a row.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from alignvl_cli.align.mixing import draw_coefficient, mix
from alignvl_cli.align.perturbation import MULTIPLICATIVE, NOISE, Sampler, standard_deviation
from alignvl_cli.align.smoothing import Frozen
from alignvl_cli.align.streams import Stream, Streams
from alignvl_cli.devices import sent
from alignvl_cli.errors import UsageError
from alignvl_cli.settings import EsTarget, MixCoefficient, NoiseKind, NoisePosition, NoiseUnits, TrainConfig
from alignvl_cli.training.data import ShuffleBuffer, SplitLatents


class Slices(NamedTuple):
    """Two slices of one permutation: the step's anchors, and the next step's, from which partners come."""

    anchor_N: Tensor
    next_N: Tensor


def steps_per_epoch(pairs: int, batch_size: int) -> int:
    """`floor(pairs / batch_size)`; UsageError when fewer than two batches fit, whether or not the arm mixes."""
    if batch_size > pairs // 2:
        raise UsageError(
            f"--batch-size {batch_size}: with {pairs} training pairs it may be at most {pairs // 2}, in every arm, "
            "so that a pair is never mixed with one of its own batch"
        )
    return pairs // batch_size


def epoch_slices(order_P: Tensor, batch_size: int) -> Iterator[Slices]:
    """One epoch: a permutation of all pairs cut into whole slices; the last one's next is the first."""
    slices = order_P.split(batch_size)[: len(order_P) // batch_size]
    for number, anchor_N in enumerate(slices):
        yield Slices(anchor_N, slices[(number + 1) % len(slices)])


class Batch(NamedTuple):
    """Latents (N, D) and (N, C), or embeddings (N, E), row i of one belonging to row i of the other."""

    image: Tensor
    text: Tensor
    keys_KN: Tensor | None
    """What each row shows (its dominant component, when mixed); None without `--mask-duplicates`."""
    frozen: Frozen | None = None
    """What says who resembles whom; None unless the target or STRUCTURE asks."""


Transform = Callable[[Batch, Slices], Batch]


@dataclass(frozen=True)
class Gather:
    """The rows of a slice, from wherever the latents are, on the device that computes."""

    data: SplitLatents | ShuffleBuffer
    keys_KP: Tensor | None
    device: str = "cpu"

    def __call__(self, pair_N: Tensor) -> Batch:
        image, text = self.data.rows(pair_N)
        keys_KN = None if self.keys_KP is None else sent(self.keys_KP.index_select(1, pair_N), self.device)
        return Batch(sent(image, self.device), sent(text, self.device), keys_KN)


@dataclass(frozen=True)
class FuseMix:
    """Blend the anchors with the next slice, shuffled, by one coefficient for both modalities."""

    gather: Gather
    alpha: float
    coefficient: MixCoefficient
    streams: Streams

    def __call__(self, batch: Batch, slices: Slices) -> Batch:
        rows = len(slices.next_N)
        order_N = torch.randperm(rows, generator=self.streams[Stream.partners])
        partner = self.gather(slices.next_N[sent(order_N, slices.next_N.device)])
        shape = (rows, 1) if self.coefficient is MixCoefficient.pair else ()
        lam = draw_coefficient(self.alpha, shape, self.streams[Stream.coefficient])
        lam = sent(lam, batch.image.device)
        keys_KN = batch.keys_KN
        if keys_KN is not None and partner.keys_KN is not None:
            keys_KN = torch.where(lam.reshape(-1) >= 0.5, keys_KN, partner.keys_KN)
        return batch._replace(
            image=mix(batch.image, partner.image, lam), text=mix(batch.text, partner.text, lam), keys_KN=keys_KN
        )


def remember_resemblance(batch: Batch, slices: Slices) -> Batch:
    """Keep the latents for the `similarity` target and for STRUCTURE: mixed, for a mixture resembles both its parts,
    and not yet perturbed, for noise says nothing of who resembles whom."""
    return batch._replace(frozen=Frozen.of(batch.image, batch.text))


@dataclass(frozen=True)
class Perturb:
    """Independent zero-mean noise on both modalities."""

    sampler: Sampler
    image_std: float
    text_std: float
    streams: Streams
    multiplies: bool = False

    def __call__(self, batch: Batch, slices: Slices) -> Batch:
        return batch._replace(
            image=self._perturbed(batch.image, self.image_std, Stream.noise_image),
            text=self._perturbed(batch.text, self.text_std, Stream.noise_text),
        )

    def _perturbed(self, latent_ND: Tensor, std: float, stream: Stream) -> Tensor:
        noise_ND = self.sampler(latent_ND, std, self.streams[stream])
        return torch.addcmul(latent_ND, latent_ND, noise_ND) if self.multiplies else latent_ND + noise_ND


class Scale(NamedTuple):
    """Of one modality's training latents, as prepared."""

    rms: float
    """Root mean square of an entry."""
    factor: float = 1.0
    """By how much the preparation has enlarged them: absolute noise is in units of the latents as stored."""


Scales = Mapping[str, Scale]
"""By modality."""


def noise_std(config: TrainConfig, scales: Scales) -> dict[str, float]:
    """The noise's standard deviation by modality, in the units of the prepared latents."""
    std, is_relative = standard_deviation(config.noise_std, config.noise_match), config.noise_units is NoiseUnits.rms
    return {side: std * (scale.rms if is_relative else scale.factor) for side, scale in scales.items()}


def input_transforms(config: TrainConfig, gather: Gather, scales: Scales, streams: Streams) -> Iterator[Transform]:
    """What is done to the latents, in this order, before the adapters."""
    if config.mix:
        yield FuseMix(gather, config.mix_alpha, config.mix_coefficient, streams)
    if config.structure or (config.smoothing and config.es_target is EsTarget.similarity):
        yield remember_resemblance
    if config.noise is not NoiseKind.none and config.noise_position is NoisePosition.input:
        yield _perturb(config, scales, streams)


def output_transforms(config: TrainConfig, scales: Scales, streams: Streams) -> Iterator[Transform]:
    """What is done to the embeddings before they are normalised."""
    if config.noise is not NoiseKind.none and config.noise_position is NoisePosition.output:
        yield _perturb(config, {side: scale._replace(factor=1.0) for side, scale in scales.items()}, streams)


def _perturb(config: TrainConfig, scales: Scales, streams: Streams) -> Perturb:
    std = noise_std(config, scales)
    multiplies = config.noise in MULTIPLICATIVE
    if multiplies:
        std = {side: std[side] / scale.rms if scale.rms else 0.0 for side, scale in scales.items()}
    return Perturb(NOISE[config.noise], std["image"], std["text"], streams, multiplies)
