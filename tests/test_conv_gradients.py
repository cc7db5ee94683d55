"""Packed convolutions of 1 and 3 dimensions: gradients, opcheck, compilers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conv_problems import LAYERS, SIZES, dense, every_case, every_dims, silent
from problems import TOLERANCE

from sparseprune import backends
from sparseprune.nn import SparseConv1d


@silent
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("clamp", [(None, None), (-0.5, 0.75)], ids=["plain", "clamped"])
@every_case
def test_gradients_are_dense_ones(
    dims: int, name: str, clamp: tuple[float | None, float | None], backend: str
) -> None:
    if backend == "cpu" and backends.CPU.missing:
        pytest.skip(str(backends.CPU.missing))
    layer = dense(dims, name)
    sparse = LAYERS[dims][1].from_dense(layer)
    sparse.weight.use(backend)
    sparse.clamp = clamp
    x = torch.randn(2, 8, *SIZES[dims], requires_grad=True)
    expected = layer.requires_grad_()(x)
    expected = expected if clamp == (None, None) else expected.clamp(*clamp)
    grad, leaves = torch.randn_like(expected), (x,)
    wanted = (x,) if layer.bias is None else (x, layer.bias)
    if sparse.bias is not None:
        leaves = (x, sparse.bias.requires_grad_())  # type: ignore[assignment]
    out = sparse(x)
    torch.testing.assert_close(out, expected, **TOLERANCE)
    with torch.no_grad():
        assert torch.equal(sparse(x), out), "with and without a gradient the same kernel runs"
    got = torch.autograd.grad(out, leaves, grad)
    torch.testing.assert_close(got, torch.autograd.grad(expected, wanted, grad), **TOLERANCE)


@every_dims
def test_the_bias_alone_may_ask_for_a_gradient(dims: int) -> None:
    layer, x = dense(dims, "plain"), torch.randn(2, 8, *SIZES[dims])
    sparse = LAYERS[dims][1].from_dense(layer)
    out = sparse(x)
    assert not out.requires_grad
    sparse.bias.requires_grad_()  # type: ignore[union-attr]
    sparse(x).sum().backward()
    expected = torch.full((8,), out[:, 0].numel(), dtype=torch.float32)
    assert torch.equal(sparse.bias.grad, expected)  # type: ignore[arg-type, union-attr]


@every_dims
def test_no_images_have_a_gradient(dims: int) -> None:
    sparse = LAYERS[dims][1].from_dense(dense(dims, "reflect"))
    x = torch.randn(0, 8, *SIZES[dims], requires_grad=True)
    assert torch.autograd.grad(sparse(x).sum(), x)[0].shape == x.shape


# The op, compilers


@pytest.mark.parametrize("namespace", ["sparseprune", "sparseprune_reference"])
@pytest.mark.parametrize("name", ["stride_2", "no_bias", "circular_same_uneven"])
@every_dims
def test_opcheck(dims: int, name: str, namespace: str) -> None:
    sparse: Any = LAYERS[dims][1].from_dense(dense(dims, name))
    x = torch.randn(2, 8, *SIZES[dims], requires_grad=True)
    op = getattr(torch.ops, namespace).csr_conv.default
    sparse.clamp = (0.0, None)
    torch.library.opcheck(op, (x, *sparse.weight.packed(), sparse.bias, sparse._text))


@pytest.mark.parametrize(
    "text",
    ["input 0 tokens 8 0\noutput 0", "input 0 image 8 1\nmean 1 0\noutput 1"],
)
def test_the_op_takes_one_convolution_alone(text: str) -> None:
    sparse: Any = SparseConv1d.from_dense(dense(1, "plain"))
    call = torch.ops.sparseprune.csr_conv
    with pytest.raises(RuntimeError, match="csr_conv: program must be one convolution"):
        call(torch.randn(1, 8, 5), *sparse.weight.packed(), sparse.bias, text)
    with pytest.raises(RuntimeError, match="one convolution, without bias"):
        call(torch.randn(1, 8, 5), *sparse.weight.packed(), None, sparse._text)


@silent
@pytest.mark.parametrize("name", ["plain", "circular_same_uneven"])
@every_dims
def test_compiles_as_one_graph(dims: int, name: str) -> None:
    layer = dense(dims, name)
    sparse = LAYERS[dims][1].from_dense(layer)
    torch._dynamo.reset()
    compiled = torch.compile(sparse, fullgraph=True, backend="aot_eager", dynamic=True)
    x = torch.randn(2, 8, *SIZES[dims])
    for batch in (x, torch.cat([x, x]), x.clone().requires_grad_()):
        torch.testing.assert_close(compiled(batch), layer(batch), **TOLERANCE)
    got = torch.autograd.grad(compiled(batch).sum(), batch)
    torch.testing.assert_close(got, torch.autograd.grad(layer(batch).sum(), batch), **TOLERANCE)


@pytest.mark.parametrize("dynamic", [False, True])
@every_dims
def test_exports(dims: int, dynamic: bool) -> None:
    layer, x = dense(dims, "stride_2"), torch.randn(2, 8, *SIZES[dims])
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    sparse = LAYERS[dims][1].from_dense(layer)
    program = torch.export.export(sparse, (x,), dynamic_shapes=shapes, strict=False)
    assert any(str(n.target) == "sparseprune.run.default" for n in program.graph.nodes) or (
        backends.CPU.missing
    )
    for batch in (x, torch.cat([x, x])) if dynamic else (x,):
        torch.testing.assert_close(program.module()(batch), layer(batch), **TOLERANCE)


@every_dims
def test_autocast_leaves_float32(dims: int) -> None:
    sparse = LAYERS[dims][1].from_dense(dense(dims, "plain"))
    x = torch.randn(2, 8, *SIZES[dims])
    for given in (x, x.clone().requires_grad_()):
        with torch.autocast("cpu", torch.bfloat16):
            found = sparse(given)
        assert found.dtype == torch.float32 and torch.equal(found, sparse(x))
