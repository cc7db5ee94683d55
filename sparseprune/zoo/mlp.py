"""A plain multilayer perceptron: the simplest network whose layers are large."""

from __future__ import annotations

from torch import nn

from sparseprune.zoo.init import he_


def mlp(width: int = 1024, depth: int = 4) -> nn.Module:
    """`depth` times Linear(width, width) and ReLU; [N, width] -> [N, width]."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return he_(nn.Sequential(*layers))
