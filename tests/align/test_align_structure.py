"""STRUCTURE's regulariser against the formula written densely in numpy, in float64, and against finite differences."""

import numpy as np
import pytest
import torch

from alignvl_cli.align.structure import MAX_ROWS, STRUCTURE_TAU, structure_loss, weight_at
from alignvl_cli.settings import StructureDivergence

PAPER, CODE = StructureDivergence.paper, StructureDivergence.code
N, WIDTHS, E = 24, (9, 7), 5


def rows(seed: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Latents of two modalities and embeddings of them, far from the origin and of several lengths."""
    draw = torch.Generator().manual_seed(seed)
    before = [torch.randn(N, width, generator=draw, dtype=torch.float64) + 0.5 for width in WIDTHS]
    after = [3 * torch.randn(N, E, generator=draw, dtype=torch.float64) - 0.2 for _ in WIDTHS]
    return before, after


def dense(before, after, levels, divergence):
    """The paper's regulariser entry by entry: rows of unit length, centred in the batch; softmax of their products over
    tau; powers of that; the divergence of each row, and its mean; levels weighed by 1 / l, as in the authors'
    configurations of several levels. Their code adds 1e-12 to every entry, which counts where one is smaller."""

    def structure(matrix):
        unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
        unit = unit - unit.mean(axis=0)
        weight = np.exp(unit @ unit.T / 0.05)
        return weight / weight.sum(axis=1, keepdims=True)

    def kl(p, q):
        return np.mean([sum(a * np.log(a / b) for a, b in zip(*rows, strict=True)) for rows in zip(p, q, strict=True)])

    terms = []
    for one, other in zip(before, after, strict=True):
        p, q = structure(one.numpy()), structure(other.numpy())
        for level in range(1, levels + 1):
            pl, ql = np.linalg.matrix_power(p, level), np.linalg.matrix_power(q, level)
            m = (pl + ql) / 2
            if divergence is CODE:
                m, pl, ql = m + 1e-12, pl + 1e-12, ql + 1e-12
            both = (kl(pl, m) + kl(ql, m)) / 2 if divergence is PAPER else (kl(m, pl) + kl(m, ql)) / 2
            terms.append(both / level)
    return sum(terms) / (len(before) * levels)


@pytest.mark.parametrize("divergence", StructureDivergence)
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_it_is_the_papers_formula(levels, divergence):
    before, after = rows(0)
    found = structure_loss(before, after, levels, divergence).item()
    assert found == pytest.approx(dense(before, after, levels, divergence), rel=1e-6)
    single = [[one.float() for one in side] for side in (before, after)]
    assert structure_loss(*single, levels, divergence).item() == pytest.approx(found, rel=1e-4)


def test_the_code_exchanges_the_arguments_and_so_computes_another_number():
    before, after = rows(1)
    paper, code = (structure_loss(before, after, 1, kind).item() for kind in (PAPER, CODE))
    assert paper < np.log(2), "Jensen-Shannon is at most log 2"
    assert code > 1.2 * paper


@pytest.mark.parametrize("divergence", StructureDivergence)
def test_its_gradient_is_that_of_finite_differences_and_is_of_the_embeddings_alone(divergence):
    before, after = rows(2)
    before, after = ([one[:8].clone().requires_grad_() for one in side] for side in (before, after))
    torch.autograd.gradcheck(lambda *embedded: structure_loss(before, embedded, 2, divergence), after)
    structure_loss(before, after, 2, divergence).backward()
    assert before[0].grad is None


@pytest.mark.parametrize("divergence", StructureDivergence)
def test_it_is_zero_where_rows_resemble_each_other_alike_and_only_there(divergence):
    before, after = rows(3)
    draw = torch.Generator().manual_seed(0)
    turned = []
    for one in before:
        rotation, _ = torch.linalg.qr(torch.randn(one.shape[1], one.shape[1], generator=draw, dtype=torch.float64))
        turned.append(7 * one @ rotation)  # neither a rotation nor a length changes who resembles whom
    assert structure_loss(before, turned, 3, divergence).item() == pytest.approx(0, abs=1e-9)
    assert structure_loss(before, after, 3, divergence).item() > 0.01


def test_of_more_rows_the_first_ones_are_compared():
    draw = torch.Generator().manual_seed(0)
    before, after = (torch.randn(MAX_ROWS + 50, 3, generator=draw) for _ in range(2))
    after.requires_grad_()
    whole = structure_loss([before], [after], 1, PAPER)
    assert whole.item() == structure_loss([before[:MAX_ROWS]], [after[:MAX_ROWS]], 1, PAPER).item()


def test_the_weight_rises_over_a_share_of_the_training():
    assert [weight_at(10, 0.2, progress) for progress in (0, 0.05, 0.1, 0.2, 0.9)] == pytest.approx([0, 2.5, 5, 10, 10])
    assert weight_at(10, 0.0, 0.0) == 10
    assert STRUCTURE_TAU == 0.05
