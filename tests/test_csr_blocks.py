"""Blocks of the csr layouts: any width packs and multiplies, and pieces make the same whole."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from problems import TOLERANCE, dense_linear, sparse_weight

from sparseprune import backends
from sparseprune.formats import Csr, csr, csr_check
from sparseprune.formats.csr_blocks import MAX_BLOCK, STEP, block_width, widths

blocked = pytest.mark.parametrize("layout", ["groups", "sorted"])


@blocked
@given(
    block=st.integers(1, MAX_BLOCK),
    rows=st.integers(0, 140),
    cols=st.integers(0, 600),
    tokens=st.integers(0, 70),
    density=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_any_width(
    layout: str, block: int, rows: int, cols: int, tokens: int, density: float, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    weight, x = sparse_weight((rows, cols), density, g), torch.randn(tokens, cols, generator=g)
    packed = Csr(layout, block).pack(weight)
    csr_check.check(packed)
    assert packed.block == block and packed.format == Csr(layout, block)
    assert torch.equal(packed.unpack(), weight)
    for backend in backends.available():
        with backends.only(backend):
            y = packed.use().linear(x, None)
        torch.testing.assert_close(y.double(), dense_linear(x, weight, None), **TOLERANCE)


@blocked
def test_no_block_is_the_usual_one(layout: str) -> None:
    weight = torch.randn(8, 300)
    usual, same = Csr(layout).pack(weight), Csr(layout, block_width(300)).pack(weight)
    assert usual.spec() == same.spec() and usual.name == same.name == f"csr/{layout}"
    assert all(map(torch.equal, usual.packed(), same.packed()))
    assert same.format.name == f"csr/{layout}/{same.block}" != Csr(layout).name


@pytest.mark.parametrize("cols", [0, 1, 15, 16, 17, 128, 147, 240, 241, 256, 1000, 4608])
def test_widths_hold_whole_tiles(cols: int) -> None:
    for layout in csr.LAYOUTS.values():
        found = widths(cols, layout.WIDTHS)
        assert len(found) == len(set(found)) <= 4
        assert all(w % STEP == 0 and 0 < w <= MAX_BLOCK for w in found)
        assert found[:1] == [block_width(cols)][: len(found)], "the usual one first"


@pytest.mark.parametrize("block", [0, -1, 256, 16.0, True, "16"], ids=repr)
@blocked
def test_blocks_that_do_not_fit(layout: str, block: Any) -> None:
    with pytest.raises(ValueError, match="Csr: block must be 1 to 255, or None, got"):
        Csr(layout, block)


def test_rows_have_no_blocks() -> None:
    with pytest.raises(ValueError, match="Csr: block must be None, for the layout has no blocks"):
        Csr("rows", 16)
    assert Csr("rows").pack(torch.eye(3)).format == Csr("rows")


@pytest.mark.parametrize("layout", csr.LAYOUTS)
@pytest.mark.parametrize("shape", [(300, 1000), (7, 1000), (1000, 5), (0, 900), (900, 0)], ids=str)
def test_pieces_make_the_same_whole(
    monkeypatch: pytest.MonkeyPatch, layout: str, shape: tuple[int, int]
) -> None:
    weight = sparse_weight(shape, 0.3, torch.Generator().manual_seed(1))
    whole = Csr(layout).pack(weight)
    for piece in (1, 5000, 70_000):
        monkeypatch.setattr(csr, "PIECE", piece)
        packed = Csr(layout).pack(weight)
        csr_check.check(packed)
        for got, expected in zip(packed.packed(), whole.packed(), strict=True):
            assert got.dtype == expected.dtype and torch.equal(got, expected)


def test_adopting_another_packing() -> None:
    weight = torch.randn(8, 300)
    packed, x = Csr("groups").pack(weight), torch.randn(9, 300)
    twin = packed.twin()
    packed.adopt(Csr("sorted", 64).pack(weight))
    assert packed.format == Csr("sorted", 64) and twin.format == Csr("groups", twin.block)
    assert torch.equal(packed.unpack(), weight) and torch.equal(twin.unpack(), weight)
    torch.testing.assert_close(packed.linear(x, None), twin.linear(x, None), **TOLERANCE)
    with pytest.raises(ValueError, match=r"CsrWeight.adopt: other must be of shape \(8, 300\)"):
        packed.adopt(Csr().pack(torch.eye(3)))
