"""Every format on every backend and edge against one float64 reference."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from problems import (
    CONV,
    LINEAR,
    TESTED,
    TOLERANCE,
    ConvProblem,
    LinearProblem,
    dense_conv2d,
    dense_linear,
    fitting,
    sparse_weight,
    stored,
)
from torch import Tensor

from sparseprune import backends
from sparseprune.formats import (
    Bitmask,
    Csr,
    Format,
    Sell,
    bitmask_check,
    csr_check,
    sell_check,
)

every_format = pytest.mark.parametrize("fmt", TESTED, ids=lambda f: f.name)
every_conv_format = pytest.mark.parametrize(
    "fmt", [f for f in TESTED if "Conv2d" in f.serves], ids=lambda f: f.name
)
every_backend = pytest.mark.parametrize("backend", backends.available())


def assert_matches(y: Tensor, expected: Tensor) -> None:
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), expected, **TOLERANCE, equal_nan=True)


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
@pytest.mark.parametrize("fmt", [Csr("rows"), Bitmask(), Sell()], ids=lambda f: f.name)
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
    checks: Any = {"csr": csr_check, "bitmask": bitmask_check, "sell": sell_check}
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


def test_groups_layout_takes_more_columns_than_rows_layout() -> None:
    weight = torch.zeros(2, 70_000)
    weight[1, -1] = 2.0
    packed = Csr("groups").pack(weight)
    x = torch.randn(5, 70_000)
    assert_matches(packed.linear(x, None), dense_linear(x, weight, None))


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
