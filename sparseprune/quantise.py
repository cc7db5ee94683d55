"""Quantisation of weights to integers, in which pruned weights stay exact zeros."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparseprune.errors import bad, bad_type, check_count
from sparseprune.selection import Ignore, prunable_weights

MOST_BITS = 8


@dataclass(frozen=True)
class Quantised:
    """A weight as integers.

    values: int16, of the weight's shape, in [0, 2^bits) or, symmetric, (-2^(bits-1), 2^(bits-1)).
    scale: float32, above 0; zero_point: int16; both of the weight's rank, with one entry per output
        or one in all.
    """

    values: Tensor
    scale: Tensor
    zero_point: Tensor

    def dequantised(self) -> Tensor:
        """w' = scale * (q - zero_point), float32; exact zeros where q is the zero point."""
        return self.scale * (self.values - self.zero_point)


def quantised(
    weight: Tensor, bits: int = MOST_BITS, symmetric: bool = True, per_output: bool = True
) -> Quantised:
    """q = clip(round(w / s) + z): the nearest point of a uniform grid that has 0 on it.

    (Jacob et al., 2018, arXiv:1712.05877, eq. 1.) symmetric: z = 0, s = max |w| / (2^(bits-1) - 1);
    else s = (max(w, 0) - min(w, 0)) / (2^bits - 1), z = round(-min(w, 0) / s). Whole z is what
    keeps zeros zero; small weights may join them. |w - w'| <= s / 2, with rounded z <= s.

    weight: floating point, at least one dimension, the first one outputs. bits: 2 to 8.
    per_output: a grid for each output, else one for all.
    Raises ValueError or TypeError for bits out of range, integers, NaN or infinity.
    """
    check_count("quantised", "bits", bits, least=2)
    if bits > MOST_BITS:
        raise bad("quantised", "bits", f"2 to {MOST_BITS}", bits, "keep more bits as float16")
    if not weight.is_floating_point() or not weight.dim():
        expected, got = "a floating point tensor [outputs, ...]", f"{weight.dtype} {weight.shape}"
        raise bad_type("quantised", "weight", expected, got, "pass the weight itself")
    wide = weight.detach().float()
    if not wide.isfinite().all():
        raise bad("quantised", "weight", "finite", "NaN or infinity", "train it again")
    rows = wide.flatten(1) if per_output and wide.dim() > 1 else wide.reshape(1, -1)
    low = rows.clamp(max=0).amin(1) if rows.numel() else rows.new_zeros(len(rows))
    high = rows.clamp(min=0).amax(1) if rows.numel() else rows.new_zeros(len(rows))
    steps = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
    span = torch.maximum(high, -low) if symmetric else high - low
    scale = torch.where(span > 0, span / steps, 1).clamp(min=torch.finfo(torch.float32).tiny)
    zero_point = torch.zeros_like(scale) if symmetric else (-low / scale).round()
    each = (-1, *(1,) * (wide.dim() - 1))
    scale, zero_point = scale.reshape(each), zero_point.reshape(each)
    values = ((wide / scale).round() + zero_point).clamp(-steps if symmetric else 0, steps)
    return Quantised(values.to(torch.int16), scale, zero_point.to(torch.int16))


@torch.no_grad()
def quantise_(
    model: nn.Module,
    bits: int = MOST_BITS,
    symmetric: bool = True,
    per_output: bool = True,
    ignore: Ignore = (),
) -> dict[str, Quantised]:
    """Rounds the prunable weights of `model` to integer grids, in place; returns the integers.

    Weights keep their dtype and become what the integers mean; zeros stay zero, so masks hold.
    Biases stay. Arguments as for `quantised` and, `ignore`, as for `prune`.
    Raises ValueError or TypeError before anything changes.
    """
    weights = prunable_weights(model, ignore, "quantise_")
    found = {name: quantised(w, bits, symmetric, per_output) for name, w in weights.items()}
    for name, weight in weights.items():
        weight.copy_(found[name].dequantised())
    return found
