"""The shape of every value of a program, from the shapes of its inputs. Sizes may be symbolic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from sparseprune.program.shapes_sequences import SEQUENCES
from sparseprune.program.steps import (
    Adaptive,
    Add,
    Bitmask,
    Cat,
    Channels,
    Csr,
    Depthwise,
    Flatten,
    Input,
    Linear,
    Mean,
    Multiply,
    OnTokens,
    Output,
    Pool,
    Scale,
    Sell,
    Step,
    Upsample,
    Window,
)
from sparseprune.program.values import Size, Value, Values, check, image, tokens


def infer(steps: Sequence[Step], inputs: Sequence[Sequence[Size]]) -> Values:
    """The shape of every value, by its number.

    Raises:
        RuntimeError: inputs that do not fit the program.
    """
    values: Values = {}
    wanted = [step for step in steps if isinstance(step, Input)]
    check(len(wanted) == len(inputs), "inputs", f"{len(wanted)} tensors", len(inputs),
           "pass what the program was made for")  # fmt: skip
    for number, (step, shape) in enumerate(zip(wanted, inputs, strict=True)):
        values[step.out] = _input(step, tuple(shape), number)
    for each in steps:
        if not isinstance(each, (Input, Output)):
            values[each.out] = RULES[type(each)](each, values)  # type: ignore[attr-defined]
    return values


def output_shapes(
    steps: Sequence[Step], inputs: Sequence[Sequence[Size]]
) -> list[tuple[Size, ...]]:
    """The shapes of the output tensors.

    Raises:
        RuntimeError: inputs that do not fit the program.
    """
    values = infer(steps, inputs)
    return [values[step.x].shape for step in steps if isinstance(step, Output)]


def _input(step: Input, shape: tuple[Size, ...], number: int) -> Value:
    name = f"inputs[{number}]"
    if step.kind == "image":
        letters = ", ".join(("depth", "height", "width")[3 - step.dims :])
        check(len(shape) == step.dims + 2, name, f"[N, {step.channels}, {letters}]", shape,
               "add the batch dimension that is missing")  # fmt: skip
        channels = shape[1]
    else:
        check(len(shape) > 0, name, f"[..., {step.channels}]", shape, "pass at least a vector")
        channels = shape[-1]
    check(channels == (step.channels or channels), name, f"of {step.channels} channels", shape,
           "pass what the program was made for")  # fmt: skip
    return Value(step.kind, shape)


def _same(step: Step, shape: tuple[Size, ...], values: Values, residual: int) -> None:
    if residual == -1:
        return
    other = values[residual].shape
    argument = f"value {residual} added by {step.word!r}"
    check(len(other) == len(shape), argument, f"of shape {shape}", other, "pass equal sizes")
    for mine, its in zip(shape, other, strict=True):
        check(mine == its, argument, f"of shape {shape}", other, "pass equal sizes")


def _windowed(step: Step, sizes: tuple[Size, ...], w: Window, ceil: int = 0) -> tuple[Size, ...]:
    """The sizes after a convolution or pooling, as torch rounds them."""
    found = []
    for i, size in enumerate(sizes, start=3 - len(sizes)):
        padded, reach = size + w.before[i] + w.after[i], w.dilation[i] * (w.kernel[i] - 1) + 1
        over = (w.stride[i] - 1) * ceil  # that the last window may stand out
        check(padded + over >= reach, f"the image that {step.word!r} reads",
               f"as large as its window of {reach} in dimension {i - 3}", padded,
               "enlarge the input")  # fmt: skip
        limit = {"reflect": size - 1, "circular": size}.get(w.mode)
        if limit is not None:
            check(max(w.before[i], w.after[i]) <= limit, f"the image that {step.word!r} reads",
                   f"large enough for its padding in dimension {i - 3}", size,
                   "enlarge the input")  # fmt: skip
        out = (padded - reach + over) // w.stride[i] + 1
        if ceil and (out - 1) * w.stride[i] >= size + w.before[i]:
            out = out - 1  # a window must start inside the image or its left padding
        found.append(out)
    return tuple(found)


def _csr(step: Csr, values: Values) -> Value:
    x = values[step.x]
    argument = f"value {step.x} read by 'csr'"
    if x.kind == "tokens":
        check(x.shape[-1] == step.cols, argument, f"of {step.cols} channels", x.shape,
               "pass images of the size that the program was made for")  # fmt: skip
        out = Value("tokens", (*x.shape[:-1], step.rows))
    else:
        taps = prod(step.window.kernel)
        check(x.shape[1] * taps == step.cols * step.groups, argument,
               f"of {step.cols * step.groups // taps} channels", x.shape,
               "lower the model again")  # fmt: skip
        sizes = _windowed(step, x.shape[2:], step.window)
        out = Value("image", (x.shape[0], step.rows, *sizes))
    _same(step, out.shape, values, step.residual)
    return out


def _on_tokens(step: OnTokens, values: Values) -> Value:
    x = values[step.x]
    argument, expected = f"value {step.x} read by {step.word!r}", f"tokens of {step.cols} channels"
    check(x.kind == "tokens" and x.shape[-1] == step.cols, argument, expected,
           f"{x.kind} {x.shape}", "pass inputs of the size that it was made for")  # fmt: skip
    out = Value("tokens", (*x.shape[:-1], step.rows))
    _same(step, out.shape, values, step.residual)
    return out


def _depthwise(step: Depthwise, values: Values) -> Value:
    if values[step.x].kind == "tokens":
        return _factors(step, values)
    batch, channels, *sizes = image(step, values, step.x)
    check(channels == step.channels, f"value {step.x} read by 'depthwise'",
           f"of {step.channels} channels", channels, "lower the model again")  # fmt: skip
    found = _windowed(step, tuple(sizes), step.window)
    out = Value("image", (batch, channels * step.multiplier, *found))
    _same(step, out.shape, values, step.residual)
    return out


def _factors(step: Depthwise, values: Values) -> Value:
    """A factor and a shift for every channel of tokens."""
    shape = tokens(step, values, step.x, step.channels)
    fits = shape[-1] == step.channels and step.multiplier == 1 and step.window == Window()
    check(fits, f"value {step.x} read by 'depthwise'", f"tokens of {step.channels} channels",
           shape, "lower the model again")  # fmt: skip
    _same(step, shape, values, step.residual)
    return values[step.x]


def _pool(step: Pool, values: Values) -> Value:
    batch, channels, *sizes = image(step, values, step.x)
    return Value("image", (batch, channels, *_windowed(step, tuple(sizes), step.window, step.ceil)))


def _mean(step: Mean, values: Values) -> Value:
    batch, channels, *sizes = image(step, values, step.x)
    return Value("image", (batch, channels, *(1 for _ in sizes)))


def _adaptive(step: Adaptive, values: Values) -> Value:
    batch, channels, *sizes = image(step, values, step.x)
    wanted = step.size[3 - len(sizes) :]
    for size in sizes:
        check(size > 0, f"the image that {step.word!r} reads", "of positive sizes", size,
               "enlarge the input")  # fmt: skip
    found = (its or size for its, size in zip(wanted, sizes, strict=True))
    return Value("image", (batch, channels, *found))


def _upsample(step: Upsample, values: Values) -> Value:
    batch, channels, *sizes = image(step, values, step.x)
    times = step.times[3 - len(sizes) :]
    return Value("image", (batch, channels, *(n * t for n, t in zip(sizes, times, strict=True))))


def _add(step: Add, values: Values) -> Value:
    _same(step, values[step.x].shape, values, step.residual)
    return values[step.x]


def _multiply(step: Multiply, values: Values) -> Value:
    _same(step, values[step.x].shape, values, step.y)
    return values[step.x]


def _scale(step: Scale, values: Values) -> Value:
    shape, by = image(step, values, step.x), image(step, values, step.by)
    expected = (shape[0], shape[1], *(1 for _ in shape[2:]))
    for size, its in zip(expected, by, strict=True):
        check(size == its, f"value {step.by} of 'scale'", f"of shape {expected}", by,
               "lower the model again")  # fmt: skip
    return values[step.x]


def _cat(step: Cat, values: Values) -> Value:
    x, y = image(step, values, step.x), image(step, values, step.y)
    for size, its in zip((x[0], *x[2:]), (y[0], *y[2:]), strict=True):
        check(size == its, f"value {step.y} of 'cat'", f"of sizes as {x}", y, "pass equal sizes")
    return Value("image", (x[0], x[1] + y[1], *x[2:]))


def _channels(step: Channels, values: Values) -> Value:
    batch, channels, *sizes = image(step, values, step.x)
    fits = channels % step.groups == 0 and step.begin + step.count <= channels
    expected = f"of {step.groups} equal groups and {step.begin + step.count} channels or more"
    check(fits, f"value {step.x} read by 'channels'", expected, channels, "lower the model again")
    return Value("image", (batch, step.count, *sizes))


def _flatten(step: Flatten, values: Values) -> Value:
    batch, *rest = image(step, values, step.x)
    return Value("tokens", (batch, prod(rest)))


RULES: dict[type[Step], Callable[[Any, Values], Value]] = {
    Csr: _csr,
    Bitmask: _on_tokens,
    Sell: _on_tokens,
    Linear: _on_tokens,
    Depthwise: _depthwise,
    Pool: _pool,
    Mean: _mean,
    Adaptive: _adaptive,
    Upsample: _upsample,
    Add: _add,
    Multiply: _multiply,
    Scale: _scale,
    Cat: _cat,
    Channels: _channels,
    Flatten: _flatten,
    **SEQUENCES,
}
"""Step -> the value that it makes."""
