"""Mixing: identities at the ends, the coefficient's law, and no global random state."""

import pytest
import torch

from alignvl_cli.align.mixing import draw_coefficient, mix


@pytest.fixture
def rows() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(5, 3, generator=draw), torch.randn(5, 3, generator=draw)


def test_the_ends_are_the_rows_themselves(rows):
    anchor, partner = rows
    assert torch.equal(mix(anchor, partner, torch.tensor(1.0)), anchor)
    assert torch.equal(mix(anchor, partner, torch.tensor(0.0)), partner)


def test_one_coefficient_a_row(rows):
    anchor, partner = rows
    lam = torch.tensor([[1.0], [0.0], [0.5], [0.25], [1.0]])
    assert torch.allclose(mix(anchor, partner, lam), lam * anchor + (1 - lam) * partner, atol=1e-7)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_coefficients_follow_beta(alpha):
    lam = draw_coefficient(alpha, (20_000, 1), torch.Generator().manual_seed(1))
    assert lam.shape == (20_000, 1)
    assert lam.dtype == torch.float32
    assert ((lam >= 0) & (lam <= 1)).all()
    assert lam.mean().item() == pytest.approx(0.5, abs=0.01)
    assert lam.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)


def test_draws_come_from_the_generator_alone():
    before = torch.random.get_rng_state()
    one, two = (draw_coefficient(1.0, (), torch.Generator().manual_seed(7)) for _ in range(2))
    assert one.shape == ()
    assert torch.equal(one, two)
    assert torch.equal(torch.random.get_rng_state(), before)
