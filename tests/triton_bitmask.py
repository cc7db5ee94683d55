"""Run by test_triton.py under TRITON_INTERPRET=1: the bitmask kernel against dense."""

from __future__ import annotations

import torch
from problems import LINEAR, TOLERANCE, dense_linear

from sparseprune.formats import Bitmask, BitmaskWeight
from sparseprune.triton import bitmask

MOST_TILES = 40
"""Tiles of weights times tiles of tokens above which the interpreter takes long."""


def slow(packed: BitmaskWeight, tokens: int) -> bool:
    return -(-packed.rows // 16) * -(-packed.cols // 64) * -(-tokens // 16) > MOST_TILES


def check_linear() -> int:
    count = 0
    for problem in LINEAR:
        x, weight, bias = problem.tensors()
        packed = Bitmask().pack(weight)
        if slow(packed, x.shape[:-1].numel()) or problem.input == "nonfinite":
            continue
        y = bitmask.linear(x, *packed.packed(), bias, packed.rows, packed.cols, -0.5, None)
        expected = dense_linear(x, weight, bias).clamp(min=-0.5)
        torch.testing.assert_close(y.double(), expected, **TOLERANCE)
        count += 1
    return count


def check_all_bits() -> int:
    """Columns with every bit, with the highest alone, with none; masks that lie off by a column."""
    weight = torch.ones(128, 70)
    weight[:63, 3], weight[:, 4], weight[64:, 5:9] = 0, 0, 0
    packed, x = Bitmask().pack(weight), torch.randn(2, 70)
    values, masks, starts = packed.packed()
    room = torch.zeros(masks.numel() + 1, dtype=torch.uint8)
    room[1:] = masks.flatten()
    shifted = room[1:].view(masks.shape)
    y = bitmask.linear(x, values, shifted, starts, None, 128, 70)
    torch.testing.assert_close(y.double(), dense_linear(x, weight, None), **TOLERANCE)
    return 1


def check_half() -> int:
    weight = (torch.randn(40, 70) * (torch.rand(40, 70) < 0.5)).half()
    packed = Bitmask().pack(weight)
    x, bias = torch.randn(9, 70).half(), torch.randn(40).half()
    y = bitmask.linear(x, *packed.packed(), bias, 40, 70)
    expected = dense_linear(x, weight, bias)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.double(), expected, rtol=4e-3, atol=4e-2)
    return 1


if __name__ == "__main__":
    torch.manual_seed(0)
    print(check_linear(), check_all_bits(), check_half())
