"""The ops of formats that serve Linear layers alone: ``<stem>_linear`` and ``<stem>_unpack``.

Sums are in float32 whatever the dtype of x, the weight and y, which share one. A pruned weight
contributes nothing to the output, even where the input is NaN or infinite (a dense layer would
compute 0 * inf = NaN there).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparseprune.ops import gradients
from sparseprune.ops.dtypes import check_dtype
from sparseprune.ops.products import clamp_, multiply
from sparseprune.ops.registration import register

_CLAMP = "float? low=None, float? high=None"

Needs = Callable[[Sequence[Tensor], int, int], Mapping[str, tuple[torch.dtype | None, int]]]
"""(buffers, rows, cols) -> buffer -> its dtype (None: that of x) and least number of elements."""


@dataclass(frozen=True)
class LinearFormat:
    """What tells one such format from another.

    Args:
        maker: what makes its weights, for messages.
        parts: its buffers, in the order of the ops' arguments; values are the first.
        needs: what the buffers must be.
        entries: (buffers) -> nonzeros, and row and column of each.
        unpack: (buffers, rows, cols) -> the dense weight.
    """

    maker: str
    parts: tuple[str, ...]
    needs: Needs
    entries: Callable[..., tuple[Tensor, Tensor, Tensor]]
    unpack: Callable[..., Tensor]

    @property
    def stem(self) -> str:
        """Of its ops."""
        return self.maker.partition(".")[0].lower()

    @property
    def schemas(self) -> dict[str, str]:
        """Name of an op -> its schema."""
        buffers = ", ".join(f"Tensor {part}" for part in self.parts)
        return {
            f"{self.stem}_linear": (
                f"(Tensor x, {buffers}, Tensor? bias, int rows, int cols, {_CLAMP}) -> Tensor"
            ),
            f"{self.stem}_unpack": f"({buffers}, int rows, int cols) -> Tensor",
        }

    def check_packed(
        self,
        op: str,
        x: Tensor,
        buffers: Sequence[Tensor],
        bias: Tensor | None,
        rows: int,
        cols: int,
    ) -> None:
        """What every op demands of a packed weight, its bias, and the type and device of x.

        Raises:
            RuntimeError: what is not so.
        """
        check_dtype(op, x, buffers[0])
        torch._check(
            rows >= 0 and cols >= 0,
            lambda: f"{op}: rows and cols must be as made by {self.maker}, got {rows}, {cols}",
        )
        found = dict(zip(self.parts, buffers, strict=True))
        if bias is not None:
            self._check_buffer(op, x, "bias", bias, None, rows)
        for argument, (dtype, at_least) in self.needs(buffers, rows, cols).items():
            self._check_buffer(op, x, argument, found[argument], dtype, at_least)

    def _check_buffer(
        self, op: str, x: Tensor, argument: str, t: Tensor, dtype: torch.dtype | None, at_least: int
    ) -> None:
        torch._check(
            t.device == x.device,
            lambda: f"{op}: {argument} must be on the device of x; move the module too",
        )
        torch._check(
            t.dtype == (dtype or x.dtype) and t.is_contiguous() and t.numel() >= at_least,
            lambda: (
                f"{op}: {argument} must be as made by {self.maker}, contiguous and at least "
                f"{at_least} long, got {t.numel()} elements of {t.dtype}; convert the model again"
            ),
        )

    def check_linear(self, x: Tensor, *args: Any) -> None:
        """What the linear op demands of its arguments, as the compiled one does."""
        *buffers, bias, rows, cols = args
        op = f"{self.stem}_linear"
        torch._check(
            x.dim() >= 1 and x.shape[-1] == cols,
            lambda: (
                f"{op}: x must have {cols} features in its last dimension, got {tuple(x.shape)}"
            ),
        )
        self.check_packed(op, x, buffers, bias, rows, cols)

    def linear(
        self, x: Tensor, *args: Any, low: float | None = None, high: float | None = None
    ) -> Tensor:
        """y = clamp(x W^T + bias) over the nonzeros of W alone; x [..., cols] -> [..., rows]."""
        *buffers, bias, rows, cols = args
        self.check_linear(x, *args)
        values, row, column = self.entries(*buffers)
        tokens = x.reshape(x.shape[:-1].numel(), cols).float()
        y = multiply(tokens, values.float(), row, column, rows)
        if bias is not None:
            y += bias
        return clamp_(y, low, high).to(x.dtype).view(*x.shape[:-1], rows)

    def register(self, *namespaces: str) -> None:
        """Both ops, in these namespaces too: one schema, reference, fake kernel and gradient."""
        arguments = len(self.parts) + 3  # after x: buffers, bias, rows, cols

        def split(args: Sequence[Any]) -> tuple[Sequence[Any], float | None, float | None]:
            low, high = (*args[arguments:], None, None)[:2]
            return args[:arguments], low, high

        def reference(x: Tensor, *args: Any, **clamp: Any) -> Tensor:
            given, low, high = split(args)
            return self.linear(x, *given, **{"low": low, "high": high, **clamp})

        def fake(x: Tensor, *args: Any, **clamp: Any) -> Tensor:
            self.check_linear(x, *args[:arguments])
            return x.new_empty(*x.shape[:-1], args[arguments - 2])

        def fake_unpack(values: Tensor, *args: Any) -> Tensor:
            return values.new_empty(*args[-2:])

        register(
            ("sparseprune", "sparseprune_reference", *namespaces),
            self.schemas,
            {
                f"{self.stem}_linear": (reference, fake),
                f"{self.stem}_unpack": (self.unpack, fake_unpack),
            },
            {f"{self.stem}_linear": (self._save, self._backward)},
        )

    def _save(self, ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:
        count = len(self.parts)
        bias, rows, cols, low, high = inputs[1 + count :]
        gradients.save(ctx, inputs[1 : 1 + count], (rows, cols), bias, output, low, high)

    def _backward(self, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        unpack = getattr(torch.ops.sparseprune, f"{self.stem}_unpack")
        grad_x, grad_bias = gradients.linear(ctx, grad, unpack)
        return grad_x, *(None,) * len(self.parts), grad_bias, *(None,) * 4
