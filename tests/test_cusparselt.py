"""nm_linear by cuSPARSELt: what the library is asked to compute, and where it serves.

The library is a fake; tests/gpu has the real one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from fake_cusparselt import HALF, FakeCusparselt, assert_as_dense, dense_layer, packed_layer
from torch import nn

from sparseprune import backends, convert, info, prune
from sparseprune.formats import Csr, Format, Nm
from sparseprune.nn import SparseConv2d, SparseLinear

# --- what it computes


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(), (1,), (7,), (8,), (9,), (2, 3, 5), (0,), (4, 0)], ids=str)
def test_any_number_of_tokens(
    cslt: FakeCusparselt, batch: tuple[int, ...], bias: bool, dtype: torch.dtype
) -> None:
    sparse, dense = packed_layer(bias=bias, dtype=dtype)
    assert_as_dense(sparse, dense, torch.randn(*batch, 48).to(dtype))
    tokens = torch.Size(batch).numel()
    assert [n for _, n, _ in cslt.products] == ([] if tokens == 0 else [-(-tokens // 8) * 8])


LYING: dict[str, Any] = {
    "transposed": lambda x: x.t().contiguous().t(),
    "strided": lambda x: torch.stack([x, x], -1)[..., 0],
    "unaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "some_rows": lambda x: torch.cat([x, x])[5 : 5 + len(x)].roll(5, 0),
}


@pytest.mark.parametrize("how", LYING)
@pytest.mark.parametrize("tokens", [8, 11])
def test_input_that_lies_otherwise(cslt: FakeCusparselt, how: str, tokens: int) -> None:
    sparse, dense = packed_layer()
    x = torch.randn(tokens, 48).half()
    lying = LYING[how](x)
    assert torch.equal(lying, x)
    assert_as_dense(sparse, dense, lying)
    unaligned = torch.zeros(33, dtype=torch.float16)[1:].copy_(dense.bias)
    assert torch.equal(sparse.weight.linear(x, unaligned), sparse(x))


@pytest.mark.parametrize("clamp", [(0.0, None), (-0.25, 0.5), (None, 0.0)], ids=str)
def test_limits_are_applied(cslt: FakeCusparselt, clamp: tuple[float | None, float | None]) -> None:
    sparse, _ = packed_layer()
    x = torch.randn(5, 48).half()
    free = sparse(x)
    sparse.clamp = clamp
    assert torch.equal(sparse(x), free.clamp(*clamp))


def test_the_algorithm_is_searched_once_per_size(
    cslt: FakeCusparselt, monkeypatch: pytest.MonkeyPatch
) -> None:
    sparse, _ = packed_layer()
    for tokens in (3, 8, 5, 9, 16, 9):
        sparse(torch.randn(tokens, 48).half())
    assert cslt.searched == [(32, 48, 8, True), (32, 48, 16, True)]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    sparse(torch.randn(30, 48).half())
    assert cslt.products[-1] == (32, 32, False), "in a graph nothing is searched"
    sparse(torch.randn(9, 48).half())
    assert cslt.products[-1] == (32, 16, True)


def test_gradients_are_dense_ones(cslt: FakeCusparselt) -> None:
    sparse, dense = packed_layer()
    x = torch.randn(6, 48).half().requires_grad_()
    leaf = sparse.bias.requires_grad_()
    sparse.clamp = (0.0, None)
    got = torch.autograd.grad(sparse(x).sum(), (x, leaf))
    expected = torch.autograd.grad(dense(x).relu().sum(), (x, dense.bias))
    torch.testing.assert_close(got, expected, rtol=1e-2, atol=2e-2)


def test_it_is_an_op_of_torch(cslt: FakeCusparselt) -> None:
    sparse, dense = packed_layer()
    x = torch.randn(6, 48).half()
    weight = sparse.weight
    arguments = (x, *weight.packed(), weight.compressed, sparse.bias, 32, 48, 2, 4, None, 1.0)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    op = torch.ops.sparseprune_cusparselt.nm_linear.default
    torch.library.opcheck(op, arguments, test_utils=checks)
    torch._dynamo.reset()
    compiled = torch.compile(sparse, fullgraph=True, backend="eager", dynamic=True)
    assert_as_dense(compiled, dense, x)
    shapes = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(sparse, (x,), dynamic_shapes=shapes, strict=False).module()
    assert_as_dense(exported, dense, torch.randn(11, 48).half())


def test_bad_input_is_named(cslt: FakeCusparselt) -> None:
    sparse, _ = packed_layer()
    x = torch.randn(5, 48).half()
    for bad in (x[:, :-1], x.float(), x.bfloat16(), x.long()):
        with pytest.raises(RuntimeError, match="nm_linear: x must"):
            sparse(bad)
    with pytest.raises(RuntimeError, match="nm_linear: bias must"):
        sparse.weight.linear(x, torch.zeros(31).half())


# --- where it serves

CANNOT: dict[str, tuple[nn.Linear, Format, str]] = {
    "float32": (dense_layer(dtype=torch.float32), Nm(2, 4), "float16 and bfloat16, got float32"),
    "rows": (dense_layer(rows=40), Nm(2, 4), "multiples of 16, got 40 x 48"),
    "cols": (dense_layer(cols=40), Nm(2, 4), "multiples of 16, got 32 x 40"),
    "1:4": (dense_layer(), Nm(4, 8), "multiplies 2:4, got 4:8"),
    "csr": (dense_layer(), Csr("rows"), "has no csr kernels"),
}


@pytest.mark.parametrize("name", CANNOT)
def test_what_it_cannot_take_is_said(cslt: FakeCusparselt, name: str) -> None:
    dense, fmt, reason = CANNOT[name]
    sparse = SparseLinear.from_dense(dense, fmt)
    with pytest.raises(ValueError, match=f"got 'cusparselt'; .*{reason}"):
        sparse.weight.use("cusparselt")
    assert sparse.weight.namespace == backends.choose(torch.device("cpu")).namespace
    if fmt.stem == "nm":
        assert reason in (fmt.lacking("cusparselt", dense) or "")
        assert reason in (sparse.weight.lacking("cusparselt") or "")


@pytest.mark.parametrize("kernel", [1, 3])
def test_convolutions_stay_with_others(cslt: FakeCusparselt, kernel: int) -> None:
    conv = nn.Conv2d(16, 32, kernel).half()
    prune(conv, 0.5, pattern="2:4")
    assert Nm(2, 4, 1).lacking("cusparselt", conv) == "multiplies Linear layers alone"
    sparse = SparseConv2d.from_dense(conv, Nm())
    x = torch.randn(2, 16, 5, 5).half()
    expected = sparse(x)
    if kernel == 1:  # a matrix as any other, until an image comes
        sparse.weight.use("cusparselt")
        with pytest.raises(ValueError, match=r"nm_conv2d: backend must .* weight.use\('auto'\)"):
            sparse(x)
        sparse.weight.use("auto")
    assert torch.equal(sparse(x), expected)


def test_without_the_library_it_says_so() -> None:
    reason = backends.CUSPARSELT.missing
    if reason is None:
        pytest.skip("it is here")
    weight = Nm(2, 4).pack(dense_layer().weight.detach())
    with pytest.raises(ValueError, match=f"serves cpu, got 'cusparselt'; {reason}"):
        weight.use("cusparselt")
    with pytest.raises(ValueError, match=f"convert: backend must .*{reason}"):
        convert(dense_layer(), torch.randn(8, 48).half(), backend="cusparselt")


def test_it_is_never_taken_unasked(cslt: FakeCusparselt, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    without = tuple(b for b in backends.BACKENDS if b.name in ("cusparselt", "reference"))
    monkeypatch.setattr(backends, "BACKENDS", without)
    assert backends.find(cpu, "auto", "nm", Nm(2, 4).lacking).name == "reference"
    assert [b.name for b in backends.rivals(cpu, "nm", Nm(2, 4).lacking)] == ["cusparselt"]
    assert backends.rivals(cpu, "csr") == backends.rivals(cpu, "nm", Nm(1, 4).lacking) == []
    with backends.only("reference"):
        assert backends.rivals(cpu, "nm") == []


def test_info_lists_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "BACKENDS", (replace(backends.CUSPARSELT, missing=None),))
    monkeypatch.setattr(backends, "has_kernel", lambda op, device: "cusparselt::nm" in op)
    rows = {row.format: row for row in info().rows}
    assert rows["nm"].available and "not yet run on a GPU" in rows["nm"].note
    assert "Linear" in rows["nm"].note
    assert (rows["csr/rows"].available, rows["csr/rows"].reason) == (False, "has no csr kernels")
