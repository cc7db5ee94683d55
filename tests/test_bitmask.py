"""The bitmask ops as torch sees them, and when convert takes the format."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import TOLERANCE, dense_linear, sparse_weight
from scripted_times import script_times
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sparseprune import backends, convert, info, profile
from sparseprune.formats import Bitmask, bitmask_check
from sparseprune.formats.bitmask import MAX_TOKENS as MOST
from sparseprune.formats.bitmask import MAX_TOKENS_HALF as MOST_HALF
from sparseprune.nn import SparseConv2d, SparseLinear
from sparseprune.ops.bitmask import SCHEMAS

MAX_TOKENS = MOST["cpu"]
every_namespace = pytest.mark.parametrize("namespace", ["sparseprune", "sparseprune_reference"])


def arguments(op: str = "bitmask_linear") -> dict[str, Any]:
    """Good arguments of an op, by name, in the order of its schema: a weight of 70 x 18."""
    g = torch.Generator().manual_seed(3)
    packed = Bitmask().pack(sparse_weight((70, 18), 0.4, g))
    known: dict[str, Any] = dict(zip(("values", "masks", "starts"), packed.packed(), strict=True))
    known |= {"rows": 70, "cols": 18, "low": None, "high": None}
    known |= {"x": torch.randn(5, 18, generator=g), "bias": torch.randn(70, generator=g)}
    schema = overload("sparseprune", op)._schema
    return {a.name: known[a.name] for a in schema.arguments}


def overload(namespace: str, op: str = "bitmask_linear") -> Any:
    return getattr(getattr(torch.ops, namespace), op).default


@every_namespace
@pytest.mark.parametrize("variant", ["plain", "no_bias", "one", "gradients", "transposed", "relu"])
def test_opcheck(namespace: str, variant: str) -> None:
    args = arguments()
    if variant == "no_bias":
        args["bias"] = None
    if variant == "one":
        args["x"] = args["x"][:1]
    if variant == "gradients":
        args["x"].requires_grad_()
        args["bias"].requires_grad_()
    if variant == "relu":
        args["low"] = 0.0
        args["x"].requires_grad_()
    if variant == "transposed":
        args["x"] = args["x"].t().contiguous().t()
    torch.library.opcheck(overload(namespace), tuple(args.values()))


@every_namespace
def test_opcheck_unpack(namespace: str) -> None:
    assert set(SCHEMAS) == {"bitmask_linear", "bitmask_unpack"}
    args = arguments("bitmask_unpack")
    torch.library.opcheck(overload(namespace, "bitmask_unpack"), tuple(args.values()))


@every_namespace
@pytest.mark.parametrize("tokens", [1, 4, 9])
@pytest.mark.parametrize("clamp", [(None, None), (0.0, None), (-0.5, 0.5)], ids=str)
def test_gradients_are_dense_ones(
    namespace: str, tokens: int, clamp: tuple[float | None, float | None]
) -> None:
    args = arguments()
    weight = overload("sparseprune", "bitmask_unpack")(*arguments("bitmask_unpack").values())
    leaves = torch.randn(2, tokens, 18, requires_grad=True), args["bias"].requires_grad_()
    args["x"] = leaves[0]
    args["low"], args["high"] = clamp
    out = overload(namespace)(*args.values())
    expected = F.linear(leaves[0], weight, leaves[1])
    expected = expected if clamp == (None, None) else expected.clamp(*clamp)
    torch.testing.assert_close(out, expected, **TOLERANCE)
    grad = torch.randn_like(out)
    got = torch.autograd.grad(out, leaves, grad)
    torch.testing.assert_close(got, torch.autograd.grad(expected, leaves, grad), **TOLERANCE)


def layer() -> tuple[SparseLinear, nn.Linear, Tensor]:
    dense = nn.Linear(40, 24)
    dense.weight.data = sparse_weight((24, 40), 0.3, torch.Generator().manual_seed(5))
    return SparseLinear.from_dense(dense, Bitmask()), dense, torch.randn(6, 40)


@pytest.mark.parametrize("dynamic", [False, True])
def test_export(dynamic: bool) -> None:
    sparse, dense, x = layer()
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    program = torch.export.export(sparse, (x,), dynamic_shapes=shapes, strict=False)
    for batch in (x, torch.cat([x, x])) if dynamic else (x,):
        torch.testing.assert_close(program.module()(batch), dense(batch), **TOLERANCE)


def test_compiles_as_one_graph() -> None:
    sparse, dense, x = layer()
    torch._dynamo.reset()
    compiled = torch.compile(sparse, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (x, torch.cat([x, x])):
        torch.testing.assert_close(compiled(batch), dense(batch), **TOLERANCE)


Change = Callable[[dict[str, Any]], dict[str, Any]]
BAD: dict[str, tuple[Change, str]] = {
    "x_float64": (lambda a: {"x": a["x"].double()}, "x must be float32"),
    "x_narrow": (lambda a: {"x": a["x"][:, :-1]}, "18 features in its last dimension"),
    "x_scalar": (lambda a: {"x": torch.tensor(1.0)}, "18 features in its last dimension"),
    "cols_wrong": (lambda a: {"cols": 17}, "17 features in its last dimension"),
    "cols_larger": (lambda a: {"cols": 19, "x": torch.zeros(1, 19)}, "masks"),
    "rows_negative": (lambda a: {"rows": -1}, "rows and cols"),
    "rows_beyond_masks": (lambda a: {"rows": 129, "bias": None}, "masks"),
    "rows_beyond_bias": (lambda a: {"rows": 71}, "bias"),
    "bias_short": (lambda a: {"bias": a["bias"][:-1]}, "bias"),
    "bias_float64": (lambda a: {"bias": a["bias"].double()}, "bias"),
    "values_float64": (lambda a: {"values": a["values"].double()}, "values"),
    "values_strided": (lambda a: {"values": a["values"][::2]}, "values"),
    "values_meta": (lambda a: {"values": a["values"].to("meta")}, "values must be on the device"),
    "masks_int64": (lambda a: {"masks": a["masks"].long()}, "masks"),
    "masks_short": (lambda a: {"masks": a["masks"].flatten()[:-1]}, "masks"),
    "starts_short": (lambda a: {"starts": a["starts"][:-1]}, "starts"),
    "starts_int64": (lambda a: {"starts": a["starts"].long()}, "starts"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("how", ["native", "reference", "fake"])
def test_bad_argument_is_named(how: str, name: str, request: pytest.FixtureRequest) -> None:
    """The compiled kernel, the reference and the fake kernel all say what was wrong."""
    if how == "native":
        request.getfixturevalue("no_fallback")
    change, message = BAD[name]
    args = arguments()
    args |= change(args)
    run = overload("sparseprune_reference" if how == "reference" else "sparseprune")
    with pytest.raises((RuntimeError, ValueError), match=f"bitmask_linear.*{message}"):
        if how == "fake":
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                run(*(mode.from_tensor(v) if isinstance(v, Tensor) else v for v in args.values()))
        else:
            run(*args.values())


@pytest.mark.usefixtures("no_fallback")
def test_truncated_weights_are_refused() -> None:
    """Values that a broken file cut short must not be read past their end."""
    args = arguments()
    args["values"] = args["values"][:-1].clone()
    with pytest.raises(RuntimeError, match="bitmask_linear: values must have the"):
        overload("sparseprune")(*args.values())


# --- what the check of a loaded weight finds


def test_random_weights_pass_the_check_or_are_refused() -> None:
    chance = torch.Generator().manual_seed(0)
    for rows, cols in [(0, 5), (5, 0), (1, 1), (3, 17), (64, 9), (130, 250)]:
        dense = torch.randn(rows, cols, generator=chance)
        weight = Bitmask().pack(dense * (torch.rand(rows, cols, generator=chance) < 0.3))
        bitmask_check.check(weight)
        for buffer in ("masks", "starts"):
            for _ in range(20):
                changed = copy.deepcopy(weight)
                flat = getattr(changed, buffer).view(-1)
                if not len(flat):
                    continue
                place = int(torch.randint(len(flat), (), generator=chance))
                value = int(torch.randint(256, (), generator=chance))
                if int(flat[place]) == value:
                    continue
                flat[place] = value
                try:
                    bitmask_check.check(changed)
                except ValueError:
                    continue
                x = torch.randn(2, cols, generator=chance)  # as many bits, elsewhere: harmless
                y = changed.linear(x, None).double()
                torch.testing.assert_close(y, dense_linear(x, changed.unpack(), None), **TOLERANCE)


def test_values_past_the_last_row_are_refused() -> None:
    weight = Bitmask().pack(torch.eye(70))
    weight.masks[1, 69] = weight.masks[1, 69].roll(1)  # row 69 becomes 77
    with pytest.raises(ValueError, match=r"bitmask_check: .* rows past 70"):
        bitmask_check.check(weight)
    with pytest.raises(ValueError, match="a convolution of 1 groups"):
        bitmask_check.check_groups(weight, 1)


# --- what convert, info, profile and backends make of it


def converted(tokens: int, layer: nn.Module | None = None, **options: Any) -> nn.Module:
    """A layer of 20 x 12, 80 % sparse, as convert returns it."""
    dense = layer or nn.Linear(20, 12)
    dense.weight.data = sparse_weight(  # type: ignore[union-attr]
        tuple(dense.weight.shape),
        0.2,
        torch.Generator().manual_seed(1),  # type: ignore[union-attr, arg-type]
    )
    x = torch.randn(tokens, 20) if layer is None else torch.randn(1, 4, 6, 6)
    return convert(nn.Sequential(dense), x, **options)


def test_convert_times_it_for_few_rows_of_input_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def ms(name: str) -> float:
        seen.append(name)
        return 0.1 if name in ("bitmask", "layers", "programs") else 1.0

    script_times(monkeypatch, ms)
    fast = converted(MAX_TOKENS)
    assert fast.report.rows[0].kernel.startswith("bitmask")
    assert isinstance(fast[0], SparseLinear) and fast[0].weight.name == "bitmask"
    seen.clear()
    converted(MAX_TOKENS + 1)
    assert "bitmask" not in seen and "csr/rows" in seen


@pytest.mark.usefixtures("sparse_wins")
def test_convert_takes_it_by_name_for_any_number_of_rows() -> None:
    fast = converted(100, format="bitmask")
    assert fast[0].weight.name == "bitmask"
    counted = profile(fast, torch.randn(100, 20)).rows[0]
    assert (counted.runs, counted.executed_macs) == ("bitmask", 100 * fast[0].weight.nonzeros)


@pytest.mark.usefixtures("sparse_wins")
def test_convert_keeps_convolutions_from_it() -> None:
    fast = converted(1, nn.Conv2d(4, 8, 3))
    assert isinstance(fast[0], SparseConv2d) and fast[0].weight.stem == "csr"
    alone = converted(1, nn.Conv2d(4, 8, 3), format="bitmask", keep_dense="never")
    assert type(alone[0]) is nn.Conv2d
    assert alone.report.rows[0].reason == "bitmask serves Linear alone"


def test_without_kernels_for_a_device_the_reference_serves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = torch.device("cuda")
    here = tuple(replace(b, missing=None) if b.name == "cuda" else b for b in backends.BACKENDS)
    monkeypatch.setattr(backends, "BACKENDS", here)
    monkeypatch.setattr(backends, "_told", False)
    with pytest.warns(UserWarning, match="reference on cuda.*cuda: has no bitmask kernels"):
        chosen = backends.choose(cuda, "auto", "bitmask")
    assert chosen is backends.REFERENCE
    with pytest.raises(ValueError, match="got 'cuda'; has no bitmask kernels"):
        backends.choose(cuda, "cuda", "bitmask")
    assert not backends.serves("cuda", cuda, "bitmask")
    rows = {r.backend: r for r in info().rows if r.format == "bitmask"}
    assert not rows["cuda"].available and rows["cuda"].reason == "has no bitmask kernels"
    assert not Bitmask().worth(torch.empty(4, 4, device="meta"), 1)


@pytest.mark.parametrize(
    ("dtype", "most"),
    [(torch.float32, MOST["cuda"]), (torch.float16, 128), (torch.bfloat16, MOST_HALF["cuda"])],
    ids=str,
)
def test_it_is_meant_for_more_rows_on_cuda_and_there_for_half(
    dtype: torch.dtype, most: int
) -> None:
    class Elsewhere:
        device = torch.device("cuda")

    weight: Any = Elsewhere()
    weight.dtype = dtype
    assert Bitmask().worth(weight, most) and not Bitmask().worth(weight, most + 1)
    assert not Bitmask().worth(torch.zeros(4, 4).half(), 1), "widened for every call"
    assert Bitmask().worth(torch.zeros(4, 4), MAX_TOKENS)
