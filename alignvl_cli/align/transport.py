"""Entropic transport plans between images and captions, and the KL divergence between two of them (KLOT).

Roschmann et al., *SOTAlign: Semi-Supervised Alignment of Unimodal Vision and Language Models via Optimal Transport*
(ICML 2026, arXiv 2602.23353), whose release is the divergence alone (`src/klot.py`). Unpaired rows take part: a plan
needs no pairs.

Letters: N images, M captions of an unpaired batch, E shared width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TEACHER_EPSILON, STUDENT_EPSILON = 0.01, 0.05
"""Of the plans' entropy, in units of the cosine: the paper's."""
SINKHORN_STEPS = 100


@torch.no_grad()
def log_plan(similarity_NM: Tensor, epsilon: float, steps: int = SINKHORN_STEPS) -> Tensor:
    """Logarithm of the plan of mass 1 with uniform marginals that maximises <plan, similarity> + epsilon * entropy
    (Cuturi, NeurIPS 2013), (N, M) float64.

    After the last step either marginal is met by half: both scalings are averaged with their successors', in the
    logarithm, as the authors' code does. Scalings are no logarithms in between: cosines over an epsilon of 0.01 stay
    within what float64 holds, and a product of matrix and vector costs a tenth of a log-sum-exp.
    """
    device = similarity_NM.device
    exact_NM = (similarity_NM.cpu() if device.type == "mps" else similarity_NM).double()  # MPS has no float64
    exact_NM = (exact_NM - exact_NM.max()) / epsilon
    kernel_NM = exact_NM.exp()
    rows, columns = kernel_NM.shape
    v_M = kernel_NM.new_ones(columns)
    for _ in range(steps):
        u_N = 1 / (rows * (kernel_NM @ v_M))
        v_M = 1 / (columns * (u_N @ kernel_NM))
    next_u_N, next_v_M = 1 / (rows * (kernel_NM @ v_M)), 1 / (columns * (u_N @ kernel_NM))
    log_u_N, log_v_M = (u_N * next_u_N).log() / 2, (v_M * next_v_M).log() / 2
    return (exact_NM + log_u_N[:, None] + log_v_M).to(device if device.type != "mps" else "cpu")


class _Klot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, similarity_NM: Tensor, teacher_NM: Tensor) -> Tensor:
        student_log_NM = log_plan(similarity_NM, STUDENT_EPSILON)
        teacher_log_NM = log_plan(teacher_NM, TEACHER_EPSILON)
        teacher_plan_NM = teacher_log_NM.exp()
        gradient_NM = (student_log_NM.exp() - teacher_plan_NM) / STUDENT_EPSILON
        ctx.save_for_backward(gradient_NM.to(similarity_NM))
        return (teacher_plan_NM * (teacher_log_NM - student_log_NM)).sum().to(similarity_NM)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (gradient_NM,) = ctx.saved_tensors
        return grad * gradient_NM, None


def klot(img_NE: Tensor, txt_ME: Tensor, teacher_NM: Tensor) -> Tensor:
    """KL(teacher's plan || student's), in nats; the student's cosines are of embeddings of any length.

    The gradient with respect to the student's cosines is (its plan - the teacher's) / epsilon (theorem 5.1 of the
    paper; exact where Sinkhorn has converged), so that nothing is differentiated through Sinkhorn's steps.
    """
    return _Klot.apply(F.normalize(img_NE, dim=1) @ F.normalize(txt_ME, dim=1).T, teacher_NM)
