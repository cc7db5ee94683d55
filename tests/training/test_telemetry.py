"""Telemetry: numbers by hand, and nothing changed."""

from __future__ import annotations

import math

import pytest
import torch
from method_cases import hooks
from torch import nn

from sparseprune.training import Telemetry


def test_by_hand() -> None:
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, -4.0]]))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    telemetry = Telemetry().prepare(model, optimizer)
    model[0].weight.grad = torch.tensor([[6.0, 0.0]])  # to [-3, -4]
    optimizer.step()
    first, second = telemetry.samples
    assert (first.step, first.name, first.magnitude) == (0, "0.weight", 3.5)
    assert (first.signs, first.distance, first.cosine, first.gradient) == (0, 0, 1, 0)
    assert (second.step, second.magnitude, second.signs) == (1, 3.5, 0.5)
    assert (second.distance, second.gradient) == (6, 3)
    assert math.isclose(second.cosine, 7 / 25)
    assert telemetry.finalize()["0.weight"].all()
    optimizer.step()
    assert len(telemetry.samples) == 2  # it watches no longer
    assert not hooks(model, optimizer)


def test_every_third_step_and_zeros() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    telemetry = Telemetry(every=3, ignore="0").prepare(model, optimizer)
    for _ in range(7):
        optimizer.step()  # without gradients nothing moves
    assert [s.step for s in telemetry.samples] == [0, 3, 6]
    assert {(s.cosine, s.distance, s.gradient) for s in telemetry.samples} == {(1.0, 0.0, 0.0)}


def test_bad_argument() -> None:
    with pytest.raises(ValueError, match="Telemetry: every must be a whole number"):
        Telemetry(every=0)
