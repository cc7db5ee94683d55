"""The block format: the grid that it finds, results, checks of loaded weights, convert."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import TOLERANCE, dense_conv2d, dense_linear, sparse_weight
from torch import Tensor, nn

from sparseprune import backends, convert, load, prune, save
from sparseprune.formats import Block, BlockWeight, block_check
from sparseprune.nn import SparseConv2d

HALVES = {torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""dtype -> tolerance of sums of some hundred products, relative to the largest."""

every_backend = pytest.mark.parametrize("backend", backends.available())


def blocks_of(
    rows: int, cols: int, side: tuple[int, int], density: float = 0.4, seed: int = 1
) -> Tensor:
    """A normal weight of which about `density` of the blocks stay."""
    g = torch.Generator().manual_seed(seed)
    kept = torch.rand(-(-rows // side[0]), -(-cols // side[1]), generator=g) < density
    kept = kept.repeat_interleave(side[0], 0).repeat_interleave(side[1], 1)[:rows, :cols]
    return torch.randn(rows, cols, generator=g) * kept


def taps_first(weight: Tensor) -> Tensor:
    """The matrix [out, kernel * in] of a convolution's weight."""
    return weight.flatten(2).transpose(1, 2).flatten(1)


# --- the grid


@pytest.mark.parametrize(
    ("side", "found"),
    [
        ((4, 8), (4, 8)),
        ((1, 16), (1, 16)),
        ((5, 3), (5, 3)),
        ((16, 16), (16, 16)),
        ((32, 32), (32, 32)),
        ((64, 64), (64, 64)),
        ((128, 64), (64, 64)),  # what tensor cores multiply
        ((32, 16), (16, 16)),
        ((48, 48), (16, 16)),
        ((1, 1), (64, 64)),  # nothing to find, and an index per weight would cost more
    ],
    ids=str,
)
def test_the_grid_of_the_zeros_is_found(side: tuple[int, int], found: tuple[int, int]) -> None:
    weight = blocks_of(384, 384, side, 0.3)
    packed = Block().pack(weight)
    assert tuple(packed.values.shape[1:]) == found
    assert torch.equal(packed.unpack(), weight)


def test_layout_is_as_documented() -> None:
    weight = torch.tensor([[1.0, 2, 0, 0, 5], [3, 4, 0, 0, 6], [0, 0, 7, 8, 0], [0, 0, 9, 10, 0]])
    values, columns, starts = Block(2, 2).pack(weight).packed()
    assert values.flatten(1).tolist() == [[1, 2, 3, 4], [5, 0, 6, 0], [7, 8, 9, 10]]
    assert (columns.tolist(), starts.tolist()) == ([0, 2, 1], [0, 2, 3])


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_may_have_its_taps_first(groups: int) -> None:
    conv = nn.Conv2d(32 * groups, 48 * groups, 3, groups=groups)
    prune(conv, sparsity=0.8, pattern="block(16,16,taps)")
    weight = SparseConv2d.from_dense(conv, Block()).weight
    assert (weight.taps, tuple(weight.values.shape[1:])) == (9, (16, 16))
    assert weight.nonzeros == int(conv.weight.count_nonzero())
    assert torch.equal(weight.unpack(), conv.weight.flatten(1))
    prune(conv, sparsity=0.8, pattern="block(16,16)")
    assert SparseConv2d.from_dense(conv, Block(16, 16)).weight.taps in (1, 9)


def test_blocks_do_not_reach_across_groups() -> None:
    conv = nn.Conv2d(8, 24, 3, groups=4)
    prune(conv, sparsity=0.5, pattern="block(3,4)")
    assert SparseConv2d.from_dense(conv, Block()).weight.values.shape[1] == 3
    with pytest.raises(ValueError, match="outputs per group divisible by 4, got 6"):
        SparseConv2d.from_dense(conv, Block(4, 4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Block(4), "Block: rows and columns must be both given or neither"),
        (lambda: Block(0, 4), "Block: rows must be a whole number of at least 1, got 0"),
        (lambda: Block(4, 257), "Block: columns must be 1 to 256, got 257"),
        (lambda: Block().pack(torch.zeros(4, 4, 1)), "3 dimensions"),
        (lambda: Block().pack(torch.zeros(4, 4).double()), "the weight is float64"),
        (lambda: Block().pack(torch.empty(1 << 16, 1 << 15, device="meta")), "32 bits"),
        (lambda: Block(taps=9).pack(torch.zeros(4, 10)), "10 inputs are not a multiple of 9"),
    ],
)
def test_bad_formats_and_weights(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- results in every dtype, memory format and grid


@every_backend
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 4, 37])
def test_half_linear(backend: str, dtype: torch.dtype, tokens: int) -> None:
    weight = blocks_of(70, 130, (16, 16)).to(dtype)
    x, bias = torch.randn(tokens, 130, dtype=dtype), torch.randn(70, dtype=dtype)
    with backends.only(backend):
        y = Block().pack(weight).linear(x, bias, (-5.0, None))
    expected = dense_linear(x, weight, bias).clamp(min=-5)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=HALVES[dtype], atol=10 * HALVES[dtype])


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("order", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("taps", [1, 9])
def test_conv2d_keeps_dtype_and_memory_format(
    backend: str, dtype: torch.dtype, order: str, taps: int
) -> None:
    weight = blocks_of(48, 27 * 9, (8, 9), 0.5).to(dtype)
    if taps > 1:
        weight = weight.view(48, 9, 27).transpose(1, 2).reshape(48, -1)
    x = torch.randn(2, 54, 9, 7, dtype=dtype)
    if order == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    if order == "strided":
        x = torch.stack([x, x], -1)[..., 0]
    window = ((2, 1), (1, 2), (1, 2), 2)
    with backends.only(backend):
        packed = Block(8, 9, 9).pack(weight, 2)
        y = packed.conv2d(x, None, (3, 3), *window)
    assert packed.taps == taps and y.dtype == dtype
    expected = dense_conv2d(x, weight.view(48, 27, 3, 3), None, *window)
    tolerance = HALVES.get(dtype, 1e-5)
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=10 * tolerance)
    last = order == "channels_last"
    assert y.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@every_backend
@pytest.mark.parametrize("side", [(1, 1), (1, 7), (64, 3), (33, 5), (256, 256)], ids=str)
@pytest.mark.parametrize("tokens", [1, 3, 50])
def test_any_grid_multiplies(backend: str, side: tuple[int, int], tokens: int) -> None:
    weight = blocks_of(90, 70, side)
    x, bias = torch.randn(tokens, 70), torch.randn(90)
    with backends.only(backend):
        y = Block(*side).pack(weight).linear(x, bias)
    torch.testing.assert_close(y.double(), dense_linear(x, weight, bias), **TOLERANCE)


# --- what loading checks

CORRUPT: dict[str, Callable[[BlockWeight], object]] = {
    "column_beyond": lambda w: w.columns[0].fill_(99),
    "column_negative": lambda w: w.columns[0].fill_(-1),
    "columns_swapped": lambda w: w.columns[:2].copy_(w.columns[:2].flip(0)),
    "starts_beyond": lambda w: w.starts[-1].fill_(2**30),
    "starts_fall": lambda w: w.starts[1].fill_(2**30),
    "starts_from_1": lambda w: w.starts[0].fill_(1),
    "value_past_the_last_row": lambda w: w.values[-1, -1].fill_(1),
    "value_past_the_last_column": lambda w: w.values[:, :, -1].fill_(1),
    "values_double": lambda w: w.double(),
    "values_flat": lambda w: w.register_buffer("values", w.values.flatten()),
    "columns_cut": lambda w: w.register_buffer("columns", w.columns[:-1].clone()),
    "starts_cut": lambda w: w.register_buffer("starts", w.starts[:-1].clone()),
    "rows": lambda w: setattr(w, "rows", 40),
    "cols": lambda w: setattr(w, "cols", 10),
    "cols_true": lambda w: setattr(w, "cols", True),
    "taps": lambda w: setattr(w, "taps", 5),
    "huge": lambda w: setattr(w, "cols", 2**40),
}


@pytest.mark.parametrize("name", CORRUPT)
def test_corrupt_weights_are_refused(name: str) -> None:
    weight = Block(4, 5).pack(torch.ones(15, 18))
    block_check.check(weight)
    CORRUPT[name](weight)
    with pytest.raises(ValueError, match="block_check: packed weight must be as made by"):
        block_check.check(weight)


def test_groups_that_cut_blocks_are_refused() -> None:
    weight = Block(4, 5).pack(torch.ones(16, 18))
    block_check.check_groups(weight, 4)
    with pytest.raises(ValueError, match="divisible by 8 groups, each by 4"):
        block_check.check_groups(weight, 8)


# --- what convert makes of it


@pytest.mark.parametrize("pattern", ["block(4,4)", "block(8,3)", "block(16,16)", "block(4,4,taps)"])
def test_convert_packs_a_block_pruned_network(pattern: str, tmp_path: Any) -> None:
    model = nn.Sequential(
        nn.Conv2d(8, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 48),
    ).eval()
    prune(model, sparsity=0.8, pattern=pattern, scope="local")
    x = torch.randn(2, 8, 9, 9)
    fast = convert(model, x, format="block", keep_dense="never")
    kernels = [row.kernel for row in fast.report.rows]
    assert all(kernel.startswith("block/") for kernel in kernels), kernels
    torch.testing.assert_close(fast(x), model(x), **TOLERANCE)
    save(fast, tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert torch.equal(loaded(x), fast(x))
    packed = [m for m in loaded.modules() if isinstance(m, BlockWeight)]
    assert len(packed) == 3
    stored = sum(weight.nonzeros for weight in packed)
    if pattern in ("block(4,4)", "block(8,3)"):
        assert stored < 1.1 * sum(row.nonzeros for row in fast.report.rows)


@pytest.mark.usefixtures("sparse_wins")
def test_convert_times_it_where_zeros_lie_in_blocks_only() -> None:
    assert Block().worth(blocks_of(96, 96, (16, 16), 0.3), 8)
    assert not Block().worth(sparse_weight((96, 96), 0.1, torch.Generator()), 8)
    assert not Block(taps=9).worth(blocks_of(96, 90, (16, 9), 0.3), 8)  # programs serve it
    dense = nn.Linear(96, 96)
    prune(dense, sparsity=0.9, scope="local")
    fast = convert(nn.Sequential(dense), torch.randn(64, 96))
    assert fast[0].weight.stem == "csr"
    half = convert(nn.Sequential(copy.deepcopy(dense).half()), torch.randn(64, 96).half())
    assert "block is not meant for it" in half.report.rows[0].reason
