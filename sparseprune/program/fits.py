"""Whether the tensors of a program are those that its steps mean: no kernel must leave them.

Checked once, where a program comes from a file. Sizes that depend on the inputs are checked by
the op, call by call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from sparseprune.errors import bad
from sparseprune.formats import BitmaskWeight, CsrWeight, PackedWeight, SellWeight, csr_check
from sparseprune.program.checks import MOST
from sparseprune.program.steps import (
    Add,
    Bitmask,
    Cat,
    Channels,
    Csr,
    Depthwise,
    Flatten,
    Input,
    Linear,
    Multiply,
    OnTokens,
    Output,
    Pool,
    Scale,
    Sell,
    Step,
    Window,
)
from sparseprune.program.steps_sequences import (
    Attention,
    Norm,
    Picture,
    Pixels,
    Rotary,
    end_of_heads,
)

_WAY_OUT = "save the model again"

Held = Sequence[tuple[nn.Module, str, Tensor]]
"""(module that holds it, its name there, the tensor) for every tensor of a program."""
Known = dict[int, tuple[str, int | None]]
"""Value -> kind and channels; None where they depend on the sizes of the inputs."""


def check_fits(steps: Sequence[Step], held: Held) -> None:
    """That every step points at tensors of its own sizes, and reads values that it can take.

    Raises:
        ValueError: the step, and what is wrong with it.
    """
    known: Known = {}
    for step in steps:
        if (check := CHECKS.get(type(step))) is not None:
            check(step, held)
        if not isinstance(step, Output):
            known[step.out] = _value(step, known)  # type: ignore[attr-defined]


def _taken(step: Any, held: Held, first: int, count: int) -> Held:
    found = held[step.tensors + first : step.tensors + first + count]
    if len(found) != count:
        raise bad("program", f"tensors of {step}", f"fewer than {len(held)}", step.tensors,
                  _WAY_OUT)  # fmt: skip
    return found


def _packed(step: Csr | OnTokens, held: Held, kind: type[PackedWeight]) -> Any:
    """The weight whose buffers, all of them and in order, are the tensors of a step."""
    found = _taken(step, held, 0, len(kind.parts))
    weight = found[0][0]
    one = all(module is weight and name == buffer
              for (module, name, _), buffer in zip(found, kind.parts, strict=True))  # fmt: skip
    if not one or not isinstance(weight, kind):
        raise bad("program", f"tensors of {step}", "those of one packed weight",
                  [name for _, name, _ in found], _WAY_OUT)  # fmt: skip
    sizes, meant = (weight.rows, weight.cols), (step.rows, step.cols)
    if sizes != meant:
        raise bad("program", f"rows and cols of {step}", f"{sizes}, as of its weight", meant,
                  _WAY_OUT)  # fmt: skip
    if step.has_bias:
        _check_plain(step, held, len(kind.parts), step.rows)
    return weight


def _check_csr(step: Csr, held: Held) -> None:
    weight = _packed(step, held, CsrWeight)
    if weight.block != step.block:
        raise bad("program", f"block of {step}", f"{weight.block}, as of its weight", step.block,
                  _WAY_OUT)  # fmt: skip
    csr_check.check_groups(weight, step.groups)


def _check_few(step: OnTokens, held: Held) -> None:
    weight = _packed(step, held, FEW[type(step)])
    if weight.dtype != torch.float32:
        raise bad("program", f"weight of {step}", "float32", weight.dtype, _WAY_OUT)


def _check_linear(step: Linear, held: Held) -> None:
    _check_weight(step, held, step.rows, step.cols)


def _check_depthwise(step: Depthwise, held: Held) -> None:
    _check_weight(step, held, step.channels * step.multiplier, prod(step.window.kernel))


def _check_weight(step: Linear | Depthwise, held: Held, rows: int, cols: int) -> None:
    """A plain weight, then the bias."""
    _check_plain(step, held, 0, rows * cols)
    if step.has_bias:
        _check_plain(step, held, 1, rows)


def _check_norm(step: Norm, held: Held) -> None:
    for place in range(1 + step.has_bias):
        _check_plain(step, held, place, step.channels)


def _check_plain(step: Step, held: Held, place: int, size: int) -> None:
    ((_, name, tensor),) = _taken(step, held, place, 1)
    if tensor.dtype != torch.float32 or tensor.numel() != size or not tensor.is_contiguous():
        raise bad("program", f"tensor {name!r} of {step}", f"{size} contiguous float32",
                  f"{tensor.numel()} of {tensor.dtype}", _WAY_OUT)  # fmt: skip


def _check_pool(step: Pool, held: Held) -> None:
    """What torch asks of a pooling: every window meets the image."""
    w = step.window
    halves = (2 * b <= d * (k - 1) + 1
              for b, d, k in zip(w.before, w.dilation, w.kernel, strict=True))  # fmt: skip
    if not all(halves) or (step.kind == "avg" and w.dilation != (1, 1, 1)):
        raise bad("program", f"window of {step}", "padded by half a kernel at most, averages "
                  "without dilation", w, _WAY_OUT)  # fmt: skip


FEW: dict[type[Step], type[PackedWeight]] = {Bitmask: BitmaskWeight, Sell: SellWeight}
"""Step on tokens -> what packs its weight, for few of them."""
CHECKS: dict[type[Step], Callable[[Any, Held], None]] = {
    Csr: _check_csr,
    **dict.fromkeys(FEW, _check_few),
    Linear: _check_linear,
    Depthwise: _check_depthwise,
    Norm: _check_norm,
    Pool: _check_pool,
}
"""Step -> whether its tensors are those that it means."""


def _value(step: Any, known: Known) -> tuple[str, int | None]:
    """Kind and channels of the value that a step makes."""
    if isinstance(step, Input):
        return step.kind, step.channels or None
    kind, channels = known[step.x]
    if isinstance(step, Csr):
        if kind == "tokens" and (step.window != Window() or step.groups != 1):
            raise bad("program", f"window and groups of {step}", "those of a linear layer on "
                      "tokens", (step.window, step.groups), _WAY_OUT)  # fmt: skip
        if channels is not None and channels * prod(step.window.kernel) != step.cols * step.groups:
            raise bad("program", f"cols of {step}", f"for its {channels} channels", step.cols,
                      _WAY_OUT)  # fmt: skip
        return kind, step.rows
    if isinstance(step, OnTokens):
        if kind != "tokens" or channels not in (None, step.cols):
            raise bad("program", f"value {step.x} of {step}", f"tokens of {step.cols} channels",
                      f"{channels} channels of {kind}", _WAY_OUT)  # fmt: skip
        return kind, step.rows
    if isinstance(step, (Add, Multiply)):
        return kind, channels
    if isinstance(step, Norm):
        if kind != "tokens" or channels not in (None, step.channels):
            raise bad("program", f"value {step.x} of {step}", f"tokens of {step.channels} channels",
                      f"{channels} channels of {kind}", _WAY_OUT)  # fmt: skip
        return kind, channels
    if isinstance(step, Attention):
        return _attended(step, known)
    if isinstance(step, Rotary):
        return _turned(step, known)
    if isinstance(step, Picture) and kind == "tokens" and channels is not None:
        return "image", channels
    if isinstance(step, Depthwise) and kind == "tokens":
        return kind, _scaled(step, channels)
    if kind != "image":
        raise bad("program", f"value {step.x} of {step}", "an image", kind, _WAY_OUT)
    if isinstance(step, Flatten):
        return "tokens", None
    assert channels is not None, "only flatten hides channels"
    if isinstance(step, Depthwise):
        if channels != step.channels:
            raise bad("program", f"channels of {step}", f"{channels}", step.channels, _WAY_OUT)
        return kind, channels * step.multiplier
    if isinstance(step, (Scale, Cat)):
        return kind, _both(step, channels, known)
    if isinstance(step, Channels):
        if channels % step.groups or step.begin + step.count > channels:
            raise bad("program", f"channels of {step}", f"some of {channels}, in equal groups",
                      (step.groups, step.begin, step.count), _WAY_OUT)  # fmt: skip
        return kind, step.count
    return "tokens" if isinstance(step, Pixels) else kind, channels


def _scaled(step: Depthwise, channels: int | None) -> int:
    fits = channels in (None, step.channels) and step.multiplier == 1 and step.window == Window()
    if not fits:
        raise bad("program", f"value {step.x} of {step}", f"tokens of {step.channels} channels, a "
                  "factor for each", f"{channels} channels", _WAY_OUT)  # fmt: skip
    return step.channels


def _turned(step: Rotary, known: Known) -> tuple[str, int]:
    end = end_of_heads(step.first, step.stride, step.heads, step.head)
    _check_tokens(step, step.x, end, known)
    for table in (step.cos, step.sin):
        if known[table] not in (("tokens", None), ("tokens", step.turned)):
            raise bad("program", f"value {table} of {step}", f"tokens of {step.turned} channels",
                      known[table], _WAY_OUT)  # fmt: skip
    return "tokens", step.heads * step.head


def _check_tokens(step: Step, value: int, least: int, known: Known) -> None:
    kind, channels = known[value]
    if kind != "tokens" or (channels is not None and least > channels):
        raise bad("program", f"value {value} of {step}", f"tokens of {least} channels",
                  f"{channels} channels of {kind}", _WAY_OUT)  # fmt: skip


def _attended(step: Attention, known: Known) -> tuple[str, int]:
    if step.mask != -1 and known[step.mask][0] != "tokens":
        raise bad("program", f"mask of {step}", "tokens", known[step.mask][0], _WAY_OUT)
    heads = (step.heads, *[step.heads // step.group] * 2)
    read = zip((step.x, step.key, step.value), step.first, step.strides, heads, strict=True)
    for value, first, stride, count in read:
        _check_tokens(step, value, end_of_heads(first, stride, count, step.head), known)
    return "tokens", step.heads * step.head


def _both(step: Scale | Cat, channels: int, known: Known) -> int:
    """The channels of what is made from two images."""
    other, more = known[step.by if isinstance(step, Scale) else step.y]
    if other != "image" or more is None or (isinstance(step, Scale) and more != channels):
        raise bad("program", f"second value of {step}", f"an image of {channels} channels",
                  f"{more} channels of {other}", _WAY_OUT)  # fmt: skip
    both = channels + more if isinstance(step, Cat) else channels
    if both > MOST:
        raise bad("program", f"channels of {step}", f"at most {MOST}", both, _WAY_OUT)
    return both
