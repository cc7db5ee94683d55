"""What goes into each layer: norms and products of the entries that its weights multiply."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseprune.criteria.statistics.base import Layer, Observer


def patches(module: nn.Module, x: Tensor) -> Tensor:
    """What each output position multiplies with the weight: [samples, positions, groups, k].

    k follows `weight.flatten(1)`: output = patches @ weight.flatten(1).T (per group) + bias. For
    a linear layer k = in_features, and all leading dimensions but the first are positions.
    """
    if isinstance(module, nn.Linear):
        x = x.reshape(1, 1, -1) if x.dim() == 1 else x.reshape(x.shape[0], -1, x.shape[-1])
        return x.unsqueeze(2)
    size, step, gap = (
        tuple(map(int, getattr(module, key))) for key in ("kernel_size", "stride", "dilation")
    )
    if x.dim() == len(size) + 1:
        x = x.unsqueeze(0)
    around = module._reversed_padding_repeated_twice
    mode = "constant" if module.padding_mode == "zeros" else str(module.padding_mode)
    x = F.pad(x, around, mode=mode)  # type: ignore[arg-type]
    for axis, (length, stride, dilation) in enumerate(zip(size, step, gap, strict=True), start=2):
        x = x.unfold(axis, dilation * (length - 1) + 1, stride)[..., ::dilation]
    spatial = len(size)  # x: [samples, in, *positions, *kernel]
    samples, positions = x.shape[0], x.shape[2 : 2 + spatial]
    x = x.unflatten(1, (int(module.groups), -1))  # type: ignore[arg-type]
    order = (0, *range(3, 3 + spatial), 1, 2, *range(3 + spatial, 3 + 2 * spatial))
    return x.permute(order).reshape(samples, positions.numel(), int(module.groups), -1)  # type: ignore[arg-type]


class InputNorm(Observer):
    """||X_j||_2 over all samples and positions, X_j what weight column j multiplies: [groups, k].

    k as in `patches`: in_features, or in_channels / groups * kernel size.
    """

    name = "input_norm"

    def on_input(self, layer: Layer, module: nn.Module, x: Tensor) -> None:
        """Adds x^2."""
        self.add(layer.name, "squares", patches(module, x.to(layer.dtype)).square().sum((0, 1)))

    def result(self, layer: Layer, sums: Mapping[str, Tensor]) -> Tensor:
        """sqrt(sum of squares)"""
        return sums["squares"].sqrt()


class InputGram(Observer):
    """X^T X / n over all n samples and positions: [groups, k, k], k as in `patches`.

    The Hessian, by any row of the weight, of half the mean squared change of the layer's output.
    Costs k^2 numbers per layer and group.
    """

    name = "input_gram"

    def on_input(self, layer: Layer, module: nn.Module, x: Tensor) -> None:
        """Adds x x^T of every position."""
        rows = patches(module, x.to(layer.dtype)).flatten(0, 1).transpose(0, 1)  # [groups, n, k]
        self.add(layer.name, "products", torch.bmm(rows.mT, rows))
        self.add(layer.name, "count", rows.shape[1])

    def result(self, layer: Layer, sums: Mapping[str, Tensor]) -> Tensor:
        """Sum of products / count."""
        return sums["products"] / sums["count"].to(sums["products"])
