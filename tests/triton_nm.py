"""Run by test_triton.py under TRITON_INTERPRET=1: the nm kernels against the dense reference."""

from __future__ import annotations

import torch
from problems import CONV, LINEAR, TOLERANCE, dense_conv2d, dense_linear, fitting

from sparseprune.formats import Nm, NmWeight
from sparseprune.triton import nm

RATIOS = (Nm(2, 4), Nm(1, 4), Nm(5, 8), Nm(2, 4), Nm(2, 3))
MOST_TILES = {"linear": 8, "conv2d": 30}
"""Tiles of weights times tiles of tokens above which the interpreter takes long."""


def slow(kind: str, packed: NmWeight, tokens: int, groups: int = 1) -> bool:
    strips = groups * -(-(packed.rows // groups) // 32)
    return strips * -(-packed.cols // 64) * -(-tokens // 16) > MOST_TILES[kind]


def check_linear() -> int:
    count = 0
    for i, problem in enumerate(LINEAR):
        x, weight, bias = problem.tensors()
        ratio = RATIOS[i % len(RATIOS)]
        weight = fitting(ratio, weight)
        packed = ratio.pack(weight)
        if slow("linear", packed, x.shape[:-1].numel()) or problem.input == "nonfinite":
            continue
        sizes = packed.rows, packed.cols, packed.n, packed.m
        y = nm.linear(x, *packed.packed(), bias, *sizes, -0.5, None)
        expected = dense_linear(x, weight, bias).clamp(min=-0.5)
        torch.testing.assert_close(y.double(), expected, **TOLERANCE)
        count += 1
    return count


def check_conv2d() -> int:
    count = 0
    for i, problem in enumerate(CONV):
        x, weight, bias = problem.tensors()
        taps = problem.kernel[0] * problem.kernel[1]
        ratio = Nm(2, 4, taps)
        if i % 2 and weight.shape[1] % 4 == 0:  # channels alone in the groups
            kept = fitting(Nm(2, 4), weight.movedim(1, -1).contiguous())
            weight = kept.movedim(-1, 1).contiguous()
        else:
            weight = fitting(Nm(2, 4), weight)
        packed = ratio.pack(weight.flatten(1), problem.groups)
        large = slow("conv2d", packed, x[:, 0].numel(), problem.groups)
        if large or problem.input == "nonfinite":
            continue
        *window, groups = problem.window
        sizes = packed.rows, packed.cols, packed.n, packed.m, packed.taps
        y = nm.conv2d(
            x, *packed.packed(), bias, *sizes,
            list(problem.kernel), *map(list, window), groups, None, 1.5,
        )  # fmt: skip
        expected = dense_conv2d(x, weight, bias, *problem.window).clamp(max=1.5)
        torch.testing.assert_close(y.double(), expected, **TOLERANCE)
        count += 1
    return count


def check_half() -> int:
    weight = fitting(Nm(2, 4), torch.randn(40, 70)).half()
    packed = Nm(2, 4).pack(weight)
    x, bias = torch.randn(9, 70).half(), torch.randn(40).half()
    y = nm.linear(x, *packed.packed(), bias, 40, 70, 2, 4)
    expected = dense_linear(x, weight, bias)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.double(), expected, rtol=4e-3, atol=4e-2)
    return 1


if __name__ == "__main__":
    torch.manual_seed(0)
    print(check_linear(), check_conv2d(), check_half())
