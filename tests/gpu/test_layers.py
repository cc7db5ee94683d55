"""Every format, dtype, backend and edge on a device against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from on_device import (
    CONVS,
    DEVICE,
    HELD,
    LINEARS,
    assert_close,
    backends_of,
    exact_conv2d,
    exact_linear,
    stored,
    tensors,
    there,
)
from problems import ConvProblem, LinearProblem, dense_conv2d, dense_linear, fitting

from sparseprune.formats import Format

every_format = pytest.mark.parametrize(
    ("fmt", "dtype"), HELD, ids=lambda v: v.name if isinstance(v, Format) else str(v)[6:]
)


@every_format
@pytest.mark.parametrize("problem", LINEARS, ids=str)
def test_linear(fmt: Format, dtype: torch.dtype, problem: LinearProblem) -> None:
    x, weight, bias = tensors(problem, dtype)
    weight = fitting(fmt, weight)
    fmt = fmt.settled(weight)
    packed = fmt.pack(weight.to(DEVICE))
    expected, scale = exact_linear(problem, dtype)
    if (places := stored(packed)) is not None:
        expected = dense_linear(x, weight, bias, places)
    x, bias = there(x, bias)
    for backend in backends_of(fmt, problem.name):
        y = packed.use(backend).linear(x, bias)
        assert y.dtype == dtype and y.device.type == DEVICE.type
        assert_close(y, expected, scale)
        if backend == "reference":
            continue
        assert torch.equal(y.nan_to_num(), packed.linear(x, bias).nan_to_num()), "other bits"
        clamped = packed.linear(x, bias, (-0.5, 0.75))
        assert torch.equal(clamped.nan_to_num(), y.clamp(-0.5, 0.75).nan_to_num())


@every_format
@pytest.mark.parametrize("problem", CONVS, ids=str)
def test_conv2d(fmt: Format, dtype: torch.dtype, problem: ConvProblem) -> None:
    x, weight, bias = tensors(problem, dtype)
    weight = fitting(fmt, weight, problem.groups)
    matrix = weight.flatten(1)
    half_csr = fmt.stem == "csr" and dtype != torch.float32  # for Linear layers alone
    if half_csr or "Conv2d" not in fmt.serves or fmt.refuses(matrix, problem.groups):
        pytest.skip("the format does not hold it")
    fmt = fmt.settled(matrix, problem.groups)
    packed = fmt.pack(matrix.to(DEVICE), problem.groups)
    expected, scale = exact_conv2d(problem, dtype)
    if (places := stored(packed)) is not None:
        expected = dense_conv2d(x, weight, bias, *problem.window, stored=places.view(weight.shape))
    x, bias = there(x, bias)
    for backend in backends_of(fmt, problem.name):
        y = packed.use(backend).conv2d(x, bias, problem.kernel, *problem.window)
        assert y.dtype == dtype
        assert_close(y, expected, scale)
