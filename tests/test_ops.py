"""The ops as torch sees them: opcheck, gradients, compile, export, and every bad argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import TOLERANCE, sparse_weight
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sparseprune import backends
from sparseprune.formats import FORMATS, Csr
from sparseprune.nn import SparseConv2d, SparseLinear
from sparseprune.ops.csr import SCHEMAS

NAMESPACES = ("sparseprune", "sparseprune_reference")
LAYOUTS = [f.layout for f in FORMATS if isinstance(f, Csr)]
WINDOW = {
    "kernel_size": [3, 2],
    "stride": [2, 1],
    "padding": [1, 0],
    "dilation": [1, 2],
}

every_namespace = pytest.mark.parametrize("namespace", NAMESPACES)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)
every_op = pytest.mark.parametrize("op", SCHEMAS)


def arguments(op: str, layout: str) -> dict[str, Any]:
    """Good arguments of an op, by name, in the order of its schema."""
    g = torch.Generator().manual_seed(3)
    weight = sparse_weight((16, 18), 0.4, g)
    groups = 1 if op == "csr_linear" or Csr(layout).refuses(weight, 2) else 2
    packed = Csr(layout).pack(weight, groups)
    names = ("values", "columns", "counts", "starts")
    known: dict[str, Any] = dict(zip(names, packed.packed(), strict=True))
    known |= {"rows": packed.rows, "cols": packed.cols, "block": packed.block}
    known |= {**WINDOW, "groups": groups}
    known["bias"] = torch.randn(16, generator=g)
    known |= {"low": None, "high": None}
    size = (2, 3 * groups, 7, 8) if op == "csr_conv2d" else (5, 18)
    known["x"] = torch.randn(*size, generator=g)
    schema = getattr(torch.ops.sparseprune, op).default._schema
    return {a.name: known[a.name] for a in schema.arguments}


def overload(namespace: str, op: str) -> Any:
    return getattr(getattr(torch.ops, namespace), op).default


@every_namespace
@every_layout
@every_op
@pytest.mark.parametrize("variant", ["plain", "no_bias", "one", "gradients", "transposed", "relu"])
def test_opcheck(namespace: str, layout: str, op: str, variant: str) -> None:
    args = arguments(op, layout)
    if op == "csr_unpack" and variant != "plain":
        pytest.skip("csr_unpack has neither x nor bias")
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
    torch.library.opcheck(overload(namespace, op), tuple(args.values()))


@every_namespace
@pytest.mark.parametrize("tokens", [1, 4, 21])
@pytest.mark.parametrize("clamp", [(None, None), (0.0, None), (-0.5, 0.5)], ids=str)
@every_layout
def test_linear_gradients_are_dense_ones(
    namespace: str, tokens: int, clamp: tuple[float | None, float | None], layout: str
) -> None:
    args = arguments("csr_linear", layout)
    weight = overload("sparseprune", "csr_unpack")(*arguments("csr_unpack", layout).values())
    leaves = torch.randn(2, tokens, 18, requires_grad=True), args["bias"].requires_grad_()
    args["x"] = leaves[0]
    args["low"], args["high"] = clamp
    out = overload(namespace, "csr_linear")(*args.values())
    expected = F.linear(leaves[0], weight, leaves[1])
    expected = expected if clamp == (None, None) else expected.clamp(*clamp)
    assert_same_gradients(out, expected, leaves)


@every_namespace
@every_layout
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_conv2d_gradients_are_dense_ones(namespace: str, layout: str, groups: int) -> None:
    conv = nn.Conv2d(8, 16, (3, 2), (2, 1), (1, 2), (1, 2), groups)
    weight = sparse_weight(tuple(conv.weight.shape), 0.4, torch.Generator().manual_seed(1))
    if Csr(layout).refuses(weight.flatten(1), groups):
        pytest.skip("the format refuses")
    packed = Csr(layout).pack(weight.flatten(1), groups)
    packed.namespace = namespace
    leaves = torch.randn(2, 8, 9, 10, requires_grad=True), torch.randn(16, requires_grad=True)
    out = packed.conv2d(*leaves, (3, 2), (2, 1), (1, 2), (1, 2), groups, (0.0, 6.0))
    expected = F.conv2d(leaves[0], weight, leaves[1], (2, 1), (1, 2), (1, 2), groups)
    expected = F.relu6(expected)
    assert_same_gradients(out, expected, leaves)


def assert_same_gradients(out: Tensor, expected: Tensor, leaves: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(out, expected, **TOLERANCE)
    grad = torch.randn_like(out)
    got = torch.autograd.grad(out, leaves, grad)
    torch.testing.assert_close(got, torch.autograd.grad(expected, leaves, grad), **TOLERANCE)


def layers() -> dict[str, tuple[nn.Module, nn.Module, Tensor]]:
    """Name -> sparse layer, its dense twin, an input."""
    generator = torch.Generator().manual_seed(5)
    linear, conv = nn.Linear(40, 24), nn.Conv2d(4, 8, 3, padding=1)
    for layer in (linear, conv):
        layer.weight.data = sparse_weight(tuple(layer.weight.shape), 0.3, generator)
    found: dict[str, tuple[nn.Module, nn.Module, Tensor]] = {}
    for layout in LAYOUTS:
        sparse = SparseLinear.from_dense(linear, Csr(layout))
        found[f"linear_{layout}"] = sparse, linear, torch.randn(6, 40, generator=generator)
        sparse_conv = SparseConv2d.from_dense(conv, Csr(layout))
        x = torch.randn(3, 4, 9, 8, generator=generator)
        found[f"conv2d_{layout}"] = sparse_conv, conv, x
    return found


every_layer = pytest.mark.parametrize(
    "name", [f"{k}_{la}" for k in ("linear", "conv2d") for la in LAYOUTS]
)


@every_layer
@pytest.mark.parametrize("dynamic", [False, True])
def test_export(name: str, dynamic: bool) -> None:
    sparse, dense, x = layers()[name]
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    program = torch.export.export(sparse, (x,), dynamic_shapes=shapes, strict=False)
    targets = {str(n.target) for n in program.graph.nodes}
    assert any(t.startswith("sparseprune.csr_") for t in targets) or backends.CPU.missing
    for batch in (x, torch.cat([x, x])) if dynamic else (x,):
        torch.testing.assert_close(program.module()(batch), dense(batch), **TOLERANCE)


@every_layer
def test_compiles_as_one_graph(name: str) -> None:
    sparse, dense, x = layers()[name]
    torch._dynamo.reset()
    compiled = torch.compile(sparse, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (x, torch.cat([x, x])):
        torch.testing.assert_close(compiled(batch), dense(batch), **TOLERANCE)


@pytest.mark.slow
@every_layer
def test_compiles_with_inductor(name: str) -> None:
    sparse, dense, x = layers()[name]
    torch._dynamo.reset()
    compiled = torch.compile(sparse, fullgraph=True)
    torch.testing.assert_close(compiled(x), dense(x), **TOLERANCE)


@every_layer
def test_inference_mode(name: str) -> None:
    sparse, dense, x = layers()[name]
    with torch.inference_mode():
        torch.testing.assert_close(sparse(x), dense(x), **TOLERANCE)


Change = Callable[[dict[str, Any]], dict[str, Any]]


def to_meta(name: str) -> Change:
    return lambda a: {name: a[name].to("meta")}


BAD_X: dict[str, tuple[Change, str]] = {
    "x_float64": (lambda a: {"x": a["x"].double()}, "x must be float32"),
    "x_half": (lambda a: {"x": a["x"].half()}, "x must be float32"),
    "x_integer": (lambda a: {"x": a["x"].long()}, "x must be float32"),
    "x_empty_half": (lambda a: {"x": a["x"][:0].half()}, "x must be float32"),
}
BAD_PACKED: dict[str, tuple[Change, str]] = {
    "bias_short": (lambda a: {"bias": a["bias"][:-1]}, "bias"),
    "bias_one": (lambda a: {"bias": a["bias"][:1]}, "bias"),
    "bias_float64": (lambda a: {"bias": a["bias"].double()}, "bias"),
    "bias_meta": (to_meta("bias"), "bias must be on the device of x"),
    "values_float64": (lambda a: {"values": a["values"].double()}, "values"),
    "values_meta": (to_meta("values"), "values must be on the device of x"),
    "columns_int64": (lambda a: {"columns": a["columns"].long()}, "columns"),
    "columns_meta": (to_meta("columns"), "columns must be on the device of x"),
    "starts_short": (lambda a: {"starts": a["starts"][:-1]}, "starts"),
    "starts_empty": (lambda a: {"starts": a["starts"][:0]}, "starts"),
    "starts_int64": (lambda a: {"starts": a["starts"].long()}, "starts"),
    "starts_meta": (to_meta("starts"), "starts must be on the device of x"),
    "block_negative": (lambda a: {"block": -1}, "block"),
    "block_too_wide": (lambda a: {"block": 256}, "block"),
}
BAD_ROWS: dict[str, tuple[Change, str]] = {
    "columns_short": (lambda a: {"columns": a["columns"][:-1]}, "columns"),
    "rows_beyond_starts": (lambda a: {"rows": 64, "bias": None}, "starts"),
}
BAD_BLOCKS: dict[str, tuple[Change, str]] = {
    "counts_short": (lambda a: {"counts": a["counts"].flatten()[:-1]}, "counts"),
    "counts_int32": (lambda a: {"counts": a["counts"].int()}, "counts"),
    "counts_meta": (to_meta("counts"), "counts must be on the device of x"),
    "block_too_narrow": (lambda a: {"block": 1}, "counts"),
    "rows_beyond_counts": (lambda a: {"rows": 64, "bias": None}, "counts"),
}
BAD: dict[str, dict[str, tuple[Change, str]]] = {
    "csr_linear": {
        "x_narrow": (lambda a: {"x": a["x"][:, :-1]}, "18 features in its last dimension"),
        "x_scalar": (lambda a: {"x": torch.tensor(1.0)}, "18 features in its last dimension"),
        "x_empty_narrow": (lambda a: {"x": a["x"][:0, :-1]}, "18 features"),
        "cols_wrong": (lambda a: {"cols": 17}, "17 features in its last dimension"),
        "cols_negative": (lambda a: {"cols": -1}, "features in its last dimension"),
    },
    "csr_conv2d": {
        "x_narrow": (lambda a: {"x": a["x"][:, :-1]}, "x must have [36] channels"),
        "x_unbatched": (lambda a: {"x": a["x"][0]}, r"x must be \[batch, "),
        "x_vector": (lambda a: {"x": a["x"][0, 0, 0]}, r"x must be \[batch, "),
        "x_too_small": (lambda a: {"x": a["x"][:, :, :, :2]}, "padded input must be as large as"),
        "kernel_size_one": (lambda a: {"kernel_size": [3]}, "must be pairs"),
        "stride_three": (lambda a: {"stride": [1, 1, 1]}, "must be pairs"),
        "padding_empty": (lambda a: {"padding": []}, "must be pairs"),
        "dilation_one": (lambda a: {"dilation": [2]}, "must be pairs"),
        "kernel_size_zero": (lambda a: {"kernel_size": [0, 2]}, "must be positive"),
        "stride_zero": (lambda a: {"stride": [0, 1]}, "must be positive"),
        "dilation_negative": (lambda a: {"dilation": [1, -1]}, "must be positive"),
        "padding_negative": (lambda a: {"padding": [-1, 0]}, "not negative"),
        "groups_zero": (lambda a: {"groups": 0}, "x must have .* channels"),
        "groups_wrong": (lambda a: {"groups": 3}, "x must have .* channels"),
    },
}


def bad_cases() -> list[Any]:
    cases = []
    for op, own in BAD.items():
        for layout in LAYOUTS:
            buffers = BAD_ROWS if layout == "rows" else BAD_BLOCKS
            for name, (change, message) in {**BAD_X, **BAD_PACKED, **buffers, **own}.items():
                cases.append(pytest.param(op, layout, change, message, id=f"{op}-{layout}-{name}"))
    return cases


@pytest.mark.parametrize(("op", "layout", "change", "message"), bad_cases())
@pytest.mark.parametrize("how", ["native", "reference", "fake"])
def test_bad_argument_is_named(
    how: str, op: str, layout: str, change: Change, message: str, request: pytest.FixtureRequest
) -> None:
    """The compiled kernel, the reference and the fake kernel all say what was wrong."""
    if how == "native":
        request.getfixturevalue("no_fallback")
    args = arguments(op, layout)
    args |= change(args)
    run = overload("sparseprune_reference" if how == "reference" else "sparseprune", op)
    with pytest.raises((RuntimeError, ValueError), match=f"{op}.*{message}"):
        if how == "fake":
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                fakes = {
                    k: mode.from_tensor(v) if isinstance(v, Tensor) else v for k, v in args.items()
                }
                run(*fakes.values())
        else:
            run(*args.values())


@every_layout
@every_namespace
def test_bound_rows_stay_in_one_group(namespace: str, layout: str) -> None:
    """With a tampered number of groups, rows that a layout binds together would straddle two."""
    args = arguments("csr_conv2d", layout)
    args |= {"groups": 8, "x": torch.randn(2, 24, 7, 8)}  # two rows in a group
    run = overload(namespace, "csr_conv2d")
    if layout == "rows":
        assert run(*args.values()).isfinite().all()
    else:
        with pytest.raises(RuntimeError, match="csr_conv2d: outputs per group must divide by"):
            run(*args.values())


@every_namespace
def test_segments_stay_in_one_group(namespace: str) -> None:
    """The same where groups of rows are numbered within segments of 64."""
    args = arguments("csr_conv2d", "groups")
    packed = Csr("groups").pack(torch.eye(128, 18))
    args |= dict(zip(("values", "columns", "counts", "starts"), packed.packed(), strict=True))
    args |= {"rows": 128, "bias": None, "groups": 4, "x": torch.randn(2, 12, 7, 8)}
    run = overload(namespace, "csr_conv2d")
    with pytest.raises(RuntimeError, match="csr_conv2d: outputs per group must divide by 64"):
        run(*args.values())
    args |= {"groups": 2, "x": torch.randn(2, 6, 7, 8)}
    assert run(*args.values()).shape[1] == 128
    args |= {"rows": 124, "groups": 1, "x": torch.randn(2, 3, 7, 8)}
    with pytest.raises(RuntimeError, match=r"csr_conv2d: (rows|counts) must"):
        run(*args.values())


@every_layout
@pytest.mark.parametrize("op", BAD)
@pytest.mark.usefixtures("no_fallback")
def test_truncated_weights_are_refused(op: str, layout: str) -> None:
    """Values that a broken file cut short must not be read past their end."""
    args = arguments(op, layout)
    args["values"] = args["values"][:-1].clone()
    args["columns"] = args["columns"][: len(args["values"])]
    with pytest.raises(RuntimeError, match=rf"{op}: (values|columns|starts)"):
        overload("sparseprune", op)(*args.values())
