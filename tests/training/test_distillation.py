"""The distillation loss against its sum, and its gradient in the limit of high temperature."""

from __future__ import annotations

import math

import pytest
import torch

from sparseprune.training import distillation


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4])
def test_loss_by_hand(temperature: float) -> None:
    student, teacher = [[1.0, -2.0, 0.5], [0.0, 0.0, 3.0]], [[2.0, 0.0, -1.0], [1.0, 1.0, 1.0]]
    expected = 0.0
    for s, t in zip(student, teacher, strict=True):
        p = [math.exp(v / temperature) for v in t]
        q = [math.exp(v / temperature) for v in s]
        for a, b in zip(p, q, strict=True):
            expected += a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) / len(student)
    loss = distillation(torch.tensor(student), torch.tensor(teacher), temperature)
    assert loss.item() == pytest.approx(temperature**2 * expected, rel=1e-5)


def test_high_temperature_matches_logits() -> None:
    """The gradient goes to (s - t) / classes, both centred (Hinton et al., 2015, eq. 4)."""
    student = torch.randn(1, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(1, 5, dtype=torch.float64, requires_grad=True)
    distillation(student, teacher, 1e4).backward()
    assert teacher.grad is None
    centred = (student - student.mean()) - (teacher - teacher.mean())
    torch.testing.assert_close(student.grad, (centred / 5).detach(), rtol=1e-3, atol=1e-6)


def test_shapes_and_dtypes() -> None:
    student = torch.randn(2, 7, 5).half()
    teacher = torch.randn(2, 7, 5)
    loss = distillation(student, teacher)
    flat = distillation(student.reshape(14, 5), teacher.reshape(14, 5))
    assert loss.dtype == torch.float32 and loss.shape == ()
    torch.testing.assert_close(loss, flat)
    assert distillation(teacher, teacher, 2).item() == 0


def test_errors() -> None:
    logits = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="teacher_logits must be of the student's shape"):
        distillation(logits, torch.zeros(1, 3))
    for wrong in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="temperature must be"):
            distillation(logits, logits, wrong)
