"""What a program must be before anything runs it: a text may come from a file."""

from __future__ import annotations

import math

from sparseprune.errors import bad
from sparseprune.program.steps import (
    ACTIVATIONS,
    PADDINGS,
    Activation,
    Adaptive,
    Add,
    Bitmask,
    Channels,
    Csr,
    Depthwise,
    Input,
    Linear,
    OnTokens,
    Output,
    Pool,
    Scale,
    Sell,
    Step,
    Upsample,
    Window,
)
from sparseprune.program.steps_sequences import Attention, Norm, Picture, Pixels, Rotary

_WAY_OUT = "write it with to_text"
COUNTS: dict[type[Step], tuple[str, ...]] = {
    Csr: ("tensors", "rows", "cols", "block"),
    Bitmask: ("tensors", "rows", "cols"),
    Sell: ("tensors", "rows", "cols"),
    Linear: ("tensors", "rows", "cols"),
    Depthwise: ("tensors", "channels"),
    Channels: ("begin",),
    Norm: ("tensors",),
    Rotary: ("first",),
    Input: ("channels",),
}
"""Fields that must not be negative."""
NATURALS: dict[type[Step], tuple[str, ...]] = {
    Csr: ("groups",),
    Depthwise: ("multiplier",),
    Channels: ("groups", "count"),
    Norm: ("channels",),
    Rotary: ("stride",),
}
"""Fields that must be at least 1."""
FLAGS: dict[type[Step], tuple[str, ...]] = {
    Csr: ("has_bias",),
    Bitmask: ("has_bias",),
    Sell: ("has_bias",),
    Linear: ("has_bias",),
    Depthwise: ("has_bias",),
    Pool: ("ceil", "count_padding"),
    Norm: ("has_bias", "centred"),
    Rotary: ("pairs",),
    Attention: ("causal",),
}
"""Fields that must be 0 or 1."""
MOST, MOST_IN_WINDOW, MOST_VALUES = 2**31, 2**16, 2**20
"""Largest count, number of a window, and value: products of two counts stay in 64 bits."""
READS = ("x", "by", "y", "key", "value", "cos", "sin")
OPTIONAL = ("residual", "mask")
"""Fields that name a value; those of the second kind may be -1 as well."""


def check_program(steps: list[Step]) -> None:
    """That every value is defined once and before it is read, and every field is in its range.

    Raises:
        ValueError: the step and what is wrong with it.
    """
    defined: set[int] = set()
    for step in steps:
        _check_values(step, defined)
        _check_fields(step)
        if not isinstance(step, Output):
            defined.add(step.out)  # type: ignore[attr-defined]
    dims = {step.dims for step in steps if isinstance(step, Input) and step.kind == "image"}
    dims |= {step.dims for step in steps if isinstance(step, (Pixels, Picture))}
    if len(dims) > 1:
        raise bad("program", "images", "of one number of dimensions", sorted(dims), _WAY_OUT)
    for step in steps:
        _check_lacking(step, 3 - max(dims, default=0))
    if not any(isinstance(step, Input) for step in steps) or not isinstance(steps[-1], Output):
        raise bad("program", "steps", "with an input and, last, an output", steps[-1:], _WAY_OUT)


def _check_values(step: Step, defined: set[int]) -> None:
    for name in READS:
        value = getattr(step, name, None)
        if value is not None and value not in defined:
            raise bad("program", f"{name} of {step}", "an earlier value", value, _WAY_OUT)
    for name in OPTIONAL:
        value = getattr(step, name, -1)
        if value != -1 and value not in defined:
            raise bad("program", f"{name} of {step}", "an earlier value or -1", value, _WAY_OUT)
    out = getattr(step, "out", None)
    if out is not None and (out != len(defined) or out > MOST_VALUES):
        raise bad("program", f"out of {step}", f"the next value, {len(defined)}", out, _WAY_OUT)


def _check_fields(step: Step) -> None:
    for least, table in ((0, COUNTS), (1, NATURALS)):
        for name in table.get(type(step), ()):
            if not least <= getattr(step, name) <= MOST:
                raise bad("program", f"{name} of {step}", f"at least {least} and at most {MOST}",
                          getattr(step, name), _WAY_OUT)  # fmt: skip
    for name in FLAGS.get(type(step), ()):
        if getattr(step, name) not in (0, 1):
            raise bad("program", f"{name} of {step}", "0 or 1", getattr(step, name), _WAY_OUT)
    if isinstance(step, Input):
        kinds = {"tokens": (0,), "image": (1, 2, 3) if step.channels else ()}
        if step.dims not in kinds.get(step.kind, ()):
            raise bad("program", f"{step}", "tokens of 0 or an image of 1 to 3 dimensions",
                      f"{step.kind} of {step.dims}", _WAY_OUT)  # fmt: skip
    if isinstance(step, (Csr, Depthwise, Pool)):
        _check_window(step, step.window)
    if isinstance(step, (Csr, OnTokens, Depthwise, Add, Scale)):
        _check_activation(step, step.activation)
    if isinstance(step, Csr) and step.rows % step.groups:
        raise bad("program", f"rows of {step}", "divisible by groups", step.rows, _WAY_OUT)
    if isinstance(step, Pool) and step.kind not in ("max", "avg"):
        raise bad("program", f"kind of {step}", "max or avg", step.kind, _WAY_OUT)
    if isinstance(step, Adaptive) and not all(0 <= n <= MOST_IN_WINDOW for n in step.size):
        raise bad("program", f"size of {step}", f"at least 0 and at most {MOST_IN_WINDOW}",
                  step.size, _WAY_OUT)  # fmt: skip
    if isinstance(step, Norm) and not 0 <= step.epsilon < math.inf:
        raise bad("program", f"epsilon of {step}", "a number of at least 0", step.epsilon, _WAY_OUT)
    if isinstance(step, (Attention, Rotary)) and not all(
        1 <= n <= MOST_IN_WINDOW for n in (step.heads, step.head)
    ):
        raise bad("program", f"heads of {step}", f"at least 1 and at most {MOST_IN_WINDOW}",
                  (step.heads, step.head), _WAY_OUT)  # fmt: skip
    if isinstance(step, Rotary) and (step.turned % 2 or not 2 <= step.turned <= step.head):
        raise bad("program", f"turned of {step}", f"even, at least 2 and at most {step.head}",
                  step.turned, _WAY_OUT)  # fmt: skip
    if isinstance(step, Attention):
        _check_attention(step)
    if isinstance(step, (Pixels, Picture)) and step.dims not in (1, 2):
        raise bad("program", f"dims of {step}", "1 or 2", step.dims, _WAY_OUT)
    if isinstance(step, Upsample) and not all(1 <= n <= MOST_IN_WINDOW for n in step.times):
        raise bad("program", f"times of {step}", f"at least 1 and at most {MOST_IN_WINDOW}",
                  step.times, _WAY_OUT)  # fmt: skip


def _check_attention(step: Attention) -> None:
    if not all(0 <= first <= MOST for first in step.first):
        raise bad("program", f"first of {step}", f"at least 0 and at most {MOST}", step.first,
                  _WAY_OUT)  # fmt: skip
    if not all(1 <= stride <= MOST for stride in step.strides):
        raise bad("program", f"strides of {step}", f"at least 1 and at most {MOST}", step.strides,
                  _WAY_OUT)  # fmt: skip
    if step.group < 1 or step.heads % step.group:
        raise bad("program", f"group of {step}", f"a divisor of {step.heads} heads", step.group,
                  _WAY_OUT)  # fmt: skip
    if not math.isfinite(step.scale):
        raise bad("program", f"scale of {step}", "a finite number", step.scale, _WAY_OUT)


def _check_lacking(step: Step, lacking: int) -> None:
    """Nothing grows in the dimensions that the images do not have: outputs would not show it."""
    w, size = getattr(step, "window", Window()), getattr(step, "size", (1, 1, 1))
    size = getattr(step, "times", size)
    numbers = (w.kernel, w.stride, w.dilation, size, w.before, w.after)
    for i in range(lacking):
        found = [triple[i] for triple in numbers]
        if found != [1, 1, 1, 1, 0, 0]:
            raise bad("program", f"dimension {i - 3} of {step}", "left alone, as images lack it",
                      found, _WAY_OUT)  # fmt: skip


def _check_window(step: Step, window: Window) -> None:
    least = min(*window.kernel, *window.stride, *window.dilation)
    padding = min(*window.before, *window.after)
    numbers = (window.kernel, window.stride, window.before, window.after, window.dilation)
    if least < 1 or padding < 0 or max(map(max, numbers)) > MOST_IN_WINDOW:
        raise bad("program", f"window of {step}",
                  f"positive, with padding of 0 or more, and at most {MOST_IN_WINDOW}",
                  window, _WAY_OUT)  # fmt: skip
    if window.mode not in PADDINGS:
        raise bad("program", f"mode of {step}", f"one of {', '.join(PADDINGS)}",
                  window.mode, _WAY_OUT)  # fmt: skip
    if isinstance(step, Pool) and (window.mode != "zeros" or window.before != window.after):
        raise bad("program", f"window of {step}", "padded equally on both sides",
                  window, _WAY_OUT)  # fmt: skip


def _check_activation(step: Step, activation: Activation) -> None:
    if activation.kind not in ACTIVATIONS:
        raise bad("program", f"activation of {step}", f"one of {', '.join(ACTIVATIONS)}",
                  activation.kind, _WAY_OUT)  # fmt: skip
