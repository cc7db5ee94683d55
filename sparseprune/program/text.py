"""A program as text: a line per step, its word and its fields in order.

Text goes to the op ``sparseprune::run`` and into saved files; csrc/program/parse.cpp reads the same
lines.

    input 0 image 3 2              value 0 is an image with 3 channels and 2 spatial dimensions
    csr 1 0 -1 0 64 147 ...        value 1 = convolution of value 0 with the weights from tensor 0
    output 1
"""

from __future__ import annotations

from dataclasses import fields

from sparseprune.program.steps import (
    Activation,
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
    Output,
    Pool,
    Scale,
    Sell,
    Step,
    Upsample,
    Window,
)
from sparseprune.program.steps_sequences import Attention, Norm, Picture, Pixels, Rotary

_ALL = (Input, Csr, Bitmask, Sell, Linear, Depthwise, Pool, Mean, Adaptive, Upsample, Add,
        Multiply, Scale, Cat, Channels, Flatten, Norm, Rotary, Attention, Pixels, Picture,
        Output)  # fmt: skip
STEPS: dict[str, type[Step]] = {step.word: step for step in _ALL}
"""First word of a line -> its step."""
PARTS: dict[str, type] = {"Window": Window, "Activation": Activation}
"""Type of a field that is written as fields of its own."""


def to_text(steps: list[Step]) -> str:
    """The program as text, a line per step."""
    return "\n".join(" ".join([step.word, *_words(step)]) for step in steps)


def _words(item: Step | Window | Activation) -> list[str]:
    words: list[str] = []
    for field in fields(item):
        value = getattr(item, field.name)
        if isinstance(value, (Window, Activation)):
            words += _words(value)
        elif isinstance(value, tuple):
            words += map(str, value)
        else:
            words.append(repr(value) if isinstance(value, float) else str(value))
    return words


def from_text(text: str) -> list[Step]:
    """The inverse of :func:`to_text`.

    Raises:
        ValueError: a line that is not a step.
    """
    return [_step(line) for line in text.splitlines()]


def _step(line: str) -> Step:
    word, *words = line.split()
    if word not in STEPS:
        raise ValueError(f"program: a line must begin with one of {', '.join(STEPS)}, got {word!r}")
    step, rest = _take(STEPS[word], words, line)
    if rest:
        raise ValueError(f"program: words left over in {line!r}")
    return step  # type: ignore[return-value]


def _take(kind: type, words: list[str], line: str) -> tuple[object, list[str]]:
    values: list[object] = []
    for field in fields(kind):
        if (part := PARTS.get(str(field.type))) is not None:
            value, words = _take(part, words, line)
            values.append(value)
            continue
        count = 3 if field.type == "Triple" else 1
        if len(words) < count:
            raise ValueError(f"program: words missing in {line!r}")
        read = {"str": str, "float": float}.get(str(field.type), int)
        taken, words = [read(w) for w in words[:count]], words[count:]
        values.append(tuple(taken) if count == 3 else taken[0])
    return kind(*values), words
