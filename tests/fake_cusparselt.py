"""torch's ops of cuSPARSELt without the library: they compute in float64, and only from arguments
that the real ones take and in the form that `compress` gave, bit for bit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparseprune import backends, prune
from sparseprune.formats import Nm
from sparseprune.nn import SparseLinear
from sparseprune.ops import nm_cusparselt

HALF = (torch.float16, torch.bfloat16)
TOLERANCE = {
    torch.float16: {"rtol": 2e-3, "atol": 2e-2},
    torch.bfloat16: {"rtol": 2e-2, "atol": 0.1},
}
SPLITS = (7, 3, 1)
"""Number, parts and mode of the algorithm that a search finds here."""


@dataclass
class FakeCusparselt:
    """Stands for the library on one device.

    Args:
        values_first: whether its form begins with the values, row by row.
        missing: what it says where it does not serve the device; "" where it does.
    """

    values_first: bool = True
    missing: str = ""
    searched: list[tuple[Any, ...]] = field(default_factory=list)
    products: list[tuple[int, int, bool]] = field(default_factory=list)
    _known: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def compress(self, weight: Tensor) -> Tensor:
        if self.missing:
            raise RuntimeError(self.missing)
        assert weight.dim() == 2 and weight.is_contiguous()
        assert weight.dtype in HALF
        rows, cols = weight.shape
        assert min(rows, cols) >= 16 and rows % 16 == cols % 16 == 0
        kept = ((weight != 0) | weight.signbit()).view(rows, -1, 4)  # -0.0 is kept, too
        counts = kept.sum(-1, keepdim=True)
        assert int(counts.max()) <= 2, "garbage, and nobody says so"
        filled = ~kept & ((~kept).cumsum(-1) <= 2 - counts)
        chosen = (kept | filled).view(rows, cols)
        values = weight[chosen]
        made = torch.full((rows, cols * 9 // 16), float(len(self._known)), dtype=weight.dtype)
        made.view(-1)[: len(values)] = values if self.values_first else values.flip(0)
        self._known.append((made.clone(), weight.double()))
        return made

    def weight_of(self, compressed: Tensor) -> Tensor:
        """The dense weight; an error where a byte is not as it was made."""
        for made, weight in self._known:
            same = made.shape == compressed.shape and made.dtype == compressed.dtype
            if same and torch.equal(made.view(torch.int16), compressed.view(torch.int16)):
                return weight
        raise AssertionError("garbage: this was not compressed here")

    def _check(self, compressed: Tensor, dense: Tensor, bias: Tensor | None) -> Tensor:
        weight = self.weight_of(compressed)
        assert dense.dim() == 2 and dense.dtype == compressed.dtype
        assert dense.shape[0] == weight.shape[1], "k of both"
        assert dense.shape[0] % 8 == dense.shape[1] % 8 == 0 and dense.shape[1] > 0
        assert dense.is_contiguous() or dense.t().is_contiguous()
        assert all(t.data_ptr() % 16 == 0 for t in (compressed, dense))
        if bias is not None:
            assert bias.shape == (len(weight),) and bias.dtype == dense.dtype
            assert bias.is_contiguous() and bias.data_ptr() % 16 == 0
        return weight

    def search(
        self,
        compressed: Tensor,
        dense: Tensor,
        bias: Tensor | None,
        alpha: Tensor | None,
        out_dtype: torch.dtype | None,
        transpose_result: bool,
    ) -> tuple[int, int, int, int]:
        self._check(compressed, dense, bias)
        assert alpha is None and out_dtype is None and transpose_result is True
        assert not torch.cuda.is_current_stream_capturing(), "a search waits for the device"
        self.searched.append((len(compressed), *dense.shape, bias is not None))
        return (*SPLITS, 37)

    def multiply(
        self,
        compressed: Tensor,
        dense: Tensor,
        bias: Tensor | None = None,
        alpha: Tensor | None = None,
        out_dtype: torch.dtype | None = None,
        transpose_result: bool = False,
        alg_id: int = 0,
        split_k: int = 1,
        split_k_mode: int = -1,
    ) -> Tensor:
        weight = self._check(compressed, dense, bias)
        sizes = (len(weight), *dense.shape, bias is not None)
        searched = (alg_id, split_k, split_k_mode) == SPLITS
        assert searched or (alg_id, split_k, split_k_mode) == (0, 1, -1)
        assert not searched or sizes in self.searched, "the algorithm of other sizes"
        self.products.append((len(weight), dense.shape[1], searched))
        y = weight @ dense.double()
        if bias is not None:
            y += bias.double()[:, None]
        return (y.t() if transpose_result else y).to(dense.dtype).contiguous()


@contextlib.contextmanager
def as_on_cuda(
    monkeypatch: pytest.MonkeyPatch, fake: FakeCusparselt | None = None
) -> Iterator[FakeCusparselt]:
    """The CPU has the backend "cusparselt" inside, computed by the fake."""
    fake = fake or FakeCusparselt()
    here = replace(backends.CUSPARSELT, device="cpu", missing=None)
    listed = tuple(here if b.name == here.name else b for b in backends.BACKENDS)
    monkeypatch.setattr(backends, "BACKENDS", listed)
    monkeypatch.setattr(torch, "_cslt_compress", fake.compress)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", fake.multiply)
    found = SimpleNamespace(mm_search=fake.search)
    monkeypatch.setattr(torch._C, "_cusparselt", found, raising=False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(nm_cusparselt, "_found", {})
    library = torch.library.Library(here.namespace, "IMPL")
    library.impl("nm_linear", nm_cusparselt.linear, "CPU")
    try:
        yield fake
    finally:
        library._destroy()


def dense_layer(
    rows: int = 32, cols: int = 48, bias: bool = True, dtype: torch.dtype = torch.float16
) -> nn.Linear:
    """A 2:4 layer."""
    linear = nn.Linear(cols, rows, bias).to(dtype)
    prune(linear, 0.5, pattern="2:4")
    return linear


def packed_layer(**arguments: Any) -> tuple[SparseLinear, nn.Linear]:
    """A 2:4 layer by cuSPARSELt, and its dense twin."""
    dense = dense_layer(**arguments)
    sparse = SparseLinear.from_dense(dense, Nm(2, 4))
    sparse.weight.use("cusparselt")
    return sparse, dense


def assert_as_dense(sparse: nn.Module, dense: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        got, expected = sparse(x), dense.double()(x.double())
    dense.to(x.dtype)
    assert got.dtype == x.dtype and got.is_contiguous() and got.shape == expected.shape
    torch.testing.assert_close(got.double(), expected, **TOLERANCE[x.dtype])
