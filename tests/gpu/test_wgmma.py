"""64 x 64 blocks by wgmma and the copy unit (TMA) against the float64 reference.

Problems that the copy unit does not take (few tokens, columns or channels that are no whole pieces)
are among them: those of the backend "cuda" compute them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from on_device import (
    DEVICE,
    assert_close,
    magnitudes_conv2d,
    magnitudes_linear,
    tensors,
    there,
)
from problems import ConvProblem, LinearProblem, dense_conv2d, dense_linear
from torch import Tensor, nn

from sparseprune import convert, prune
from sparseprune.formats import Block, BlockWeight

SIDE = 64
BACKEND = "wgmma" if DEVICE.type == "cuda" else "auto"
pytestmark = pytest.mark.skipif(
    DEVICE.type == "cuda" and torch.cuda.get_device_capability(DEVICE) != (9, 0),
    reason="wgmma is an instruction of compute capability 9.0",
)

HALF = (torch.float16, torch.bfloat16)
LINEARS = (
    *(LinearProblem(f"tokens_{n}", rows=192, cols=512, batch=(n,))
      for n in (0, 1, 64, 65, 127, 128, 129, 256, 300, 1024)),
    *(LinearProblem(f"{rows}_{cols}", rows=rows, cols=cols, batch=(150,))
      for rows in (1, 63, 64, 65, 200) for cols in (8, 64, 72, 100, 1000)),
    LinearProblem("many_tiles", rows=4096, cols=1024, batch=(2100,)),
    LinearProblem("few_blocks", rows=4096, cols=1024, batch=(2100,), density=0.02),
    *(LinearProblem(kind, rows=128, cols=256, batch=(130,), input=kind)
      for kind in ("noncontiguous", "transposed", "offset")),
    LinearProblem("no_bias", rows=128, cols=256, batch=(130,), bias=False),
    LinearProblem("all_zero", rows=128, cols=256, batch=(130,), density=0),
)  # fmt: skip
CONVS = (
    ConvProblem("3x3", rows=192, channels=128),
    ConvProblem("odd", rows=130, channels=64, size=(7, 9), batch=3),
    ConvProblem("stride_2", rows=64, channels=64, size=(15, 8), stride=(2, 1), padding=(0, 1)),
    ConvProblem("uneven", rows=64, channels=64, kernel=(2, 3), padding=(2, 0), dilation=(1, 2)),
    ConvProblem("uneven_turned", rows=64, channels=64, kernel=(3, 1), padding=(0, 2)),
    ConvProblem("1x1", rows=256, channels=64, kernel=(1, 1), padding=(0, 0)),
    ConvProblem("5x5", rows=64, channels=64, kernel=(5, 5), padding=(2, 2), size=(6, 6)),
    ConvProblem("groups_2", rows=128, channels=256, groups=2),
    ConvProblem("narrow", rows=64, channels=32),
    ConvProblem("batch_32", rows=256, channels=256, size=(28, 28), batch=32, density=0.1),
)


def blocky(weight: Tensor, name: str) -> Tensor:
    """The weight [rows, columns of the packing], without half of its blocks of 64 x 64."""
    generator = torch.Generator().manual_seed(len(name))
    tall, wide = (-(-side // SIDE) for side in weight.shape)
    kept = torch.rand(tall, wide, generator=generator) < 0.5
    grid = kept.repeat_interleave(SIDE, 0).repeat_interleave(SIDE, 1)
    return weight * grid[: weight.shape[0], : weight.shape[1]]


def by_wgmma(weight: Tensor, taps: int = 1, groups: int = 1) -> BlockWeight:
    return Block(SIDE, SIDE, taps).pack(weight.to(DEVICE), groups).use(BACKEND)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("problem", LINEARS, ids=str)
def test_linear(problem: LinearProblem, dtype: torch.dtype) -> None:
    x, weight, bias = tensors(problem, dtype)
    weight = blocky(weight, problem.name)
    packed = by_wgmma(weight)
    expected = dense_linear(x, weight, bias)
    scale = magnitudes_linear(x, weight, bias)
    x, bias = there(x, bias)
    y = packed.linear(x, bias)
    assert y.dtype == dtype
    assert_close(y, expected, scale)
    assert torch.equal(y, packed.linear(x, bias)), "other bits"
    assert torch.equal(packed.linear(x, bias, (-0.5, 0.75)), y.clamp(-0.5, 0.75))


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("problem", CONVS, ids=str)
def test_conv2d(problem: ConvProblem, layout: Any, dtype: torch.dtype) -> None:
    x, weight, bias = tensors(problem, dtype)
    taps = weight[0, 0].numel()
    turned = weight.permute(0, 2, 3, 1)  # taps first, as blocks lie
    weight = blocky(turned.flatten(1), problem.name).view(turned.shape).permute(0, 3, 1, 2)
    packed = by_wgmma(weight.flatten(1), taps, problem.groups)
    expected = dense_conv2d(x, weight, bias, *problem.window)
    scale = magnitudes_conv2d(x, weight, bias, problem)
    x, bias = there(x, bias)
    y = packed.conv2d(x.to(memory_format=layout), bias, problem.kernel, *problem.window)
    assert_close(y, expected, scale)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="graphs are CUDA's")
def test_captured_in_a_graph() -> None:
    weight = blocky(torch.randn(256, 512), "graph").half()
    packed, x = by_wgmma(weight), torch.randn(200, 512).half()
    held = torch.zeros_like(x, device=DEVICE)
    packed.linear(held, None)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = packed.linear(held, None)
    held.copy_(x)
    graph.replay()
    torch.cuda.synchronize()
    assert_close(y, dense_linear(x, weight, None), magnitudes_linear(x, weight, None))


@pytest.mark.parametrize("backend", ["auto", BACKEND])
def test_convert(backend: str) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(1024, 2048), nn.ReLU(), nn.Linear(2048, 1024))
    prune(model, 0.8, pattern=f"block({SIDE},{SIDE})", scope="local")
    model, x = model.to(DEVICE, torch.float16).eval(), torch.randn(512, 1024).to(DEVICE).half()
    fast: Any = convert(model, x, backend=backend, format="block", keep_dense="never")
    with torch.inference_mode():
        expected, got = model(x).double(), fast(x).double()
    assert float((got - expected).abs().max()) <= 4e-2 * float(expected.abs().max())
    if backend == "wgmma":
        assert all("wgmma" in row.kernel for row in fast.report.rows), str(fast.report)
