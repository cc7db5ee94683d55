"""Distillation: what a pruned network can learn from the dense one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseprune.errors import bad
from sparseprune.training.method import check_strength


def distillation(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), the mean over all but the last axis.

    (Hinton et al., 2015, arXiv:1503.02531, section 2; the factor T^2 keeps gradients of one size
    for all T.) A term to add to the loss. Logits: [..., classes], of the same shape; no gradient
    goes to the teacher. Computed in float32 at least. Raises ValueError for shapes that differ,
    no classes, or a temperature that is not above 0.
    """
    if student_logits.shape != teacher_logits.shape or not student_logits.dim():
        expected = f"of the student's shape {tuple(student_logits.shape)}, [..., classes]"
        got, way_out = tuple(teacher_logits.shape), "give both the same inputs"
        raise bad("distillation", "teacher_logits", expected, got, way_out)
    if not check_strength("distillation", temperature, argument="temperature"):
        raise bad("distillation", "temperature", "above 0", temperature, "pass e.g. 4")
    wide = torch.promote_types(student_logits.dtype, torch.float32)
    student = F.log_softmax(student_logits.to(wide) / temperature, -1)
    teacher = F.log_softmax(teacher_logits.detach().to(wide) / temperature, -1)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    return temperature**2 * divergence.mean()
