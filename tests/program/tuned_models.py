"""Planned networks to tune, and what is asked of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from program_models import planned, sparsify
from torch import Tensor, nn

from sparseprune.formats import CsrWeight
from sparseprune.program.program import Program
from sparseprune.program.steps import Csr as CsrStep
from sparseprune.program.text import from_text


def mlp(
    widths: tuple[int, ...] = (256, 256, 256, 100), tokens: int = 70, density: float = 0.2
) -> tuple[Any, Tensor]:
    """A planned chain of Linear layers, all packed as csr/groups, and its input."""
    layers: list[nn.Module] = []
    for cols, rows in pairwise(widths):
        layers += [nn.Linear(cols, rows), nn.ReLU()]
    x = torch.randn(tokens, widths[0])
    return planned(sparsify(nn.Sequential(*layers), density), x), x


def mixed() -> tuple[Any, Tensor]:
    """A planned network whose first convolution is dense: the program packs it."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 7, padding=3), nn.ReLU(), nn.Conv2d(16, 132, 3), nn.ReLU(),
        nn.Conv2d(132, 8, 3, stride=2), nn.Flatten(), nn.Linear(8 * 25, 40),
    )  # fmt: skip
    x = torch.randn(5, 3, 13, 13)
    return planned(sparsify(model, keep=("0",)), x), x


def weights(model: nn.Module) -> dict[str, CsrWeight]:
    return {n: m for n, m in model.named_modules() if isinstance(m, CsrWeight)}


def names(model: nn.Module) -> set[str]:
    return {weight.format.name for weight in weights(model).values()}


def assert_consistent(model: nn.Module) -> None:
    """Steps say what their weights are."""
    for program in (m for m in model.modules() if isinstance(m, Program)):
        for step in from_text(program.text):
            if isinstance(step, CsrStep):
                weight = program.weight_of(step)
                held = [t for _, _, t in program.held()[step.tensors : step.tensors + 4]]
                assert step.block == weight.block
                assert all(a is b for a, b in zip(held, weight.packed(), strict=True))


def prefer(format: str) -> Callable[[str, str], float]:
    return lambda key, name: 0.5 if name.startswith(format) else 1.0
