"""The nm ops as torch sees them: opcheck, gradients, compile, export, and every bad argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import TOLERANCE, fitting, sparse_weight
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sparseprune import prune
from sparseprune.formats import Nm, NmWeight
from sparseprune.nn import SparseConv2d, SparseLinear
from sparseprune.ops.nm import SCHEMAS

WINDOW = {"kernel_size": [3, 2], "stride": [2, 1], "padding": [1, 0], "dilation": [1, 2]}

every_namespace = pytest.mark.parametrize("namespace", ["sparseprune", "sparseprune_reference"])
every_op = pytest.mark.parametrize("op", SCHEMAS)


def arguments(op: str = "nm_linear") -> dict[str, Any]:
    """Good arguments of an op, by name, in the order of its schema: a 2:4 weight of 16 x 18."""
    g = torch.Generator().manual_seed(3)
    packed = Nm(2, 4).pack(fitting(Nm(2, 4), sparse_weight((16, 18), 0.5, g)))
    known: dict[str, Any] = dict(zip(NmWeight.parts, packed.packed(), strict=True))
    known |= {"rows": 16, "cols": 18, "n": 2, "m": 4, "taps": 1, **WINDOW, "groups": 2}
    known |= {"low": None, "high": None}
    size = (2, 6, 7, 8) if op == "nm_conv2d" else (5, 18)
    known |= {"x": torch.randn(*size, generator=g), "bias": torch.randn(16, generator=g)}
    return {a.name: known[a.name] for a in overload("sparseprune", op)._schema.arguments}


def overload(namespace: str, op: str) -> Any:
    return getattr(getattr(torch.ops, namespace), op).default


@every_namespace
@every_op
@pytest.mark.parametrize(
    "variant", ["plain", "no_bias", "one", "gradients", "transposed", "relu", "taps", "half"]
)
def test_opcheck(namespace: str, op: str, variant: str) -> None:
    args = arguments(op)
    if op == "nm_unpack" and variant not in ("plain", "taps", "half"):
        pytest.skip("nm_unpack has neither x nor bias")
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
        args["x"] = args["x"].transpose(0, -1).contiguous().transpose(0, -1)
    if variant == "taps" and "taps" in args:
        args["taps"] = 6
    if variant == "half":
        args = {k: v.half() if _floating(v) else v for k, v in args.items()}
    torch.library.opcheck(overload(namespace, op), tuple(args.values()))


def _floating(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


@every_namespace
def test_opcheck_channels_last(namespace: str) -> None:
    args = arguments("nm_conv2d")
    args["x"] = args["x"].to(memory_format=torch.channels_last)
    torch.library.opcheck(overload(namespace, "nm_conv2d"), tuple(args.values()))


@every_namespace
@pytest.mark.parametrize("clamp", [(None, None), (0.0, None), (-0.5, 0.5)], ids=str)
@pytest.mark.parametrize("op", ["nm_linear", "nm_conv2d"])
@pytest.mark.parametrize("taps", [1, 6])
def test_gradients_are_dense_ones(
    namespace: str, clamp: tuple[float | None, float | None], op: str, taps: int
) -> None:
    args = arguments(op)
    args["low"], args["high"] = clamp
    sizes = (16, 18, 2, 4, taps if op == "nm_conv2d" else 1)
    if op == "nm_conv2d":
        args["taps"] = taps
    packed = [args[name] for name in NmWeight.parts]
    weight = overload("sparseprune", "nm_unpack")(*packed, *sizes)
    leaves = args["x"].requires_grad_(), args["bias"].requires_grad_()
    out = overload(namespace, op)(*args.values())
    if op == "nm_linear":
        expected = F.linear(leaves[0], weight, leaves[1])
    else:
        window = [args[name] for name in ("stride", "padding", "dilation", "groups")]
        expected = F.conv2d(leaves[0], weight.view(16, 3, 3, 2), leaves[1], *window)
    expected = expected if clamp == (None, None) else expected.clamp(*clamp)
    torch.testing.assert_close(out, expected, **TOLERANCE)
    grad = torch.randn_like(out)
    got = torch.autograd.grad(out, leaves, grad)
    torch.testing.assert_close(got, torch.autograd.grad(expected, leaves, grad), **TOLERANCE)


def layers() -> dict[str, tuple[nn.Module, nn.Module, Tensor]]:
    """Name -> sparse layer, its dense twin, an input."""
    linear, conv = nn.Linear(40, 24), nn.Conv2d(8, 16, 3, padding=1)
    prune(nn.Sequential(linear, conv), sparsity=0.5, pattern="2:4")
    return {
        "linear": (SparseLinear.from_dense(linear, Nm()), linear, torch.randn(6, 40)),
        "conv2d": (SparseConv2d.from_dense(conv, Nm()), conv, torch.randn(3, 8, 9, 8)),
    }


@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_compiles_and_exports(name: str) -> None:
    sparse, dense, x = layers()[name]
    torch._dynamo.reset()
    compiled = torch.compile(sparse, fullgraph=True, backend="aot_eager", dynamic=True)
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(sparse, (x,), dynamic_shapes=shapes, strict=False)
    for batch in (x, torch.cat([x, x])):
        torch.testing.assert_close(compiled(batch), dense(batch), **TOLERANCE)
        torch.testing.assert_close(program.module()(batch), dense(batch), **TOLERANCE)


# --- bad arguments

Change = Callable[[dict[str, Any]], dict[str, Any]]
BAD: dict[str, tuple[Change, str]] = {
    "x_float64": (lambda a: {"x": a["x"].double()}, "x must be float32, float16 or bfloat16"),
    "x_half": (lambda a: {"x": a["x"].half()}, "x must be float32, the dtype of the weight"),
    "rows_negative": (lambda a: {"rows": -2}, "rows and cols"),
    "rows_beyond_values": (lambda a: {"rows": 18, "bias": None}, "values"),
    "rows_beyond_bias": (lambda a: {"bias": a["bias"][:-1]}, "bias"),
    "bias_float64": (lambda a: {"bias": a["bias"].double()}, "bias"),
    "n_zero": (lambda a: {"n": 0}, "n and m must be 1 <= n < m <= 16, got 0, 4"),
    "n_of_n": (lambda a: {"n": 4}, "n and m must be"),
    "n_more": (lambda a: {"n": 3}, "values"),
    "m_large": (lambda a: {"m": 17}, "n and m must be"),
    "values_short": (lambda a: {"values": a["values"][:-1]}, "values"),
    "values_strided": (lambda a: {"values": a["values"].t()}, "values"),
    "values_meta": (lambda a: {"values": a["values"].to("meta")}, "values must be on the device"),
    "places_short": (lambda a: {"places": a["places"][:-1]}, "places"),
    "places_int32": (lambda a: {"places": a["places"].int()}, "places"),
}
BAD_CONV: dict[str, tuple[Change, str]] = {
    **BAD,
    "x_three_dimensions": (lambda a: {"x": a["x"][0]}, r"x must be \[batch, channels"),
    "x_narrow": (lambda a: {"x": a["x"][:, :-1]}, "x must have 6 channels"),
    "x_small": (lambda a: {"x": a["x"][..., :1]}, "the padded input must be"),
    "taps_wrong": (lambda a: {"taps": 9}, "taps must be 1 or 6, the size of the kernel, got 9"),
    "taps_zero": (lambda a: {"taps": 0}, "taps must be 1 or 6"),
    "stride_one_number": (lambda a: {"stride": [1]}, "must be pairs"),
    "stride_zero": (lambda a: {"stride": [0, 1]}, "must be positive"),
}
BAD_LINEAR: dict[str, tuple[Change, str]] = {
    **BAD,
    "x_narrow": (lambda a: {"x": a["x"][:, :-1]}, "18 features in its last dimension"),
    "x_scalar": (lambda a: {"x": torch.tensor(1.0)}, "18 features in its last dimension"),
}
CASES = [
    (op, name)
    for op, cases in {"nm_linear": BAD_LINEAR, "nm_conv2d": BAD_CONV}.items()
    for name in cases
]


@pytest.mark.parametrize(("op", "name"), CASES)
@pytest.mark.parametrize("how", ["native", "reference", "fake"])
def test_bad_argument_is_named(
    how: str, op: str, name: str, request: pytest.FixtureRequest
) -> None:
    """The compiled kernel, the reference and the fake kernel all say what was wrong."""
    if how == "native":
        request.getfixturevalue("no_fallback")
    change, message = (BAD_LINEAR if op == "nm_linear" else BAD_CONV)[name]
    args = arguments(op)
    args |= change(args)
    run = overload("sparseprune_reference" if how == "reference" else "sparseprune", op)
    with pytest.raises((RuntimeError, ValueError), match=f"{op}.*{message}"):
        if how == "fake":
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                run(*(mode.from_tensor(v) if isinstance(v, Tensor) else v for v in args.values()))
        else:
            run(*args.values())
