"""The positive linear network behind a model: |W|, no biases, no nonlinearities."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from sparseprune.criteria.statistics.base import Run
from sparseprune.criteria.statistics.following import DROPOUT, NONLINEAR
from sparseprune.errors import bad

PRODUCTS = frozenset(("linear", "conv1d", "conv2d", "conv3d"))
IDENTITY = NONLINEAR | DROPOUT
LINEAR = frozenset((
    "flatten", "unflatten", "reshape", "view", "view_as", "permute", "transpose", "movedim",
    "contiguous", "squeeze", "unsqueeze", "cat", "concat", "stack", "chunk", "split", "unbind",
    "narrow", "select", "__getitem__", "pad", "clone", "to", "double", "float", "add", "add_",
    "__add__", "__iadd__", "__radd__", "sum", "mean", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"
))  # fmt: skip
"""What is linear already, with no sign to lose."""


class Positive(TorchFunctionMode):
    """While active, the model computes x -> (prod |W|) x in float64, by these rules:

    linear, convolution: |W|, no bias. Batch norm: times |gamma| / sqrt(running variance + eps), no
    shift. Nonlinearities, dropout: identity. Max pooling: as it is, or the mean (`mean_pool`).
    Sums, concatenations, mean pooling and reshapes: as they are. Anything else is refused.
    """

    def __init__(self, run: Run, mean_pool: bool) -> None:
        super().__init__()
        self._operation = run.operation
        self._mean_pool = mean_pool
        self.sizes = {n: _size(weight).requires_grad_() for n, weight in run.weights.items()}
        """Weight name -> |W|, float64, to take gradients by: deep products leave float32."""
        self._size_of = {id(weight): self.sizes[n] for n, weight in run.weights.items()}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in PRODUCTS:
            return self._product(func, *args, **kwargs)
        if name == "batch_norm":
            return _scaled(*args, **kwargs)
        if name in IDENTITY:
            return args[0]
        if "max_pool" in name and self._mean_pool:
            return _mean_pool(name, *args, **kwargs)
        linear = name in LINEAR or "max_pool" in name
        try:
            out = func(*args, **kwargs)
        except RuntimeError as error:  # its weights are not float64
            raise self._refusal(name) from error
        if not linear and _live((args, kwargs)) and _live(out):
            raise self._refusal(name)
        return out

    def _product(
        self, func: Any, input: Tensor, weight: Tensor, bias: Any = None, *rest: Any, **kw: Any
    ) -> Any:
        """|W| x, no bias."""
        size = self._size_of.get(id(weight))
        return func(input, _size(weight) if size is None else size, None, *rest, **kw)

    def _refusal(self, name: str) -> ValueError:
        got = f"{name!r}, which has no such rule"
        way_out = "use a criterion that measures on data, e.g. 'taylor'"
        expected = "made of linear layers, convolutions, batch norm, pooling and sums"
        return bad(self._operation, "the model", expected, got, way_out)


def _size(weight: Tensor) -> Tensor:
    return weight.detach().abs().double()


def _live(value: Any) -> bool:
    """Whether a gradient runs through it."""
    return any(isinstance(t, Tensor) and t.requires_grad for t in tree_leaves(value))


def _scaled(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """|gamma| / sqrt(running_var + eps) * x; no variance kept counts as 1."""
    scale = torch.ones(input.shape[1], dtype=input.dtype, device=input.device)
    if weight is not None:
        scale = scale * weight.detach().abs()
    if running_var is not None:
        scale = scale / (running_var.to(input.dtype) + eps).sqrt()
    return input * scale.reshape(-1, *[1] * (input.dim() - 2))


def _mean_pool(
    name: str,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    **_: Any,
) -> Tensor:
    """Every entry of a window gets an equal share; dilation, which it has not, is left out."""
    spatial = next(digit for digit in "123" if f"{digit}d" in name)
    adaptive = "adaptive" in name
    pool = getattr(F, f"{'adaptive_' * adaptive}avg_pool{spatial}d")
    rest = () if adaptive else (stride or kernel_size, padding, ceil_mode)
    pooled: Tensor = pool(input, kernel_size, *rest)
    return pooled
