"""Channels side by side, chosen or dealt, and pixels repeated: what moves values alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sparseprune.program.builder import Builder, Call, Lowered
from sparseprune.program.steps import Cat, Channels, Triple, Upsample


def cat(call: Call, tensors: Any, dim: int = 0) -> Lowered | None:
    """The channels of several images."""
    if not isinstance(tensors, (tuple, list)) or len(tensors) < 2:
        return None
    rank = call.rank(tensors[0])
    if rank not in (3, 4, 5) or type(dim) is not int or dim % rank != 1:
        return None

    def emit(b: Builder, x: list[int]) -> int:
        joined = x[0]
        for value in x[1:]:
            joined = b.add(Cat, x=joined, y=value)
        return joined

    return Lowered(tuple(tensors), emit, "image", "image")


def narrow(call: Call, input: Any, dim: int, start: Any, length: Any) -> Lowered | None:
    """Channels that follow each other."""
    rank, channels = call.rank(input), _channels(call, input)
    if channels is None or type(dim) is not int or dim % rank != 1:
        return None
    if type(start) is not int or type(length) is not int or length < 1:
        return None
    return _chosen(input, 1, start % channels, length)


def channel_slice(call: Call, input: Any, index: Any) -> Lowered | None:
    """x[:, a:b]"""
    channels = _channels(call, input)
    if channels is None or not isinstance(index, tuple) or len(index) < 2:
        return None
    if not all(isinstance(i, slice) for i in index):
        return None
    bounds = (index[1].start, index[1].stop)
    if not all(b is None or type(b) is int for b in bounds) or index[1].step not in (None, 1):
        return None
    if any(i != slice(None) for i in (index[0], *index[2:])):
        return None
    begin, end, _ = index[1].indices(channels)
    return _chosen(input, 1, begin, end - begin) if end > begin else None


def channel_shuffle(call: Call, input: Any, groups: int) -> Lowered | None:
    """Every group's channels dealt in turn."""
    channels = _channels(call, input)
    if channels is None or channels % groups:
        return None
    return _chosen(input, groups, 0, channels)


def shuffle_module(call: Call, m: nn.ChannelShuffle, input: Any) -> Lowered | None:
    """The same as a layer."""
    return channel_shuffle(call, input, m.groups)


def _channels(call: Call, x: Any) -> int | None:
    """Those of an image, if they are as many for inputs of every size."""
    shapes = call.shapes(x)
    if shapes is None or len(shapes[0]) not in (3, 4, 5):
        return None
    found = {shape[1] for shape in shapes}
    return found.pop() if len(found) == 1 else None


def _chosen(x: Any, groups: int, begin: int, count: int) -> Lowered:
    return Lowered((x,), lambda b, v: b.add(Channels, x=v[0], groups=groups, begin=begin,
                   count=count), "image", "image")  # fmt: skip


def upsample(
    call: Call,
    input: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: Any = None,
    recompute_scale_factor: Any = None,
    antialias: bool = False,
) -> Lowered | None:
    """The nearest pixel, where sizes grow by whole numbers."""
    rank = call.rank(input)
    if rank not in (3, 4, 5) or size is not None or mode not in ("nearest", "nearest-exact"):
        return None
    given = (
        scale_factor if isinstance(scale_factor, (tuple, list)) else (scale_factor,) * (rank - 2)
    )
    if len(given) != rank - 2 or not all(_whole(n) for n in given):
        return None
    depth, height, width = (1,) * (5 - rank) + tuple(int(n) for n in given)
    times: Triple = (depth, height, width)
    return Lowered((input,), lambda b, x: b.add(Upsample, x=x[0], times=times), "image", "image")


def _whole(factor: Any) -> bool:
    """Whether torch, which multiplies positions by 1 / factor in float32, finds the same pixels."""
    if type(factor) not in (int, float) or factor < 1 or factor != int(factor):
        return False
    return bool(torch.tensor(1 / factor, dtype=torch.float32).item() >= 1 / factor)


def upsample_module(call: Call, m: nn.Upsample, input: Any) -> Lowered | None:
    """The same as a layer."""
    return upsample(call, input, m.size, m.scale_factor, m.mode)
