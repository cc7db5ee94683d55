"""The nm format: the ratio that it finds, layout, results, checks of loaded weights, convert."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import TOLERANCE, dense_conv2d, dense_linear, sparse_weight
from torch import Tensor, nn

from sparseprune import backends, convert, load, prune, save
from sparseprune.formats import Nm, NmWeight, nm_check
from sparseprune.formats.nm import UNIT, split_places
from sparseprune.nn import SparseConv2d
from sparseprune.patterns.nm import NM

HALVES = {torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""dtype -> tolerance of sums of some hundred products, relative to the largest."""

every_backend = pytest.mark.parametrize("backend", backends.available())


def pruned(rows: int, cols: int, n: int = 2, m: int = 4) -> Tensor:
    """A normal weight with n of every m."""
    weight = torch.randn(rows, cols)
    return weight * NM(n, m).legal(weight.abs())


# --- the ratio and the layout


@pytest.mark.parametrize(
    ("ratio", "found"),
    [
        ((2, 4), (2, 4)),
        ((1, 4), (2, 4)),  # what tensor cores multiply
        ((1, 2), (2, 4)),
        ((3, 4), (3, 4)),
        ((4, 8), (4, 8)),
        ((7, 16), (7, 16)),
        ((2, 8), (2, 4)),
        ((3, 8), (3, 8)),
    ],
    ids=str,
)
def test_the_ratio_of_the_zeros_is_found(ratio: tuple[int, int], found: tuple[int, int]) -> None:
    weight = pruned(48, 160, *ratio)
    packed = Nm().pack(weight)
    assert (packed.n, packed.m, packed.name) == (*found, f"nm/{found[0]}:{found[1]}")
    assert torch.equal(packed.unpack(), weight)


def test_layout_is_as_documented() -> None:
    weight = torch.tensor([[1.0, 0, 0, 2, 0, 3, 0, 0, 0, 4]])
    values, places = Nm(2, 4).pack(weight).packed()
    assert (tuple(values.shape), tuple(places.shape)) == ((1, 2 * UNIT), (1, UNIT // 2))
    assert values[0, :8].tolist() == [1, 2, 0, 3, 0, 4, 0, 0]
    assert not values[0, 6:].any()
    assert places[0, 0] == 0b01_00_11_00
    assert places[0, 1:].unique().tolist() == [0b01_00_01_00]  # ascending where all is padding
    values, places = Nm(3, 8).pack(torch.tensor([[0.0, 5, 0, 0, 0, 0, 6, 7]])).packed()
    assert values[0, :3].tolist() == [5, 6, 7]
    assert places[0, :2].tolist() == [0x61, 0x07]  # the next group begins in the high bits


def test_negative_zeros_are_zeros_and_are_not_stored() -> None:
    weight = torch.tensor([[-0.0, -0.0, -0.0, 1.0, -0.0, -0.0, -0.0, -0.0]])
    packed = Nm(2, 4).pack(weight)
    assert packed.values[0, :4].tolist() == [0, 1, 0, 0]
    assert not packed.values.signbit().any()
    assert split_places(packed.places, 4)[0, :4].tolist() == [0, 3, 0, 1]


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_may_have_its_taps_first(groups: int) -> None:
    conv = nn.Conv2d(8 * groups, 6 * groups, 3, groups=groups)
    prune(conv, sparsity=0.5, pattern=NM(2, 4, "channel"))
    weight = SparseConv2d.from_dense(conv, Nm()).weight
    assert (weight.n, weight.m, weight.taps) == (2, 4, 9)
    assert torch.equal(weight.unpack(), conv.weight.flatten(1))
    plain = nn.Conv2d(8 * groups, 6 * groups, 3, groups=groups)
    prune(plain, sparsity=0.5, pattern="2:4")
    weight = SparseConv2d.from_dense(plain, Nm()).weight
    assert (weight.n, weight.m, weight.taps) == (2, 4, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Nm(2), "Nm: n and m must be both given or neither"),
        (lambda: Nm(0, 4), "Nm: n must be a whole number of at least 1, got 0"),
        (lambda: Nm(1, 1), "Nm: m must be a whole number of at least 2, got 1"),
        (lambda: Nm(4, 4), "Nm: n must be below m, 4, got 4"),
        (lambda: Nm(4, 17), "Nm: m must be 2 to 16, got 17"),
        (lambda: Nm().pack(torch.zeros(4, 4, 1)), "3 dimensions"),
        (lambda: Nm().pack(torch.zeros(4, 4).double()), "the weight is float64"),
        (lambda: Nm().pack(torch.empty(1 << 16, 1 << 15, device="meta")), "32 bits"),
        (lambda: Nm(taps=9).pack(torch.zeros(4, 10)), "10 inputs are not a multiple of 9"),
        (
            lambda: Nm(2, 4).pack(torch.tensor([[0.0] * 4 + [1, 0, 1, 1]])),
            "a group of 4 inputs keeps 3 weights, 2 fit; prune with pattern='2:4'",
        ),
        (
            lambda: Nm().pack(torch.ones(1, 16)),
            "some group of 16 inputs keeps all its weights; prune with pattern='2:4'",
        ),
    ],
)
def test_bad_formats_and_weights(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- results in every dtype, memory format and ratio


@every_backend
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 4, 37])
def test_half_linear(backend: str, dtype: torch.dtype, tokens: int) -> None:
    weight = pruned(70, 130).to(dtype)
    x, bias = torch.randn(tokens, 130, dtype=dtype), torch.randn(70, dtype=dtype)
    with backends.only(backend):
        y = Nm().pack(weight).linear(x, bias, (-5.0, None))
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
    weight = torch.randn(10, 28, 3, 3)
    weight = (weight * NM(2, 4, "input" if taps == 1 else "channel").legal(weight.abs())).to(dtype)
    x = torch.randn(2, 56, 9, 7, dtype=dtype)
    if order == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    if order == "strided":
        x = torch.stack([x, x], -1)[..., 0]
    window = ((2, 1), (1, 2), (1, 2), 2)
    with backends.only(backend):
        packed = Nm(taps=9).pack(weight.flatten(1), 2)
        y = packed.conv2d(x, None, (3, 3), *window)
    assert packed.taps == taps and y.dtype == dtype
    expected = dense_conv2d(x, weight, None, *window)
    tolerance = HALVES.get(dtype, 1e-5)
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=10 * tolerance)
    last = order == "channels_last"
    assert y.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@every_backend
@pytest.mark.parametrize("ratio", [(1, 2), (1, 3), (3, 5), (4, 8), (15, 16)], ids=str)
@pytest.mark.parametrize("tokens", [1, 3, 50])
def test_any_ratio_multiplies(backend: str, ratio: tuple[int, int], tokens: int) -> None:
    weight = pruned(21, 70, *ratio)
    x, bias = torch.randn(tokens, 70), torch.randn(21)
    with backends.only(backend):
        y = Nm(*ratio).pack(weight).linear(x, bias)
    torch.testing.assert_close(y.double(), dense_linear(x, weight, bias), **TOLERANCE)


@every_backend
@pytest.mark.parametrize("tokens", [1, 9])
def test_a_pruned_weight_ignores_nan(backend: str, tokens: int) -> None:
    weight = pruned(8, 64)
    x = torch.randn(tokens, 64)
    x[:, 5] = torch.nan
    with backends.only(backend):
        y = Nm(2, 4).pack(weight).linear(x, None)
    assert torch.equal(y.isnan().all(0), weight[:, 5] != 0)


# --- what loading checks

CORRUPT: dict[str, Callable[[NmWeight], object]] = {
    "place_equal": lambda w: w.places[0].fill_(0),
    "place_falls": lambda w: w.places[0].fill_(0b0001_0001),
    "value_past_the_last_column": lambda w: w.values[:, -1].fill_(1),
    "nan_past_the_last_column": lambda w: w.values[:, -1].fill_(torch.nan),
    "values_double": lambda w: w.double(),
    "values_flat": lambda w: w.register_buffer("values", w.values.flatten()),
    "values_cut": lambda w: w.register_buffer("values", w.values[:-1].clone()),
    "places_cut": lambda w: w.register_buffer("places", w.places[:, :-1].clone()),
    "places_int32": lambda w: w.register_buffer("places", w.places.int()),
    "rows": lambda w: setattr(w, "rows", 40),
    "cols": lambda w: setattr(w, "cols", 100),
    "cols_true": lambda w: setattr(w, "cols", True),
    "n": lambda w: setattr(w, "n", 1),
    "n_of_m": lambda w: setattr(w, "n", 4),
    "m": lambda w: setattr(w, "m", 8),
    "m_large": lambda w: setattr(w, "m", 32),
    "taps": lambda w: setattr(w, "taps", 5),
    "huge": lambda w: setattr(w, "cols", 2**40),
}


@pytest.mark.parametrize("name", CORRUPT)
def test_corrupt_weights_are_refused(name: str) -> None:
    weight = Nm(2, 4).pack(pruned(15, 18))
    nm_check.check(weight)
    CORRUPT[name](weight)
    with pytest.raises(ValueError, match="nm_check: packed weight must be as made by"):
        nm_check.check(weight)


def test_places_outside_of_their_group_are_refused() -> None:
    weight = Nm(1, 5).pack(torch.zeros(3, 40))
    nm_check.check(weight)
    weight.places[1, 0] = 5
    with pytest.raises(ValueError, match="places outside of a group of 5"):
        nm_check.check(weight)


def test_groups_that_do_not_divide_the_rows_are_refused() -> None:
    weight = Nm(2, 4).pack(pruned(16, 18))
    nm_check.check_groups(weight, 4)
    with pytest.raises(ValueError, match="divisible by 3 groups"):
        nm_check.check_groups(weight, 3)


# --- what convert makes of it


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4", NM(2, 4, "channel")], ids=str)
def test_convert_packs_a_pruned_network(pattern: Any, tmp_path: Any) -> None:
    model = nn.Sequential(
        nn.Conv2d(8, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 48),
    ).eval()
    prune(model, sparsity=0.75 if pattern == "1:4" else 0.5, pattern=pattern, scope="local")
    x = torch.randn(2, 8, 9, 9)
    fast = convert(model, x, format="nm", keep_dense="never")
    kernels = [row.kernel for row in fast.report.rows]
    ratio = "4:8" if pattern == "4:8" else "2:4"
    assert all(kernel.startswith(f"nm/{ratio} ") for kernel in kernels), kernels
    torch.testing.assert_close(fast(x), model(x), **TOLERANCE)
    save(fast, tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert torch.equal(loaded(x), fast(x))
    assert len([m for m in loaded.modules() if isinstance(m, NmWeight)]) == 3


@pytest.mark.usefixtures("sparse_wins")
def test_convert_times_it_where_the_zeros_fit_only() -> None:
    assert Nm().worth(pruned(96, 96), 8)
    assert not Nm().worth(sparse_weight((96, 96), 0.1, torch.Generator()), 8)
    assert not Nm(taps=9).worth(pruned(96, 90), 8)  # programs serve it
    dense = nn.Linear(96, 96)
    prune(dense, sparsity=0.9, scope="local")
    fast = convert(nn.Sequential(dense), torch.randn(64, 96))
    assert fast[0].weight.stem == "csr"
    half = nn.Linear(96, 96).half()
    prune(half, sparsity=0.5, pattern="2:4")
    fast = convert(nn.Sequential(half), torch.randn(4, 96).half())
    assert fast[0].weight.name == "nm/2:4"
