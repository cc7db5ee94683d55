"""Models to train, and every method of this folder's first half."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparseprune.training import (
    L1,
    L2,
    GroupLasso,
    Lobster,
    Method,
    SensitivityDecay,
    Serene,
    Slimming,
)

METHODS: dict[str, Callable[[], Method]] = {
    "l1": lambda: L1(1e-2),
    "l1-proximal": lambda: L1(1e-1, proximal=True),
    "l2": lambda: L2(1e-2),
    "l2-proximal": lambda: L2(1e-1, proximal=True),
    "group": lambda: GroupLasso(1e-2, "channel"),
    "group-proximal": lambda: GroupLasso(1e-1, "row", proximal=True),
    "lobster": lambda: Lobster(0.1),
    "lobster-rescaled": lambda: Lobster(0.1, rescaled=True),
    "sensitivity": lambda: SensitivityDecay(0.1),
    "serene-full": lambda: Serene(0.1),
    "serene-lower": lambda: Serene(0.1, "lower_bound"),
    "serene-local": lambda: Serene(0.1, "local"),
    "slimming": lambda: Slimming(1e-2),
}

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0),
    "fused": lambda p: torch.optim.Adam(p, 0.01, fused=True),
}


def net(seed: int = 0) -> nn.Sequential:
    """Convolution, batch norm, an in-place nonlinearity, two linear layers, one of them tied."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(),
        nn.Linear(16, 6), nn.ReLU(inplace=True), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6),
        nn.ReLU(), nn.Linear(6, 3)
    )  # fmt: skip
    model[8].weight = model[6].weight
    return model


def batch(step: int, samples: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(samples, 2, 4, 4, generator=generator)
    return x, torch.randint(3, (samples,), generator=generator)


def hooks(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """How many hooks there are on modules and optimizer."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    count = sum(len(getattr(m, kind)) for m in model.modules() for kind in kinds)
    of_optimizer = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    return count + sum(map(len, of_optimizer))


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, method: Method, steps: int = 3
) -> None:
    for step in range(steps):
        x, y = batch(step)
        optimizer.zero_grad()
        (nn.functional.cross_entropy(model(x), y) + method.penalty()).backward()
        optimizer.step()
