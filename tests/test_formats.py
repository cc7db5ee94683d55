"""Every format on every backend and edge against one float64 reference; packing loses nothing."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from problems import (
    CONV,
    LINEAR,
    TOLERANCE,
    ConvProblem,
    LinearProblem,
    dense_conv2d,
    dense_linear,
    fitting,
    sparse_weight,
)
from torch import Tensor

from sparseprune import backends
from sparseprune.formats import (
    FORMATS,
    WEIGHTS,
    Bitmask,
    Csr,
    Format,
    Nm,
    PackedWeight,
    bitmask_check,
    csr_check,
)

EXACT = ("csr", "bitmask")
"""Formats that store no zero."""

TESTED = (*FORMATS, Nm(2, 4))
"""Nm() finds other ratios in random zeros."""

every_format = pytest.mark.parametrize("fmt", TESTED, ids=lambda f: f.name)
every_conv_format = pytest.mark.parametrize(
    "fmt", [f for f in TESTED if "Conv2d" in f.serves], ids=lambda f: f.name
)
every_backend = pytest.mark.parametrize("backend", backends.available())


def assert_matches(y: Tensor, expected: Tensor) -> None:
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), expected, **TOLERANCE, equal_nan=True)


def stored(packed: PackedWeight) -> Tensor:
    """Where the packed weight has a value, be it zero."""
    ones = copy.deepcopy(packed)
    ones.values.fill_(1)  # type: ignore[operator, union-attr]
    return ones.unpack() != 0


def run_conv2d(fmt: Format, problem: ConvProblem) -> Tensor:
    x, weight, bias = problem.tensors()
    weight = fitting(fmt, weight, problem.groups)
    packed = fmt.pack(weight.flatten(1), problem.groups)
    return packed.conv2d(x, bias, problem.kernel, *problem.window)


@pytest.mark.parametrize("problem", LINEAR, ids=str)
@every_backend
@every_format
def test_linear_matches_dense(fmt: Format, backend: str, problem: LinearProblem) -> None:
    x, weight, bias = problem.tensors()
    weight = fitting(fmt, weight)
    with backends.only(backend):
        packed = fmt.pack(weight)
        y = packed.linear(x, bias)
    assert_matches(y, dense_linear(x, weight, bias, stored(packed)))


@pytest.mark.parametrize("problem", CONV, ids=str)
@every_backend
@every_conv_format
def test_conv2d_matches_dense(fmt: Format, backend: str, problem: ConvProblem) -> None:
    x, weight, bias = problem.tensors()
    weight = fitting(fmt, weight, problem.groups)
    reason = fmt.refuses(weight.flatten(1), problem.groups)
    if reason is not None:
        with pytest.raises(ValueError, match="pack: weight must be"):
            fmt.pack(weight.flatten(1), problem.groups)
        return
    with backends.only(backend):
        packed = fmt.pack(weight.flatten(1), problem.groups)
        y = packed.conv2d(x, bias, problem.kernel, *problem.window)
    places = stored(packed).view(weight.shape)
    assert_matches(y, dense_conv2d(x, weight, bias, *problem.window, stored=places))


HALVES = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@every_backend
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("fmt", [Csr("rows"), Bitmask()], ids=lambda f: f.name)
@pytest.mark.parametrize("tokens", [0, 1, 5, 40])
def test_half_linear(fmt: Format, backend: str, dtype: torch.dtype, tokens: int) -> None:
    g = torch.Generator().manual_seed(tokens)
    weight = sparse_weight((70, 130), 0.3, g).to(dtype)
    x, bias = (
        torch.randn(tokens, 130, generator=g).to(dtype),
        torch.randn(70, generator=g).to(dtype),
    )
    with backends.only(backend):
        packed = fmt.pack(weight)
        y = packed.linear(x, bias, (-5.0, None))
    assert torch.equal(packed.unpack(), weight) and packed.dtype == y.dtype == dtype
    expected = dense_linear(x, weight, bias).clamp(min=-5)
    scale = dense_linear(x.abs(), weight.abs(), bias.abs())
    assert bool(((y.double() - expected).abs() <= HALVES[dtype] * scale).all())
    checks: Any = {"csr": csr_check, "bitmask": bitmask_check}
    checks[fmt.stem].check(packed)


@every_format
@given(
    rows=st.integers(0, 40),
    cols=st.integers(0, 600),
    tokens=st.integers(0, 70),
    density=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_any_shape_packs_and_multiplies(
    fmt: Format, rows: int, cols: int, tokens: int, density: float, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    weight = fitting(fmt, sparse_weight((rows, cols), density, g))
    x, bias = torch.randn(tokens, cols, generator=g), torch.randn(rows, generator=g)
    expected = dense_linear(x, weight, bias)
    for backend in backends.available():
        with backends.only(backend):
            packed = fmt.pack(weight)
            assert_matches(packed.linear(x, bias), expected)
        assert torch.equal(packed.unpack(), weight)


@every_conv_format
@given(
    problem=st.builds(
        ConvProblem,
        name=st.integers(0, 2**31).map(str),
        rows=st.sampled_from([4, 8, 12]),
        channels=st.sampled_from([4, 8]),
        size=st.tuples(st.integers(5, 12), st.integers(5, 18)),
        kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
        stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
        padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
        dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
        groups=st.sampled_from([1, 1, 4]),
        batch=st.integers(0, 3),
        density=st.floats(0, 1),
    )
)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_any_convolution(fmt: Format, problem: ConvProblem) -> None:
    x, weight, bias = problem.tensors()
    weight = fitting(fmt, weight, problem.groups)
    if fmt.refuses(weight.flatten(1), problem.groups):
        return
    expected = dense_conv2d(x, weight, bias, *problem.window)
    for backend in backends.available():
        with backends.only(backend):
            assert_matches(run_conv2d(fmt, problem), expected)


@pytest.mark.parametrize("problem", LINEAR, ids=str)
@every_format
def test_pack_unpack_is_identity(fmt: Format, problem: LinearProblem) -> None:
    _, weight, _ = problem.tensors()
    weight = fitting(fmt, weight)
    packed = fmt.pack(weight)
    assert torch.equal(packed.unpack(), weight)
    assert packed.nonzeros >= int(stored(packed).sum()) >= int(weight.count_nonzero())
    if fmt.stem in EXACT:
        assert packed.nonzeros == int(weight.count_nonzero())
    assert packed.shape == weight.shape
    assert packed.nbytes == sum(b.nbytes for b in packed.buffers())
    assert fmt.name in packed.name in repr(packed)


@every_format
def test_pack_keeps_every_nonzero(fmt: Format) -> None:
    odd = [0.0, -0.0, 1e-45, -1e-40, 3e38, 0.0, torch.inf, -0.0, -torch.inf, torch.nan]
    weight = torch.tensor([odd])
    packed = fmt.pack(weight)
    assert packed.nonzeros == 6 or fmt.stem not in EXACT
    torch.testing.assert_close(packed.unpack(), weight, rtol=0, atol=0, equal_nan=True)


@every_format
def test_pack_of_a_view_owns_its_memory(fmt: Format) -> None:
    weight = fitting(fmt, torch.randn(30, 12)).t().contiguous()
    packed = fmt.pack(weight.t())
    expected = weight.t().clone()
    weight.zero_()
    assert torch.equal(packed.unpack(), expected)


@every_format
def test_spec_and_buffers_rebuild_the_weight(fmt: Format) -> None:
    weight = fitting(fmt, sparse_weight((9, 40), 0.3, torch.Generator().manual_seed(1)))
    packed = fmt.pack(weight)
    again = WEIGHTS[packed.stem](**packed.spec(), **dict(packed.named_buffers())).use()
    assert torch.equal(again.unpack(), weight)
    x = torch.randn(3, 40)
    assert torch.equal(again.linear(x, None), packed.linear(x, None))


def test_rows_layout_is_as_documented() -> None:
    packed = Csr("rows").pack(torch.tensor([[1.0, 0, 2, 0], [0, 0, 0, 3]]))
    assert [b.tolist() for b in packed.buffers()] == [[1, 2, 3], [0, 2, 3], [], [0, 2, 3]]


def test_groups_layout_is_as_documented() -> None:
    weight = torch.tensor([[1.0, 0, 5, 0], [0, 2, 0, 0], [0, 3, 6, 4], [0.0] * 4])
    packed = Csr("groups").pack(weight)
    values, columns, counts, starts = (b.tolist() for b in packed.buffers())
    # pattern 1: column 0; pattern 4: column 3; pattern 5: column 2; pattern 6: column 1
    assert columns == [0, 3, 2, 1]
    assert values == [1, 4, 5, 6, 2, 3]
    assert torch.tensor(counts).flatten().tolist() == [1, 0, 0, 1, 1, 1, *[0] * 9]
    assert starts == [[0, 0], [6, 4]]


def test_groups_of_whole_segments_have_rows_that_share_columns() -> None:
    weight = torch.zeros(128, 32)
    of = torch.arange(128) * 7 % 16  # four rows of every segment share their two columns
    weight[torch.arange(128), 2 * of] = weight[torch.arange(128), 2 * of + 1] = 1.0
    packed = Csr("groups", 32).pack(weight)
    numbers, counts = packed.counts[0, :, :4].long(), packed.counts[0, :, 4:]
    assert numbers.view(2, 64).sort(-1).values.tolist() == [list(range(64))] * 2
    rows = numbers + torch.arange(32)[:, None] // 16 * 64
    assert (of[rows] == of[rows[:, :1]]).all()
    assert counts.tolist() == [[*[0] * 14, 2]] * 32


def test_groups_of_whole_segments_load_fewer_columns() -> None:
    weight = sparse_weight((128, 256), 0.3, torch.Generator().manual_seed(3))
    numbered, in_order = (Csr("groups").pack(weight, groups) for groups in (2, 4))
    assert (numbered.counts.shape[-1], in_order.counts.shape[-1]) == (19, 15)
    assert numbered.columns.numel() < 0.95 * in_order.columns.numel()
    for packed in (numbered, in_order):
        assert torch.equal(packed.unpack(), weight)


def test_bitmask_layout_is_as_documented() -> None:
    packed = Bitmask().pack(torch.tensor([[1.0, 0, 5], [0, 3, 0], [2, 4, 0]]))
    values, masks, starts = (b.tolist() for b in packed.buffers())
    assert values == [1, 2, 3, 4, 5]
    assert masks == [[[0b101, *[0] * 7], [0b110, *[0] * 7], [0b001, *[0] * 7]]]
    assert starts == [0, 5]


def test_bitmask_units_follow_each_other() -> None:
    weight = torch.zeros(130, 2)
    weight[0, 1], weight[63, 0], weight[64, 1], weight[129, 0] = 1.0, 2.0, 3.0, 4.0
    packed = Bitmask().pack(weight)
    values, masks, starts = packed.buffers()
    assert (values.tolist(), starts.tolist()) == ([2, 1, 3, 4], [0, 2, 3, 4])
    assert masks.shape == (3, 2, 8)
    assert masks.nonzero().tolist() == [[0, 0, 7], [0, 1, 0], [1, 1, 0], [2, 0, 0]]
    assert masks[masks != 0].tolist() == [128, 1, 1, 2]


def test_bitmask_serves_no_convolution() -> None:
    packed = Bitmask().pack(torch.eye(4))
    with pytest.raises(ValueError, match="conv2d: weight must be of a format that serves Conv2d"):
        packed.conv2d(torch.ones(1, 4, 2, 2), None, (1, 1), (1, 1), (0, 0), (1, 1), 1)


def test_sorted_layout_is_as_documented() -> None:
    packed = Csr("sorted").pack(torch.tensor([[1.0, 0, 2, 3], [4, 5, 0, 0]]))
    values, columns, counts, starts = (b.tolist() for b in packed.buffers())
    # Row 1 has fewer columns for itself and comes first; both have column 0.
    assert (values, columns) == ([4, 1, 5, 2, 3], [0, 1, 2, 3])
    assert counts == [[[1, 0, 1, 1, 2]]]
    assert starts == [[0, 0], [5, 4]]


def test_sorted_layout_pairs_rows_that_share_columns() -> None:
    weight = torch.zeros(5, 6)
    weight[0, :3], weight[1, 3:], weight[2, 4] = 1.0, 2.0, 5.0
    weight[3, :3], weight[4, 3:] = 3.0, 4.0
    packed = Csr("sorted").pack(weight)
    values, columns, counts, starts = (b.tolist() for b in packed.buffers())
    # Rows 0 and 3, 1 and 4 have all columns in common; row 2 is left alone, and comes last.
    assert counts == [[[3, 0, 3, 0, 0], [4, 1, 3, 0, 0], [2, 2, 0, 0, 1]]]
    assert values == [3, 1, 3, 1, 3, 1, 4, 2, 4, 2, 4, 2, 5]
    assert columns == [0, 1, 2, 3, 4, 5, 4]
    assert starts == [[0, 0], [13, 7]]


def test_sorted_layout_pairs_within_segments_and_blocks() -> None:
    g = torch.Generator().manual_seed(3)
    weight = sparse_weight((300, 200), 0.3, g)
    packed = Csr("sorted", 64).pack(weight)
    counts = packed.counts.long()
    assert counts.shape == (4, 150, 5)
    for block, pairs in enumerate(counts):
        for number, (one, two, shared, less, more) in enumerate(pairs.tolist()):
            segment = number // 64
            columns = slice(64 * block, 64 * block + 64)
            a, b = (weight[128 * segment + row, columns] != 0 for row in (one, two))
            assert shared == int((a & b).sum()) and less <= more
            assert (less, more) == (int((a & ~b).sum()), int((b & ~a).sum()))
    order = [tuple(pair[2:]) for pair in counts[0, :64].tolist()]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("fmt", "weight", "groups", "reason"),
    [
        (Csr("rows"), torch.zeros(4, 4, dtype=torch.float64), 1, "weight is float64"),
        (Csr("groups"), torch.zeros(4, 4, dtype=torch.bfloat16), 1, "weight is bfloat16"),
        (Csr("rows"), torch.empty(1, 1 << 16 | 1, device="meta"), 1, "65537"),
        (Csr("groups"), torch.empty(1 << 16, 1 << 15, device="meta"), 1, "32 bits"),
        (Csr("groups"), torch.zeros(6, 4), 2, "divisible by 4, got 3"),
        (Bitmask(), torch.zeros(4, 4, 1), 1, "3 dimensions"),
        (Bitmask(), torch.zeros(4, 4, dtype=torch.float64), 1, "weight is float64"),
        (Bitmask(), torch.empty(1 << 16, 1 << 15, device="meta"), 1, "32 bits"),
        (Bitmask(), torch.zeros(6, 4), 2, "not the groups of a convolution"),
    ],
)
def test_refuses_with_reason(fmt: Format, weight: Tensor, groups: int, reason: str) -> None:
    assert reason in (fmt.refuses(weight, groups) or "")
    with pytest.raises(ValueError, match=reason):
        fmt.pack(weight, groups)


def test_groups_layout_takes_more_columns_than_rows_layout() -> None:
    weight = torch.zeros(2, 70_000)
    weight[1, -1] = 2.0
    packed = Csr("groups").pack(weight)
    x = torch.randn(5, 70_000)
    assert_matches(packed.linear(x, None), dense_linear(x, weight, None))


def test_unknown_layout() -> None:
    with pytest.raises(ValueError, match=r"Csr: layout must be .*, got 'row'; did you mean 'rows'"):
        Csr("row")


THREADED = {
    "panels": LinearProblem("threads_panels", rows=131, cols=300, batch=(70,)),
    "one_token": LinearProblem("threads_one_token", rows=701, cols=500, batch=(1,)),
    "four_tokens": LinearProblem("threads_four_tokens", rows=401, cols=300, batch=(4,)),
    "conv": ConvProblem("threads_conv", rows=24, channels=16, size=(17, 19)),
    "depthwise": ConvProblem("threads_depthwise", rows=64, channels=64, size=(25, 25), groups=64),
}


def runner(fmt: Format, problem: LinearProblem | ConvProblem):  # type: ignore[no-untyped-def]
    """A call of the packed layer, and the dense result; None where the format refuses."""
    x, weight, bias = problem.tensors()
    weight = fitting(fmt, weight, getattr(problem, "groups", 1))
    if isinstance(problem, LinearProblem):
        packed = fmt.pack(weight)
        return lambda: packed.linear(x, bias), dense_linear(x, weight, bias)
    if "Conv2d" not in fmt.serves or fmt.refuses(weight.flatten(1), problem.groups):
        pytest.skip("the format refuses")
    packed = fmt.pack(weight.flatten(1), problem.groups)
    return (
        lambda: packed.conv2d(x, bias, problem.kernel, *problem.window),
        dense_conv2d(x, weight, bias, *problem.window),
    )


@pytest.mark.parametrize("kind", THREADED)
@every_backend
@every_format
def test_thread_count_changes_nothing(fmt: Format, backend: str, kind: str, threads: int) -> None:
    with backends.only(backend):
        run, expected = runner(fmt, THREADED[kind])
        first = None
        for count in (1, 2, 3, threads + 3):
            torch.set_num_threads(count)
            y = run()
            assert_matches(y, expected)
            assert torch.equal(y, run()), "the same call gave different bits"
            first = y if first is None else first
            if backend != "reference":
                assert torch.equal(y, first), f"{count} threads gave other bits than one"


@pytest.mark.parametrize("kind", THREADED)
@every_format
def test_concurrent_calls_agree(fmt: Format, kind: str) -> None:
    run, expected = runner(fmt, THREADED[kind])
    with ThreadPoolExecutor(4) as pool:
        for y in pool.map(lambda _: run(), range(16)):
            assert_matches(y, expected)


@every_format
def test_scratch_memory_survives_growing_and_shrinking(fmt: Format) -> None:
    """Kernels keep memory from call to call; a small call must not see a large one's rest."""
    for size in (16, 700, 3, 300, 1, 1000):
        weight = torch.eye(size)
        x = torch.full((9, size), torch.nan if size > 500 else 1.0)
        y = fmt.pack(weight).linear(x, None)
        assert_matches(y, x.double())
