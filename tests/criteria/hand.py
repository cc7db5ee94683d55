"""The two-layer network that every criterion is worked out on by hand, and helpers.

x = (1, 1)  ->  z = W1 x = (3, 2)  ->  relu: h = (3, 2)  ->  y = W2 h = -1
W1 = [[1, 2], [3, -1]]   W2 = [[1, -2]]   target 1:  L = (y - 1)^2 / 2 = 2,  dL/dy = -2

dL/dW2 = dL/dy h   = (-6, -4)
dL/dh  = dL/dy W2  = (-2, 4)
dL/dW1 = dL/dh x^T = [[-2, -2], [4, 4]]
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from sparseprune.criteria.statistics import curvature
from sparseprune.criteria.statistics import units as unit_statistics

X, T = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0]])
DATA = [(X, T)]

X3, T3 = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [2.0, 0.5]]), torch.tensor([[1.0], [0.0], [2.0]])
HALVES = [(X3[:2], T3[:2]), (X3[2:], T3[2:])]
"""Two batches of unequal size for the same network."""


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    model[2].weight.data = torch.tensor([[1.0, -2.0]])
    return model.to(dtype)


def half_square(output: Tensor, target: Tensor) -> Tensor:
    """Mean over the batch of |y - t|^2 / 2."""
    return (output - target).square().sum() / 2 / len(output)


def images(seed: int = 0, classes: int = 3) -> tuple[nn.Sequential, list[tuple[Tensor, Tensor]]]:
    """A small convolutional network with running statistics, and three batches of unequal size."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 4, classes),
    )
    model[1].running_mean.uniform_(-0.1, 0.1)
    model[1].running_var.uniform_(0.5, 2)
    data = [(torch.randn(n, 2, 8, 8), torch.randint(classes, (n,))) for n in (5, 4, 2)]
    return model, data


def close(found: Tensor, expected: object, tolerance: float = 1e-5) -> bool:
    wanted = torch.as_tensor(expected, dtype=torch.float64)
    return found.shape == wanted.shape and torch.allclose(
        found.double().cpu(), wanted, rtol=tolerance, atol=tolerance
    )


@pytest.fixture
def all_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes run through every combination of signs: Hutchinson's mean becomes its expectation."""
    endless: Iterator[tuple[int, ...]] | None = None

    def signs_like(tensors: list[Tensor], generator: object) -> list[Tensor]:
        nonlocal endless
        sizes = [t.numel() for t in tensors]
        if endless is None:
            endless = itertools.cycle(itertools.product((-1, 1), repeat=sum(sizes)))
        flat = torch.tensor(next(endless), dtype=tensors[0].dtype)
        return [part.view(t.shape) for part, t in zip(flat.split(sizes), tensors, strict=True)]

    monkeypatch.setattr(curvature, "signs_like", signs_like)
    monkeypatch.setattr(unit_statistics, "signs_like", signs_like)
