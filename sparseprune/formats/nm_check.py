"""Whether the buffers of an NmWeight can be trusted: kernels read where they point."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseprune.errors import bad
from sparseprune.formats.base import DTYPES, PackedWeight
from sparseprune.formats.nm import MAX_M, NmWeight, padded_groups, place_bits, split_places

MAX_WEIGHTS = 2**31


def check(weight: PackedWeight) -> None:
    """Everything that a kernel relies on, read from the buffers themselves.

    Raises:
        ValueError: a buffer that would make a kernel leave its memory, or is not what pack makes.
    """
    if not isinstance(weight, NmWeight):
        raise bad("nm_check", "weight", "an NmWeight", type(weight).__name__, "pack it again")
    reason = _wrong_sizes(weight) or _wrong_types(weight) or _wrong_places(weight)
    if reason is not None:
        raise bad("nm_check", "packed weight", "as made by Nm.pack", reason, "pack it again")


def check_groups(weight: PackedWeight, groups: int) -> None:
    """What a convolution of that many channel groups needs of its packed weight.

    Raises:
        ValueError: rows that do not divide into the groups.
    """
    if weight.rows % groups:
        raise bad("nm_check", "rows", f"divisible by {groups} groups", weight.rows, "pack it again")


def _wrong_sizes(weight: NmWeight) -> str | None:
    for name in ("rows", "cols", "n", "m", "taps"):
        size = getattr(weight, name)
        if type(size) is not int or not 0 <= size < MAX_WEIGHTS:
            return f"{name} = {size!r}"
    if weight.rows * weight.cols >= MAX_WEIGHTS:
        return f"{weight.rows} x {weight.cols}, too large for 32-bit counts"
    if not 1 <= weight.n < weight.m <= MAX_M:
        return f"{weight.n} of {weight.m}"
    if weight.taps < 1 or weight.cols % weight.taps:
        return f"{weight.cols} columns of {weight.taps} taps"
    return None


def _wrong_types(weight: NmWeight) -> str | None:
    if weight.values.dtype not in DTYPES:
        return f"values of {weight.values.dtype}"
    wide = padded_groups(weight.cols, weight.m) * weight.n
    expected = {
        "values": (weight.values.dtype, (weight.rows, wide)),
        "places": (torch.uint8, (weight.rows, wide * place_bits(weight.m) // 8)),
    }
    for name, (dtype, sizes) in expected.items():
        buffer: Tensor = getattr(weight, name)
        if buffer.dtype != dtype or tuple(buffer.shape) != sizes or not buffer.is_contiguous():
            return f"{name} of {buffer.dtype} {tuple(buffer.shape)}, expected {dtype} {sizes}"
    return None


def _wrong_places(weight: NmWeight) -> str | None:
    if weight.values.numel() == 0:
        return None
    n, m = weight.n, weight.m
    places = split_places(weight.places, m).view(weight.rows, -1, n).int()
    if int(places.max()) >= m:
        return f"places outside of a group of {m}"
    if bool((places.diff(dim=-1) <= 0).any()):
        return "places that do not ascend within their group"
    group = torch.arange(places.shape[1], device=places.device)[:, None]
    beyond = (group * m + places).flatten(1) >= weight.cols
    if bool((weight.values[beyond] != 0).any()):
        return f"values past {weight.cols} columns"
    return None
