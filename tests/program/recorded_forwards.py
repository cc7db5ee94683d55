"""Forwards that look at shapes, and which calls their programs serve."""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Forward = Callable[[Any, Tensor], Any]
Pair = namedtuple("Pair", "first second")


def mlp(m: Any, x: Tensor) -> Tensor:
    return m.second(F.gelu(m.first(x)))


def unpacked(m: Any, x: Tensor) -> Tensor:
    batch, length, features = x.shape
    return mlp(m, x.view(batch * length, features)).view(batch, length, -1)


def heads(m: Any, x: Tensor) -> Tensor:
    x = mlp(m, x)
    parts = x.view(*x.shape[:-1], -1, 4).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(parts, parts, parts)
    return mixed.transpose(1, 2).reshape(*x.shape)


def by_rank(m: Any, x: Tensor) -> Tensor:
    if x.dim() == 4 or x.ndim != 3 or x.dtype != torch.float32 or x.device.type != "cpu":
        raise ValueError("not tokens")
    return mlp(m, x) if isinstance(x, Tensor) and not isinstance(len(x.shape), str) else x


def positions(m: Any, x: Tensor) -> Tensor:
    places = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
    rest = torch.zeros(x.shape[0], x.size(1), 1) + x.new_ones(())
    return mlp(m, x + places[None, :, None] + rest)


def averages(m: Any, x: Tensor) -> Tensor:
    mean = mlp(m, x).sum(1) / x.shape[1]
    return mean * (1 / x.shape[1]) + x.numel() // x.shape[0] + x.shape[1] ** 0.5 - math.ceil(3.5)


def sliced(m: Any, x: Tensor) -> Tensor:
    half = -(-x.shape[1] // 2)
    return mlp(m, x)[:, -half:, : x.shape[-1] - 1] + m.bias[: x.shape[2] - 1]


def outer(m: Any, x: Tensor) -> Tensor:
    scale = 1 / math.sqrt(x.size(-1))
    first, second = mlp(m, x).split(x.shape[-1] // 2, -1)
    return torch.cat([first * scale, second], dim=x.dim() - 1).expand(*x.shape)


def named(m: Any, x: Tensor) -> Any:
    batch, length = x.shape[:2]
    top = mlp(m, x).view(batch, length, -1).max(1)
    return {"pair": Pair(top.values, top.indices), "rest": [None, length, (top[0] + batch,)]}


FREE: dict[str, Forward] = {
    f.__name__: f
    for f in (unpacked, heads, by_rank, positions, averages, sliced, outer, named)
}  # fmt: skip
"""Sizes are only passed on: every batch and length runs as programs."""


def longer(m: Any, x: Tensor) -> Tensor:
    return mlp(m, x) if x.shape[1] > 4 else mlp(m, x) + 1


def one_length(m: Any, x: Tensor) -> Tensor:
    return sum((mlp(m, x)[:, i] for i in range(x.shape[1])), start=torch.zeros(()))


def one_image(m: Any, x: Tensor) -> Tensor:
    return mlp(m, x) if x.shape[0] != 1 else mlp(m, x) - 1


def counted(m: Any, x: Tensor) -> Tensor:
    return mlp(m, x) / len(x)


def squeezed(m: Any, x: Tensor) -> Tensor:
    y = mlp(m, x)
    return y if y[:, :2].squeeze().dim() == 3 else y * 2


def listed(m: Any, x: Tensor) -> Tensor:
    return torch.cat([mlp(m, x)] * (x.shape[1] // 4), 1)


def hashed(m: Any, x: Tensor) -> Tensor:
    return mlp(m, x) * {5: 1, 6: 2}.get(x.shape[1], 3)


def looped(m: Any, x: Tensor) -> Tensor:
    return torch.stack([part.sum(1) for part in mlp(m, x).split(2, 1)], 1)


def iterated(m: Any, x: Tensor) -> Tensor:
    return sum((row.sum(0) for row in mlp(m, x)), start=x.new_zeros(8))


def alike(m: Any, x: Tensor) -> Tensor:
    return mlp(m, x) + (x.shape[:2] == torch.Size([2, 6])) + max(x.shape[1], 6)


GUARDED: dict[str, tuple[Forward, list[tuple[int, int]], list[tuple[int, int]]]] = {
    "longer": (longer, [(2, 6), (5, 6), (1, 9)], [(2, 4), (1, 1)]),
    "one_length": (one_length, [(2, 6), (1, 6)], [(2, 5), (2, 7)]),
    "one_image": (one_image, [(2, 6), (3, 2)], [(1, 6), (1, 7)]),
    "counted": (counted, [(2, 6), (2, 3)], [(1, 6), (3, 6)]),
    "squeezed": (squeezed, [(2, 6), (3, 7)], [(1, 6), (2, 1)]),
    "listed": (listed, [(2, 6), (2, 4), (1, 7)], [(2, 8), (2, 13)]),
    "hashed": (hashed, [(2, 6), (3, 6)], [(2, 5), (2, 7)]),
    "looped": (looped, [(2, 6), (3, 6), (2, 5)], [(2, 4), (1, 1)]),
    "iterated": (iterated, [(2, 6), (2, 1)], [(1, 6), (3, 6)]),
    "alike": (alike, [(2, 6)], [(2, 7), (1, 6), (2, 5)]),
}
"""Forward, the (batch, length) that take its programs, and those that go layer by layer."""


def by_values(m: Any, x: Tensor) -> Tensor:
    return mlp(m, x) if x.sum() > 0 else -mlp(m, x)


def by_mask(m: Any, x: Tensor) -> Tensor:
    return mlp(m, x) if x.shape[0] and torch.all(x > -9) else x


def by_item(m: Any, x: Tensor) -> Tensor:
    return mlp(m, x) * x.shape[0] * int(x[0, 0, 0].item() > 0)


def by_buffer(m: Any, x: Tensor) -> Tensor:
    return mlp(m, x) * x.shape[0] if m.bias.max() > -9 else x


def by_nonzero(m: Any, x: Tensor) -> Tensor:
    return mlp(m, x) + x[x > 0].shape[0]


def by_one_hot(m: Any, x: Tensor) -> Tensor:
    return mlp(m, x) + len(F.one_hot(x.abs().long().flatten()).T)


def by_memory(m: Any, x: Tensor) -> Tensor:
    return mlp(m, x).view(*x.shape) if x.is_contiguous() else x


def by_error(m: Any, x: Tensor) -> Tensor:
    try:
        return mlp(m, x).view(x.shape[0], 7)
    except RuntimeError:
        return mlp(m, x)


def keeps_size(m: Any, x: Tensor) -> Tensor:
    m.seen = x.shape[1]
    return mlp(m, x).view(*x.shape)


def writes_buffer(m: Any, x: Tensor) -> Tensor:
    m.bias.add_(1)
    return mlp(m, x).view(*x.shape)


KEPT: dict[Any, Tensor] = {}


def keeps_outside(m: Any, x: Tensor) -> Tensor:
    length = x.shape[1]
    if length not in KEPT or len(KEPT) > 1:
        KEPT[length] = torch.arange(length, dtype=x.dtype)[:, None]
    return mlp(m, x) + KEPT[length]


def random(m: Any, x: Tensor) -> Tensor:
    return mlp(m, x) + torch.rand(*x.shape)


def other_tensor(m: Any, x: Tensor) -> Tensor:
    return mlp(m, x).view(*x.shape) + m.hidden[0]


REFUSED: dict[str, tuple[Forward, str]] = {
    "by_values": (by_values, "values in a tensor"),
    "by_mask": (by_mask, "values in a tensor"),
    "by_item": (by_item, "values in a tensor"),
    "by_buffer": (by_buffer, "values in a tensor"),
    "by_nonzero": (by_nonzero, "depend on the values"),
    "by_one_hot": (by_one_hot, "depend on the values"),
    "by_memory": (by_memory, "is_contiguous"),
    "by_error": (by_error, "invalid for input of size"),
    "keeps_size": (keeps_size, "'seen'"),
    "writes_buffer": (writes_buffer, "writes into"),
    "keeps_outside": (keeps_outside, "neither parameter nor buffer"),
    "random": (random, "random"),
    "other_tensor": (other_tensor, "neither parameter nor buffer"),
}
