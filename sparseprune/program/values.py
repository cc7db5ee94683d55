"""Values of a program as shapes, and what may be wrong with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sparseprune.program.steps import Step

Size = Any
"""An int, or a torch.SymInt while a compiler traces."""


@dataclass(frozen=True)
class Value:
    """kind: "image" [N, channels, *sizes] or "tokens" [..., channels]."""

    kind: str
    shape: tuple[Size, ...]


Values = dict[int, Value]


def check(holds: Any, argument: str, expected: str, got: object, way_out: str) -> None:
    """Raises a RuntimeError, now or where a compiler traces, unless it holds."""
    torch._check(holds, lambda: f"run: {argument} must be {expected}, got {got}; {way_out}")


def image(step: Step, values: Values, number: int) -> tuple[Size, ...]:
    """The shape of an image that a step reads."""
    value = values[number]
    check(value.kind == "image", f"value {number} read by {step.word!r}", "an image",
           f"{value.kind} {value.shape}", "lower the model again")  # fmt: skip
    return value.shape


def tokens(step: Step, values: Values, number: int, channels: int) -> tuple[Size, ...]:
    """The shape of tokens of at least so many channels that a step reads."""
    value = values[number]
    argument, expected = f"value {number} read by {step.word!r}", f"tokens of {channels} channels"
    check(value.kind == "tokens" and value.shape[-1] >= channels, argument, expected,
           f"{value.kind} {value.shape}", "pass what it was made for")  # fmt: skip
    return value.shape
