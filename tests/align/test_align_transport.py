"""Transport plans and their divergence: against dense references in the logarithm, and what must hold of any plan."""

import pytest
import torch
import torch.nn.functional as F

from alignvl_cli.align.transport import STUDENT_EPSILON, TEACHER_EPSILON, klot, log_plan


def cosines(rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    image, text = (torch.randn(count, 6, generator=generator, dtype=torch.float64) for count in (rows, columns))
    return F.normalize(image, dim=1) @ F.normalize(text, dim=1).T


def dense_log_plan(similarity_NM: torch.Tensor, epsilon: float, steps: int) -> torch.Tensor:
    """Sinkhorn with potentials, as the paper's release takes its steps: rows, then columns, and at the end both
    potentials averaged with what the next step of each would be."""
    scaled = similarity_NM / epsilon
    row_mass, column_mass = (-torch.log(torch.tensor(float(size))) for size in scaled.shape)
    g_M = torch.zeros(scaled.shape[1], dtype=torch.float64)
    for _ in range(steps):
        f_N = row_mass - torch.logsumexp(scaled + g_M, dim=1)
        g_M = column_mass - torch.logsumexp(scaled + f_N[:, None], dim=0)
    next_f_N = row_mass - torch.logsumexp(scaled + g_M, dim=1)
    next_g_M = column_mass - torch.logsumexp(scaled + f_N[:, None], dim=0)
    return scaled + ((f_N + next_f_N) / 2)[:, None] + (g_M + next_g_M) / 2


@pytest.mark.parametrize("shape", [(7, 7), (5, 9), (1, 4)])
@pytest.mark.parametrize("epsilon", [TEACHER_EPSILON, STUDENT_EPSILON, 0.5])
@pytest.mark.parametrize("steps", [1, 100])
def test_a_plan_is_that_of_the_dense_reference(shape, epsilon, steps):
    similarity_NM = cosines(*shape, seed=sum(shape))
    assert torch.allclose(
        log_plan(similarity_NM, epsilon, steps), dense_log_plan(similarity_NM, epsilon, steps), atol=1e-8
    )


def test_a_plan_has_mass_one_uniform_marginals_and_does_not_see_a_constant():
    similarity_NM = cosines(6, 8, seed=3)
    plan_NM = log_plan(similarity_NM, 0.2, steps=500).exp()
    assert torch.allclose(plan_NM.sum(dim=1), torch.full((6,), 1 / 6, dtype=torch.float64))
    assert torch.allclose(plan_NM.sum(dim=0), torch.full((8,), 1 / 8, dtype=torch.float64))
    moved_NM = similarity_NM + torch.arange(6.0)[:, None] / 10 - 0.3
    assert torch.allclose(log_plan(moved_NM, 0.2, steps=500).exp(), plan_NM)


def test_opposite_embeddings_stay_finite():
    similarity_NM = torch.full((4, 4), -1.0) + 2 * torch.eye(4)  # cosines of -1 and 1 over the smallest epsilon
    log_NM = log_plan(similarity_NM, TEACHER_EPSILON)
    assert torch.isfinite(log_NM).all()
    assert torch.allclose(log_NM.exp(), torch.eye(4, dtype=torch.float64) / 4)


def test_klot_is_the_divergence_of_dense_plans_and_nothing_of_a_plan_from_itself():
    generator = torch.Generator().manual_seed(0)
    img_NE, txt_ME = torch.randn(5, 3, generator=generator), torch.randn(6, 3, generator=generator)
    teacher_NM = cosines(5, 6, seed=1).float()
    student_NM = (F.normalize(img_NE, dim=1) @ F.normalize(txt_ME, dim=1).T).double()
    student, teacher = (
        dense_log_plan(student_NM, STUDENT_EPSILON, 100),
        dense_log_plan(teacher_NM.double(), TEACHER_EPSILON, 100),
    )
    wanted = (teacher.exp() * (teacher - student)).sum()
    assert klot(img_NE, txt_ME, teacher_NM).item() == pytest.approx(wanted.item(), rel=1e-5)
    assert klot(img_NE, txt_ME, teacher_NM) > 0
    same_plan_NM = student_NM.float() * TEACHER_EPSILON / STUDENT_EPSILON  # the same over the teacher's epsilon
    assert abs(klot(img_NE, txt_ME, same_plan_NM).item()) < 1e-6


def test_its_gradient_is_that_of_the_divergence_without_a_step_through_sinkhorn():
    teacher_NM = cosines(4, 5, seed=7)
    generator = torch.Generator().manual_seed(2)
    img_NE, txt_ME = (
        (0.2 * torch.randn(rows, 9, generator=generator, dtype=torch.float64) + 1).requires_grad_() for rows in (4, 5)
    )  # plans far from a permutation, where Sinkhorn converges soon
    klot(img_NE, txt_ME, teacher_NM).backward()
    student_NM = F.normalize(img_NE, dim=1) @ F.normalize(txt_ME, dim=1).T
    teacher = log_plan(teacher_NM, TEACHER_EPSILON)
    wanted = (teacher.exp() * (teacher - dense_log_plan(student_NM, STUDENT_EPSILON, 300))).sum()
    for found, through in zip((img_NE.grad, txt_ME.grad), torch.autograd.grad(wanted, (img_NE, txt_ME)), strict=True):
        assert torch.allclose(found, through, atol=1e-6)
