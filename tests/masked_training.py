"""A small network, its training, and the check that its masks hold."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from sparseprune.masks import Masks


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 6, generator=generator)
    return x, torch.randint(3, (16,), generator=generator)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def holds(masks: Masks, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> bool:
    """Masked weights, and the optimizer's state of them, are exactly +0.0; kept ones live."""
    for name, mask in masks.items():
        parameter = dict(model.named_parameters(remove_duplicate=False))[name]
        state = optimizer.state[parameter].values() if optimizer else ()
        for value in [parameter, *(v for v in state if v.shape == mask.shape)]:
            dropped = value.detach()[~mask]
            if dropped.any() or torch.signbit(dropped).any():
                return False
        if not parameter.detach()[mask].any():
            return False
    return True


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
}
