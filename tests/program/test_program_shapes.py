"""The text of a program, its shapes against torch, and what is refused."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from program_texts import NOTHING, tokens_program, whole_program, windows
from torch import Tensor, nn

from sparseprune.formats import Csr as Packed
from sparseprune.program.checks import check_program
from sparseprune.program.shapes import output_shapes
from sparseprune.program.steps import (
    ACTIVATIONS,
    PADDINGS,
    Activation,
    Adaptive,
    Add,
    Channels,
    Csr,
    Input,
    Mean,
    Multiply,
    Output,
    Pool,
    Step,
    Upsample,
    Window,
)
from sparseprune.program.steps_sequences import Attention, Norm, Pixels, Rotary
from sparseprune.program.text import STEPS, from_text, to_text

NAMESPACES = ("sparseprune", "sparseprune_reference")
small = st.integers(1, 9)
triples = st.tuples(small, small, small)
FIELDS = {
    "Triple": triples,
    "int": st.integers(-1, 2**31),
    "str": st.sampled_from(["image", "tokens", "max", "avg"]),
    "float": st.floats(allow_nan=False),
    "Window": st.builds(
        Window, triples, triples, triples, triples, triples, st.sampled_from(PADDINGS)
    ),
    "Activation": st.builds(
        Activation,
        st.sampled_from(ACTIVATIONS),
        st.floats(allow_nan=False),
        st.floats(allow_nan=False),
    ),
}
steps_of_any_kind = st.one_of(
    *(
        st.builds(kind, **{f.name: FIELDS[str(f.type)] for f in fields(kind)})
        for kind in STEPS.values()
    )
)


@settings(max_examples=60, deadline=None)
@given(st.lists(steps_of_any_kind, max_size=8))
def test_text_and_back(steps: list[Step]) -> None:
    assert from_text(to_text(steps)) == steps


@pytest.mark.parametrize("text", ["jump 1 2", "mean 1", "mean 1 2 3", "input 0 image three 2"])
def test_text_of_no_program(text: str) -> None:
    with pytest.raises(ValueError):
        from_text(text)


POOLS = [
    (dims, kernel, stride, padding, ceil)
    for dims in (1, 2, 3)
    for kernel, stride, padding in ((2, 2, 0), (3, 2, 1), (3, 3, 1), (1, 2, 0), (2, 3, 1))
    for ceil in (0, 1)
]


def run(steps: list[Step], inputs: list[Tensor], weights: list[Tensor], namespace: str) -> Tensor:
    (out,) = getattr(torch.ops, namespace).run(inputs, weights, to_text(steps))
    assert out.shape == output_shapes(steps, [x.shape for x in inputs])[0]
    assert out.is_contiguous()
    return out


@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize(("dims", "kernel", "stride", "padding", "ceil"), POOLS)
def test_pools_are_torchs(
    kind: str, dims: int, kernel: int, stride: int, padding: int, ceil: int
) -> None:
    torch_pool = getattr(nn, f"{kind.title()}Pool{dims}d")(
        kernel, stride, padding, ceil_mode=bool(ceil)
    )
    window = windows(dims, kernel, stride, padding)
    steps = [Input(0, "image", 2, dims), Pool(1, 0, kind, ceil, 1, window), Output(1)]
    # Of the last size windows are cut off, which torch does not do to averages over volumes.
    for size in (5, 6, 7, *((2,) if ceil and (kind, dims) != ("avg", 3) else ())):
        x = torch.randn(2, 2, *(size,) * dims)
        for namespace in NAMESPACES:
            torch.testing.assert_close(run(steps, [x], [], namespace), torch_pool(x))


@pytest.mark.parametrize("size", [(1, 1, 1), (7, 7, 7), (3, 4, 5), (2, 6, 0), (9, 1, 12)], ids=str)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_adaptive_averages_are_torchs(dims: int, size: tuple[int, int, int]) -> None:
    """Fewer outputs, as many and more, in windows that overlap and such that do not."""
    wanted = size[3 - dims :]
    steps = [Input(0, "image", 2, dims), Adaptive(1, 0, (*(1,) * (3 - dims), *wanted)), Output(1)]
    average = getattr(F, f"adaptive_avg_pool{dims}d")
    for x in (torch.randn(3, 2, *(7, 12, 14)[:dims]), torch.randn(2, 2, *(6, 8, 10)[:dims])):
        sizes = [its or size for its, size in zip(wanted, x.shape[2:], strict=True)]
        expected = average(x.double(), sizes).float()
        for namespace in NAMESPACES:
            torch.testing.assert_close(run(steps, [x], [], namespace), expected)
    with pytest.raises((RuntimeError, ValueError), match="positive sizes"):
        run(steps, [x[..., :0]], [], "sparseprune")
    with pytest.raises(RuntimeError, match="positive sizes"):
        run(steps, [x[..., :0]], [], "sparseprune_reference")


CONVS = [
    (dims, kernel, stride, padding, dilation, groups)
    for dims in (1, 2, 3)
    for kernel, stride, padding, dilation in ((3, 1, 1, 1), (2, 2, 0, 1), (3, 2, 2, 2))
    for groups in (1, 2)
]


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("layout", ["groups", "rows"])
@pytest.mark.parametrize(("dims", "kernel", "stride", "padding", "dilation", "groups"), CONVS)
def test_convolutions_are_torchs(
    dims: int, kernel: int, stride: int, padding: int, dilation: int, groups: int, layout: str,
    namespace: str,
) -> None:  # fmt: skip
    weight = torch.randn(8, 4 // groups, *(kernel,) * dims)
    weight[torch.rand_like(weight) < 0.5] = 0
    bias, x = torch.randn(8), torch.randn(2, 4, *(7, 6, 5)[:dims])
    convolve = getattr(F, f"conv{dims}d")
    expected = convolve(x, weight, bias, stride, padding, dilation, groups)
    residual = torch.randn_like(expected)
    packed = Packed(layout).pack(weight.flatten(1), groups)
    window = windows(dims, kernel, stride, padding, dilation)
    steps = [
        Input(0, "image", 4, dims),
        Input(1, "image", 8, dims),
        Csr(2, 0, 1, 0, 8, weight[0].numel(), packed.block, groups, 1, window, Activation("silu")),
        Output(2),
    ]
    got = run(steps, [x, residual], [*packed.packed(), bias], namespace)
    torch.testing.assert_close(got, F.silu(expected + residual), rtol=1e-4, atol=1e-4)
    empty = run(steps, [x[:0], residual[:0]], [*packed.packed(), bias], namespace)
    assert empty.shape == (0, *expected.shape[1:])


def test_pruned_weights_ignore_nan() -> None:
    weight = torch.zeros(4, 2, 1, 1)
    weight[:, 0] = 1
    packed = Packed().pack(weight.flatten(1))
    x = torch.randn(1, 2, 3, 3)
    x[:, 1] = torch.nan
    steps = [
        Input(0, "image", 2, 2),
        Csr(1, 0, -1, 0, 4, 2, packed.block, 1, 0, Window(), NOTHING),
        Output(1),
    ]
    for namespace in NAMESPACES:
        assert torch.equal(run(steps, [x], list(packed.packed()), namespace)[:, 3:], x[:, :1])


@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6), (2, 2, 2, 2, 6), (0, 6)], ids=str)
def test_tokens_keep_their_leading_dimensions(shape: tuple[int, ...]) -> None:
    steps, weights = tokens_program()
    for namespace in NAMESPACES:
        assert run(steps, [torch.randn(shape)], weights, namespace).shape == (*shape[:-1], 5)


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_opcheck(namespace: str) -> None:
    steps, inputs, weights = whole_program()
    check_program(steps)
    op = getattr(torch.ops, namespace).run.default
    torch.library.opcheck(op, (inputs, weights, to_text(steps)))
    outputs = op(inputs, weights, to_text(steps))
    assert [o.shape for o in outputs] == output_shapes(steps, [inputs[0].shape])
    assert torch.equal(outputs[2], inputs[0])
    assert outputs[2].data_ptr() != inputs[0].data_ptr()
    (strange,) = [inputs[0].to(memory_format=torch.channels_last)]
    for got, expected in zip(op([strange], weights, to_text(steps)), outputs, strict=True):
        torch.testing.assert_close(got, expected)


def test_autocast_keeps_float32() -> None:
    steps, inputs, weights = whole_program()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = torch.ops.sparseprune.run([inputs[0].bfloat16()], weights, to_text(steps))
    assert {o.dtype for o in outputs} == {torch.float32}


BAD_STEPS = {
    "reads_later": [Input(0, "image", 3, 2), Mean(1, 2), Output(1)],
    "twice": [Input(0, "image", 3, 2), Mean(0, 0), Output(0)],
    "no_output": [Input(0, "image", 3, 2), Mean(1, 0)],
    "no_input": [Output(0)],
    "kind": [Input(0, "video", 3, 2), Output(0)],
    "dims": [Input(0, "image", 3, 4), Output(0)],
    "mixed_dims": [Input(0, "image", 3, 2), Input(1, "image", 3, 1), Output(0)],
    "activation": [Input(0, "image", 3, 2), Add(1, 0, -1, Activation("softplus")), Output(1)],
    "stride": [
        Input(0, "image", 3, 2),
        Pool(1, 0, "max", 0, 0, Window(stride=(1, 0, 1))),
        Output(1),
    ],
    "pool": [Input(0, "image", 3, 2), Pool(1, 0, "min", 0, 0, Window()), Output(1)],
    "size": [Input(0, "image", 3, 2), Adaptive(1, 0, (1, -1, 7)), Output(1)],
    "large_size": [Input(0, "image", 3, 2), Adaptive(1, 0, (1, 7, 2**17)), Output(1)],
    "size_of_no_dimension": [Input(0, "image", 3, 2), Adaptive(1, 0, (2, 7, 7)), Output(1)],
    "times": [Input(0, "image", 3, 2), Upsample(1, 0, (1, 0, 2)), Output(1)],
    "many_times": [Input(0, "image", 3, 2), Upsample(1, 0, (1, 2, 2**17)), Output(1)],
    "times_of_no_dimension": [Input(0, "image", 3, 2), Upsample(1, 0, (2, 2, 2)), Output(1)],
    "no_groups": [Input(0, "image", 3, 2), Channels(1, 0, 0, 0, 1), Output(1)],
    "before_the_first": [Input(0, "image", 3, 2), Channels(1, 0, 1, -1, 1), Output(1)],
    "no_channels": [Input(0, "image", 3, 2), Channels(1, 0, 1, 1, 0), Output(1)],
    "padding_of_no_dimension": [
        Input(0, "image", 3, 2),
        Pool(1, 0, "max", 0, 0, Window(before=(1, 0, 0), after=(1, 0, 0))),
        Output(1),
    ],
    "groups": [
        Input(0, "tokens", 3, 0),
        Csr(1, 0, -1, 0, 4, 3, 0, 0, 0, Window(), NOTHING),
        Output(1),
    ],
    "epsilon": [Input(0, "tokens", 3, 0), Norm(1, 0, 0, 3, 0, 1, -1.0), Output(1)],
    "centred": [Input(0, "tokens", 3, 0), Norm(1, 0, 0, 3, 0, 2, 1e-5), Output(1)],
    "heads": [
        Input(0, "tokens", 3, 0),
        Attention(1, 0, 0, 0, -1, (0, 0, 0), (3, 3, 3), 0, 3, 1, 0, 1.0),
        Output(1),
    ],
    "first": [
        Input(0, "tokens", 3, 0),
        Attention(1, 0, 0, 0, -1, (0, -1, 0), (3, 3, 3), 1, 3, 1, 0, 1.0),
        Output(1),
    ],
    "causal": [
        Input(0, "tokens", 3, 0),
        Attention(1, 0, 0, 0, -1, (0, 0, 0), (3, 3, 3), 1, 3, 1, 2, 1.0),
        Output(1),
    ],
    "attention_scale": [
        Input(0, "tokens", 3, 0),
        Attention(1, 0, 0, 0, -1, (0, 0, 0), (3, 3, 3), 1, 3, 1, 0, math.inf),
        Output(1),
    ],
    "group": [
        Input(0, "tokens", 6, 0),
        Attention(1, 0, 0, 0, -1, (0, 0, 0), (3, 3, 3), 3, 2, 2, 0, 1.0),
        Output(1),
    ],
    "strides": [
        Input(0, "tokens", 6, 0),
        Attention(1, 0, 0, 0, -1, (0, 0, 0), (3, 0, 3), 2, 3, 1, 0, 1.0),
        Output(1),
    ],
    "head_stride": [Input(0, "tokens", 4, 0), Rotary(1, 0, 0, 0, 0, 0, 1, 4, 4, 0), Output(1)],
    "turned": [Input(0, "tokens", 3, 0), Rotary(1, 0, 0, 0, 0, 4, 1, 3, 3, 0), Output(1)],
    "more_turned": [Input(0, "tokens", 4, 0), Rotary(1, 0, 0, 0, 0, 4, 2, 2, 4, 0), Output(1)],
    "pairs": [Input(0, "tokens", 4, 0), Rotary(1, 0, 0, 0, 0, 4, 1, 4, 4, 2), Output(1)],
    "sin_of_later": [Input(0, "tokens", 4, 0), Rotary(1, 0, 0, 1, 0, 4, 1, 4, 4, 0), Output(1)],
    "factor_of_later": [Input(0, "tokens", 3, 0), Multiply(1, 0, 1), Output(1)],
    "value_of_later": [
        Input(0, "tokens", 3, 0),
        Attention(1, 0, 0, 1, -1, (0, 0, 0), (3, 3, 3), 1, 3, 1, 0, 1.0),
        Output(1),
    ],
    "pixels": [Input(0, "image", 3, 2), Pixels(1, 0, 3), Output(1)],
    "mixed_pixels": [Input(0, "image", 3, 2), Pixels(1, 0, 1), Output(1)],
    "residual": [Input(0, "image", 3, 2), Add(1, 0, -2, NOTHING), Output(1)],
}


@pytest.mark.parametrize("name", BAD_STEPS)
def test_no_program(name: str) -> None:
    with pytest.raises(ValueError, match="program: "):
        torch.ops.sparseprune_reference.run([torch.randn(1, 3, 4, 4)], [], to_text(BAD_STEPS[name]))


BAD_INPUTS = {
    "count": ([], "inputs must be 1 tensors"),
    "rank": ([torch.randn(3, 7, 6)], "add the batch dimension"),
    "channels": ([torch.randn(2, 4, 7, 6)], "must be of 3 channels"),
    "dtype": ([torch.randn(2, 3, 7, 6).double()], "must be float32"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_inputs_that_do_not_fit(name: str) -> None:
    steps, _, weights = whole_program()
    inputs, message = BAD_INPUTS[name]
    with pytest.raises((RuntimeError, ValueError), match=f"run: .*{message}"):
        torch.ops.sparseprune_reference.run(inputs, weights, to_text(steps))


def test_weights_that_do_not_fit() -> None:
    steps, inputs, weights = whole_program()
    for count, message in ((4, "at least 5 tensors"), (6, "at least 7 tensors")):
        with pytest.raises(RuntimeError, match=f"run: weights must be {message}"):
            torch.ops.sparseprune_reference.run(inputs, weights[:count], to_text(steps))
    with pytest.raises(RuntimeError, match="run: bias must be"):
        short = [*weights[:4], weights[4][:-1], *weights[5:]]
        torch.ops.sparseprune_reference.run(inputs, short, to_text(steps))
    with pytest.raises(RuntimeError, match="run: depthwise weight must be 8"):
        short = [*weights[:5], weights[5][:-1], *weights[6:]]
        torch.ops.sparseprune_reference.run(inputs, short, to_text(steps))


def test_image_smaller_than_the_window() -> None:
    steps = [
        Input(0, "image", 1, 2),
        Pool(1, 0, "max", 0, 1, windows(2, 5, 1, 0)),
        Output(1),
    ]
    with pytest.raises(RuntimeError, match=r"run: the image .* window of 5 .* got 4"):
        run(steps, [torch.randn(1, 1, 4, 9)], [], "sparseprune_reference")
    assert math.isinf(NOTHING.high)
