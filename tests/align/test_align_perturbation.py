"""Noise of every kind: zero mean, the stated standard deviation, the shape that its name says."""

import math

import pytest
import torch

from alignvl_cli.align.perturbation import NOISE, standard_deviation
from alignvl_cli.settings import NoiseKind, NoiseMatch

SIGMA = 0.3


def draw(kind: NoiseKind, seed: int = 0) -> torch.Tensor:
    return NOISE[kind](torch.zeros(400, 500), SIGMA, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", NOISE)
def test_zero_mean_and_standard_deviation_sigma(kind):
    noise = draw(kind)
    count = noise.numel()
    assert abs(noise.mean().item()) < 4 * SIGMA / math.sqrt(count)
    assert noise.std().item() == pytest.approx(SIGMA, rel=0.01)


def test_gaussian_has_tails_and_uniform_a_bound():
    bound = SIGMA * math.sqrt(3)
    assert draw(NoiseKind.uniform).abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert draw(NoiseKind.gaussian).abs().max().item() > 1.5 * bound
    gaussian_kurtosis = (draw(NoiseKind.gaussian) / SIGMA).pow(4).mean().item()
    uniform_kurtosis = (draw(NoiseKind.uniform) / SIGMA).pow(4).mean().item()
    assert gaussian_kurtosis == pytest.approx(3.0, abs=0.1)
    assert uniform_kurtosis == pytest.approx(1.8, abs=0.05)


def test_laplace_has_heavy_tails_and_dropout_two_values():
    laplace_kurtosis = (draw(NoiseKind.laplace) / SIGMA).pow(4).mean().item()
    assert laplace_kurtosis == pytest.approx(6.0, abs=0.3)
    dropped = SIGMA**2 / (1 + SIGMA**2)
    noise = draw(NoiseKind.dropout)
    assert noise.unique().tolist() == pytest.approx([-1.0, dropped / (1 - dropped)], rel=1e-4)
    assert (noise == -1).double().mean().item() == pytest.approx(dropped, rel=0.02)


@pytest.mark.parametrize("kind", NOISE)
def test_a_seed_is_a_draw_and_the_latents_stay(kind):
    latents = torch.full((4, 6), 2.0)
    one = NOISE[kind](latents, SIGMA, torch.Generator().manual_seed(3))
    two = NOISE[kind](latents, SIGMA, torch.Generator().manual_seed(3))
    other = NOISE[kind](latents, SIGMA, torch.Generator().manual_seed(4))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(latents, torch.full((4, 6), 2.0))


def test_matching_the_range_means_a_smaller_deviation():
    std = standard_deviation(SIGMA, NoiseMatch.range)
    noise = NOISE[NoiseKind.uniform](torch.zeros(300, 300), std, torch.Generator().manual_seed(0))
    assert noise.abs().max().item() == pytest.approx(SIGMA, rel=1e-3)
    assert standard_deviation(SIGMA, NoiseMatch.variance) == SIGMA
