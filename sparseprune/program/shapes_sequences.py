"""The shapes of values that steps on the tokens of sequences and images make."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from sparseprune.program.steps import Step
from sparseprune.program.steps_sequences import (
    Attention,
    Norm,
    Picture,
    Pixels,
    Rotary,
    end_of_heads,
)
from sparseprune.program.values import Value, Values, check, image, tokens


def _norm(step: Norm, values: Values) -> Value:
    shape = tokens(step, values, step.x, step.channels)
    check(shape[-1] == step.channels, f"value {step.x} read by 'norm'",
           f"of {step.channels} channels", shape, "lower the model again")  # fmt: skip
    return values[step.x]


def _rotary(step: Rotary, values: Values) -> Value:
    end = end_of_heads(step.first, step.stride, step.heads, step.head)
    x = tokens(step, values, step.x, end)
    for number in (step.cos, step.sin):
        table = tokens(step, values, number, step.turned)
        check(table[-1] == step.turned and prod(table[:-1]) == prod(x[:-1]),
               f"value {number} read by 'rotary'", "angles of every token", table,
               "pass as many as there are")  # fmt: skip
    return Value("tokens", (*x[:-1], step.heads * step.head))


def _attention(step: Attention, values: Values) -> Value:
    heads = (step.heads, *[step.heads // step.group] * 2)
    read = zip((step.x, step.key, step.value), step.first, step.strides, heads, strict=True)
    query, key, value = (
        tokens(step, values, v, end_of_heads(first, stride, count, step.head))
        for v, first, stride, count in read
    )
    for name, shape, others in (("key", key, query[:-2]), ("value", value, key[:-1])):
        same = len(shape) == len(query) > 1 and shape[: len(others)] == others
        check(same, f"{name} of 'attention'", "of as many sequences and tokens", shape,
               "pass queries, keys and values of one batch")  # fmt: skip
    if step.mask != -1:
        mask = tokens(step, values, step.mask, 0)
        fits = prod(mask[:-1]) == prod(query[:-1]) and mask[-1] == key[-2] and mask[0] == query[0]
        check(fits, "mask of 'attention'", "of every query and key", mask,
               "pass as many as there are")  # fmt: skip
    check(key[-2] > 0, "keys of 'attention'", "at least one", key, "pass longer inputs")
    return Value("tokens", (*query[:-1], step.heads * step.head))


def _pixels(step: Pixels, values: Values) -> Value:
    batch, channels, *sizes = image(step, values, step.x)
    check(len(sizes) == step.dims, f"value {step.x} read by 'pixels'",
           f"an image of {step.dims} sizes", sizes, "lower the model again")  # fmt: skip
    return Value("tokens", (batch, *sizes, channels))


def _picture(step: Picture, values: Values) -> Value:
    batch, *sizes, channels = tokens(step, values, step.x, 0)
    check(len(sizes) == step.dims, f"value {step.x} read by 'picture'",
           f"pixels of {step.dims} sizes", sizes, "lower the model again")  # fmt: skip
    return Value("image", (batch, channels, *sizes))


SEQUENCES: dict[type[Step], Callable[[Any, Values], Value]] = {
    Norm: _norm,
    Rotary: _rotary,
    Attention: _attention,
    Pixels: _pixels,
    Picture: _picture,
}
"""Step -> the value that it makes."""
