"""Run by test_triton.py under TRITON_INTERPRET=1: the csr kernels against dense."""

from __future__ import annotations

import torch
from problems import CONV, LINEAR, TOLERANCE, dense_conv2d, dense_linear

from sparseprune.formats import Csr
from sparseprune.triton import csr

MOST_PROGRAMS = {"linear": 90, "conv2d": 110}
"""Rows times tiles of tokens above which the interpreter takes long."""


def check_linear() -> int:
    """Also where x is not finite: a pruned weight contributes nothing."""
    count = 0
    for problem in LINEAR:
        x, weight, bias = problem.tensors()
        if problem.rows * -(-x.shape[:-1].numel() // 16) > MOST_PROGRAMS["linear"]:
            continue
        packed = Csr("rows").pack(weight)
        sizes = packed.rows, packed.cols, packed.block
        y = csr.linear(x, *packed.packed(), bias, *sizes, -0.5, None)
        expected = dense_linear(x, weight, bias).clamp(min=-0.5)
        torch.testing.assert_close(y.double(), expected, **TOLERANCE, equal_nan=True)
        count += 1
    return count


def check_conv2d() -> int:
    count = 0
    for problem in CONV:
        x, weight, bias = problem.tensors()
        if problem.rows * -(-x[:, 0].numel() // 16) > MOST_PROGRAMS["conv2d"]:
            continue
        packed = Csr("rows").pack(weight.flatten(1), problem.groups)
        *window, groups = problem.window
        sizes = packed.rows, packed.cols, packed.block
        y = csr.conv2d(
            x, *packed.packed(), bias, *sizes,
            list(problem.kernel), *map(list, window), groups, None, 1.5,
        )  # fmt: skip
        expected = dense_conv2d(x, weight, bias, *problem.window).clamp(max=1.5)
        torch.testing.assert_close(y.double(), expected, **TOLERANCE, equal_nan=True)
        count += 1
    return count


def check_half() -> int:
    weight = (torch.randn(40, 70) * (torch.rand(40, 70) < 0.5)).half()
    packed = Csr("rows").pack(weight)
    x, bias = torch.randn(3, 70).half(), torch.randn(40).half()
    y = csr.linear(x, *packed.packed(), bias, 40, 70, 0)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.double(), dense_linear(x, weight, bias), rtol=4e-3, atol=4e-2)
    return 1


if __name__ == "__main__":
    torch.manual_seed(0)
    print(check_linear(), check_conv2d(), check_half())
