"""What tests of equivalents share: pruned modules, and what they compute in float64."""

from __future__ import annotations

import copy
from typing import Any

import torch
from problems import sparse_weight
from torch import Tensor, nn


def zeroed(model: nn.Module, density: float = 0.2) -> nn.Module:
    """Every weight mostly zeros; in eval mode."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                scale = (density * parameter[0].numel()) ** -0.5
                parameter.copy_(sparse_weight(tuple(parameter.shape), density, generator) * scale)
            else:
                parameter.normal_(generator=generator)
    return model.eval()


def doubled(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def in_double(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        twin = copy.deepcopy(module).double()
        return twin(*map(doubled, args), **{n: doubled(v) for n, v in kwargs.items()})


def close(got: Any, expected: Any) -> None:
    for mine, its in zip(got, expected, strict=True):
        assert (mine is None) == (its is None)
        if its is not None:
            torch.testing.assert_close(mine, its.float(), rtol=1e-4, atol=1e-5)
