"""The ops of formats that serve Linear layers alone, as torch sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import TOLERANCE, dense_linear, sparse_weight
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sparseprune.formats import Bitmask, Format, Sell
from sparseprune.nn import SparseLinear
from sparseprune.ops.bitmask import BITMASK
from sparseprune.ops.linear import LinearFormat
from sparseprune.ops.sell import SELL

FORMATS: dict[str, tuple[Format, LinearFormat]] = {
    "bitmask": (Bitmask(), BITMASK),
    "sell": (Sell(), SELL),
}
every_format = pytest.mark.parametrize("stem", FORMATS)
every_namespace = pytest.mark.parametrize("namespace", ["sparseprune", "sparseprune_reference"])


def arguments(stem: str, op: str = "linear") -> dict[str, Any]:
    """Good arguments of an op, by name, in the order of its schema: a weight of 70 x 18."""
    g = torch.Generator().manual_seed(3)
    fmt, ops = FORMATS[stem]
    packed = fmt.pack(sparse_weight((70, 18), 0.4, g))
    known: dict[str, Any] = {part: getattr(packed, part) for part in ops.parts}
    known |= {"rows": 70, "cols": 18, "low": None, "high": None}
    known |= {"x": torch.randn(5, 18, generator=g), "bias": torch.randn(70, generator=g)}
    schema = overload("sparseprune", stem, op)._schema
    return {a.name: known[a.name] for a in schema.arguments}


def overload(namespace: str, stem: str, op: str = "linear") -> Any:
    return getattr(getattr(torch.ops, namespace), f"{stem}_{op}").default


@every_format
@every_namespace
@pytest.mark.parametrize("variant", ["plain", "no_bias", "one", "gradients", "transposed", "relu"])
def test_opcheck(namespace: str, stem: str, variant: str) -> None:
    args = arguments(stem)
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
    torch.library.opcheck(overload(namespace, stem), tuple(args.values()))


@every_format
@every_namespace
def test_opcheck_unpack(namespace: str, stem: str) -> None:
    assert set(FORMATS[stem][1].schemas) == {f"{stem}_linear", f"{stem}_unpack"}
    args = arguments(stem, "unpack")
    torch.library.opcheck(overload(namespace, stem, "unpack"), tuple(args.values()))


@every_format
@every_namespace
@pytest.mark.parametrize("tokens", [1, 4, 9])
@pytest.mark.parametrize("clamp", [(None, None), (0.0, None), (-0.5, 0.5)], ids=str)
def test_gradients_are_dense_ones(
    namespace: str, stem: str, tokens: int, clamp: tuple[float | None, float | None]
) -> None:
    args = arguments(stem)
    weight = overload("sparseprune", stem, "unpack")(*arguments(stem, "unpack").values())
    leaves = torch.randn(2, tokens, 18, requires_grad=True), args["bias"].requires_grad_()
    args["x"] = leaves[0]
    args["low"], args["high"] = clamp
    out = overload(namespace, stem)(*args.values())
    expected = F.linear(leaves[0], weight, leaves[1])
    expected = expected if clamp == (None, None) else expected.clamp(*clamp)
    torch.testing.assert_close(out, expected, **TOLERANCE)
    grad = torch.randn_like(out)
    got = torch.autograd.grad(out, leaves, grad)
    torch.testing.assert_close(got, torch.autograd.grad(expected, leaves, grad), **TOLERANCE)


def layer(stem: str) -> tuple[SparseLinear, nn.Linear, Tensor]:
    dense = nn.Linear(40, 24)
    dense.weight.data = sparse_weight((24, 40), 0.3, torch.Generator().manual_seed(5))
    return SparseLinear.from_dense(dense, FORMATS[stem][0]), dense, torch.randn(6, 40)


@every_format
@pytest.mark.parametrize("dynamic", [False, True])
def test_export(stem: str, dynamic: bool) -> None:
    sparse, dense, x = layer(stem)
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    program = torch.export.export(sparse, (x,), dynamic_shapes=shapes, strict=False)
    for batch in (x, torch.cat([x, x])) if dynamic else (x,):
        torch.testing.assert_close(program.module()(batch), dense(batch), **TOLERANCE)


@every_format
def test_compiles_as_one_graph(stem: str) -> None:
    sparse, dense, x = layer(stem)
    torch._dynamo.reset()
    compiled = torch.compile(sparse, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (x, torch.cat([x, x])):
        torch.testing.assert_close(compiled(batch), dense(batch), **TOLERANCE)


@every_format
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_is_widened(stem: str, dtype: torch.dtype) -> None:
    fmt = FORMATS[stem][0]
    weight = sparse_weight((70, 18), 0.4, torch.Generator().manual_seed(3)).to(dtype)
    x, bias = torch.randn(3, 18).to(dtype), torch.randn(70).to(dtype)
    y = fmt.pack(weight).linear(x, bias)
    assert y.dtype == dtype
    expected = dense_linear(x.float(), weight.float(), bias.float())
    torch.testing.assert_close(y.double(), expected, rtol=2e-2, atol=2e-2)


Change = Callable[[dict[str, Any]], dict[str, Any]]
Bad = dict[str, tuple[Change, str]]
BAD: Bad = {
    "x_float64": (lambda a: {"x": a["x"].double()}, "x must be float32"),
    "x_half": (lambda a: {"x": a["x"].half()}, "x must be float32, the dtype"),
    "x_narrow": (lambda a: {"x": a["x"][:, :-1]}, "18 features in its last dimension"),
    "x_scalar": (lambda a: {"x": torch.tensor(1.0)}, "18 features in its last dimension"),
    "cols_wrong": (lambda a: {"cols": 17}, "17 features in its last dimension"),
    "rows_negative": (lambda a: {"rows": -1}, "rows and cols"),
    "rows_beyond_bias": (lambda a: {"rows": 71}, "bias"),
    "bias_short": (lambda a: {"bias": a["bias"][:-1]}, "bias"),
    "bias_float64": (lambda a: {"bias": a["bias"].double()}, "bias"),
    "values_float64": (lambda a: {"values": a["values"].double()}, "values"),
    "values_strided": (lambda a: {"values": a["values"][::2]}, "values"),
    "values_meta": (lambda a: {"values": a["values"].to("meta")}, "values must be on the device"),
    "starts_short": (lambda a: {"starts": a["starts"][:-1]}, "starts"),
    "starts_int64": (lambda a: {"starts": a["starts"].long()}, "starts"),
}
BAD_OF: dict[str, Bad] = {
    "bitmask": {
        "cols_larger": (lambda a: {"cols": 19, "x": torch.zeros(1, 19)}, "masks"),
        "rows_beyond_masks": (lambda a: {"rows": 129, "bias": None}, "masks"),
        "masks_int64": (lambda a: {"masks": a["masks"].long()}, "masks"),
        "masks_short": (lambda a: {"masks": a["masks"].flatten()[:-1]}, "masks"),
    },
    "sell": {
        "rows_beyond_starts": (lambda a: {"rows": 81, "bias": None}, "starts"),
        "values_short": (lambda a: {"values": a["values"][:-1]}, "values"),
        "columns_short": (lambda a: {"columns": a["columns"][:-1]}, "columns"),
        "columns_int64": (lambda a: {"columns": a["columns"].long()}, "columns"),
        "windows_int32": (lambda a: {"windows": a["windows"].int()}, "windows"),
    },
}
CASES = [(stem, name) for stem in FORMATS for name in (*BAD, *BAD_OF[stem])]


@pytest.mark.parametrize(("stem", "name"), CASES)
@pytest.mark.parametrize("how", ["native", "reference", "fake"])
def test_bad_argument_is_named(
    how: str, stem: str, name: str, request: pytest.FixtureRequest
) -> None:
    """The compiled kernel, the reference and the fake kernel all say what was wrong."""
    if how == "native":
        request.getfixturevalue("no_fallback")
    change, message = {**BAD, **BAD_OF[stem]}[name]
    args = arguments(stem)
    args |= change(args)
    run = overload("sparseprune_reference" if how == "reference" else "sparseprune", stem)
    with pytest.raises((RuntimeError, ValueError), match=f"{stem}_linear.*{message}"):
        if how == "fake":
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                run(*(mode.from_tensor(v) if isinstance(v, Tensor) else v for v in args.values()))
        else:
            run(*args.values())


CUT = {"bitmask": ("values",), "sell": ("windows",)}
"""What a broken file could cut short unnoticed but for what starts counts."""


@every_format
@pytest.mark.usefixtures("no_fallback")
def test_truncated_weights_are_refused(stem: str) -> None:
    """They must not be read past their end."""
    for part in CUT[stem]:
        args = arguments(stem)
        args[part] = args[part][:-1].clone()
        with pytest.raises(RuntimeError, match=f"{stem}_linear: {part} must have the"):
            overload("sparseprune", stem)(*args.values())
