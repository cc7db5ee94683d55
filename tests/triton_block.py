"""Run by test_triton.py under TRITON_INTERPRET=1: the block kernels against the dense reference."""

from __future__ import annotations

import torch
from problems import CONV, LINEAR, TOLERANCE, dense_conv2d, dense_linear

from sparseprune.formats import Block, BlockWeight
from sparseprune.triton import block

SIDES = ((16, 16), (32, 32), (8, 24))
MOST_BLOCKS = 60
"""Stored blocks times tiles of tokens above which the interpreter takes long."""


def slow(packed: BlockWeight, tokens: int) -> bool:
    return packed.values.shape[0] * -(-tokens // 16) > MOST_BLOCKS


def check_linear() -> int:
    count = 0
    for i, problem in enumerate(LINEAR):
        x, weight, bias = problem.tensors()
        packed = Block(*SIDES[i % len(SIDES)]).pack(weight)
        if slow(packed, x.shape[:-1].numel()) or problem.input == "nonfinite":
            continue
        y = block.linear(x, *packed.packed(), bias, packed.rows, packed.cols, -0.5, None)
        expected = dense_linear(x, weight, bias).clamp(min=-0.5)
        torch.testing.assert_close(y.double(), expected, **TOLERANCE)
        count += 1
    return count


def check_conv2d() -> int:
    count = 0
    for problem in CONV:
        x, weight, bias = problem.tensors()
        taps = problem.kernel[0] * problem.kernel[1]
        packed = Block(taps=taps).pack(weight.flatten(1), problem.groups)
        if slow(packed, x[:, 0].numel()) or problem.input == "nonfinite":
            continue
        *window, groups = problem.window
        y = block.conv2d(
            x, *packed.packed(), bias, packed.rows, packed.cols, packed.taps,
            list(problem.kernel), *map(list, window), groups, None, 1.5,
        )  # fmt: skip
        expected = dense_conv2d(x, weight, bias, *problem.window).clamp(max=1.5)
        torch.testing.assert_close(y.double(), expected, **TOLERANCE)
        count += 1
    return count


def check_half() -> int:
    weight = torch.randn(40, 70) * (torch.rand(40, 70) < 0.5)
    packed = Block(16, 16).pack(weight.half())
    x, bias = torch.randn(9, 70).half(), torch.randn(40).half()
    y = block.linear(x, *packed.packed(), bias, 40, 70)
    expected = dense_linear(x, weight.half(), bias)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.double(), expected, rtol=4e-3, atol=4e-2)
    return 1


if __name__ == "__main__":
    torch.manual_seed(0)
    print(check_linear(), check_conv2d(), check_half())
