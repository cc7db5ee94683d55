"""Criteria of the training: what moved, what hardly did, and resetting it."""

from __future__ import annotations

import pytest
import torch
from hand import close
from torch import Tensor, nn

import sparseprune as sp
from sparseprune.criteria import Trajectory, reset_insensitive, weight_scores


def descent(steps: int = 3, lr: float = 0.1) -> tuple[nn.Linear, Trajectory, list[Tensor]]:
    """Plain gradient descent on |w - (2, -1, 1)|^2 / 2, from (1, 1, 1); all weights on the way."""
    model = nn.Linear(3, 1, bias=False)
    model.weight.data = torch.ones(1, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    way = []
    with Trajectory(model, optimizer) as trajectory:
        for _ in range(steps):
            way.append(model.weight.detach().clone())
            model.weight.grad = way[-1] - torch.tensor([[2.0, -1.0, 1.0]])
            optimizer.step()
    return model, trajectory, way


def test_movement_by_hand() -> None:
    model, trajectory, way = descent()
    expected = -sum(w * (w - torch.tensor([[2.0, -1.0, 1.0]])) for w in way)
    (score,) = weight_scores(model, "movement", trajectory).values()
    assert close(score, expected)
    assert score[0, 0] > 0 > score[0, 1]  # away from zero, towards it


def test_insensitive_by_hand_and_reset() -> None:
    model, trajectory, _ = descent()
    moved = model.weight.detach().clone()
    (score,) = weight_scores(model, "insensitive", trajectory).values()
    assert close(score, (moved - 1).abs())
    kept = reset_insensitive(model, trajectory, 1 / 3)
    assert kept["weight"].tolist() == [[True, True, False]]
    kept = reset_insensitive(model, trajectory, 2 / 3)
    assert kept["weight"].tolist() == [[False, True, False]]
    assert model.weight.tolist() == [[1.0, pytest.approx(float(moved[0, 1])), 1.0]]
    with pytest.raises(ValueError, match="reset_insensitive: share must be"):
        reset_insensitive(model, trajectory, 1.5)


def test_pruning_by_name() -> None:
    model, trajectory, _ = descent()
    masks = sp.prune(model, 1 / 3, "movement", data=trajectory)
    assert masks["weight"].tolist() == [[True, False, True]]


def test_a_closed_trajectory_no_longer_listens() -> None:
    model, trajectory, _ = descent()
    before = trajectory.movement["weight"].clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1)
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    assert torch.equal(trajectory.movement["weight"], before) and trajectory.steps == 3


def test_scaled_gradients_of_amp() -> None:
    """GradScaler unscales before the step: the record is that of full precision."""
    plain = descent()[1].movement["weight"]
    model = nn.Linear(3, 1, bias=False)
    model.weight.data = torch.ones(1, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with Trajectory(model, optimizer) as trajectory:
        for _ in range(3):
            optimizer.zero_grad()
            gap = model.weight - torch.tensor([[2.0, -1.0, 1.0]])
            scaler.scale(gap.square().sum() / 2).backward()
            scaler.step(optimizer)
            scaler.update()
    assert close(trajectory.movement["weight"], plain)


def test_refusals() -> None:
    model, trajectory, _ = descent()
    other = nn.Linear(4, 1)
    with pytest.raises(
        ValueError, match="data must be a Trajectory of this model, got no 'weight'"
    ):
        weight_scores(other, "insensitive", trajectory)
    fresh = Trajectory(model, torch.optim.SGD(model.parameters(), lr=1))
    with pytest.raises(ValueError, match="a Trajectory with steps, got none"):
        weight_scores(model, "movement", fresh)
    with pytest.raises(TypeError, match="a Trajectory holds no batches"):
        weight_scores(model, "wanda", trajectory)
