"""2:4 by the real cuSPARSELt against the float64 reference; tests/test_cusparselt.py has a fake."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from on_device import DEVICE, assert_close, exact_linear, lying_alike, tensors
from problems import LinearProblem, dense_linear, fitting
from torch import Tensor, nn

from sparseprune import backends, convert, load, prune, save
from sparseprune.formats import Nm, NmWeight

pytestmark = pytest.mark.skipif(
    DEVICE.type != "cuda" or backends.CUSPARSELT.missing is not None,
    reason=f"no cuSPARSELt: {backends.CUSPARSELT.missing or 'tests run on the CPU'}",
)

HALF = (torch.float16, torch.bfloat16)
PROBLEMS = (
    *(LinearProblem(f"tokens_{n}", rows=64, cols=192, batch=(n,))
      for n in (0, 1, 7, 8, 9, 16, 17, 63, 64, 65, 300, 1024)),
    *(LinearProblem(f"{rows}_{cols}", rows=rows, cols=cols, batch=(33,))
      for rows in (16, 48, 272) for cols in (16, 48, 4096)),
    *(LinearProblem(kind, rows=64, cols=192, input=kind)
      for kind in ("noncontiguous", "transposed", "offset")),
    LinearProblem("no_bias", rows=64, cols=192, bias=False),
    LinearProblem("three_dimensions", rows=64, cols=192, batch=(2, 3, 5)),
    LinearProblem("one_vector", rows=64, cols=192, batch=()),
    LinearProblem("full_groups", rows=128, cols=256, density=1),
    LinearProblem("large", rows=2048, cols=2048, batch=(256,), density=1),
)  # fmt: skip


def packed_problem(
    problem: LinearProblem, dtype: torch.dtype
) -> tuple[NmWeight, Tensor, Tensor | None, Tensor]:
    """The weight cut to 2:4 by cuSPARSELt, x and bias on the device, the float64 result."""
    x, weight, bias = tensors(problem, dtype)
    weight = fitting(Nm(2, 4), weight)
    packed = Nm(2, 4).pack(weight.to(DEVICE)).use("cusparselt")
    there = lying_alike(x.to(DEVICE), x)
    return packed, there, None if bias is None else bias.to(DEVICE), dense_linear(x, weight, bias)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_linear(problem: LinearProblem, dtype: torch.dtype) -> None:
    packed, x, bias, expected = packed_problem(problem, dtype)
    y = packed.linear(x, bias)
    assert y.dtype == dtype
    assert_close(y, expected, exact_linear(problem, dtype)[1])
    assert torch.equal(y, packed.linear(x, bias)), "other bits"
    assert torch.equal(packed.linear(x, bias, (-0.5, 0.75)), y.clamp(-0.5, 0.75))


def test_captured_in_a_graph() -> None:
    problem = PROBLEMS[-1]
    packed, x, bias, expected = packed_problem(problem, torch.float16)
    held = torch.zeros_like(x)
    packed.linear(held, bias)  # searches
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = packed.linear(held, bias)
        packed.linear(held[:9], bias)  # of a size that was not searched
    held.copy_(x)
    graph.replay()
    torch.cuda.synchronize()
    assert_close(y, expected, exact_linear(problem, torch.float16)[1])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_the_second_device() -> None:
    packed, x, bias, expected = packed_problem(PROBLEMS[4], torch.float16)
    packed, x = packed.to("cuda:1"), x.to("cuda:1")
    y = packed.linear(x, None if bias is None else bias.to("cuda:1"))
    assert y.device.index == 1 and packed.backend == "cusparselt"
    assert_close(y, expected, exact_linear(PROBLEMS[4], torch.float16)[1])


def test_the_weight_comes_back() -> None:
    packed, *_ = packed_problem(PROBLEMS[-1], torch.float16)
    weight = fitting(Nm(2, 4), tensors(PROBLEMS[-1], torch.float16)[1])
    assert packed.compressed is not None
    least = packed.places.nbytes + packed.compressed.nbytes
    assert packed.nbytes in (least, least + packed.values.nbytes)
    assert torch.equal(packed.unpack().cpu(), weight)
    copied = copy.deepcopy(packed)
    assert copied.compressed is not None and torch.equal(copied.unpack(), packed.unpack())
    with pytest.warns(UserWarning, match="moved from cuda to cpu"):
        copied.cpu()
    assert copied.compressed is None and torch.equal(copied.unpack(), weight)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("backend", ["auto", "cusparselt"])
def test_convert(backend: str, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 64), nn.Linear(64, 10))
    prune(model, 0.5, pattern="2:4", scope="local")
    model, x = model.to(DEVICE, dtype).eval(), torch.randn(64, 512).to(DEVICE, dtype)
    fast: Any = convert(model, x, backend=backend, format="nm", keep_dense="never")
    with torch.inference_mode():
        expected, got = model(x).double(), fast(x).double()
    scale = float(expected.abs().max())
    assert float((got - expected).abs().max()) <= 4e-2 * scale
    kernels = [row.kernel for row in fast.report.rows]
    if backend == "cusparselt":
        assert all("nm/2:4 cusparselt" in kernel for kernel in kernels[:2]), kernels
        assert kernels[2] == "dense" and "multiples of 16" in fast.report.rows[2].reason
    pytest.importorskip("safetensors")
    save(fast, tmp_path / "model")
    again: Any = load(tmp_path / "model")
    assert torch.equal(again[0].weight.unpack(), fast[0].weight.unpack().cpu())
