"""What the launches of every kernel share: which tiles are measured, limits of sizes, arguments."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from sparseprune.triton.finish import LEAST

MOST = 2**31 - 2**9
"""Tokens, rows or columns that index maths in 32 bits can hold."""

Fits = Callable[[dict[str, int], dict[str, Any]], bool]
"""(constants of a configuration, arguments of the kernel) -> whether it is worth measuring."""


def tuned(
    configs: list[Any],
    interpreted: int,
    least: int = LEAST,
    fits: Fits = lambda constants, arguments: True,
) -> Any:
    """Measures configurations at the first call for a shape, those whose tiles are mostly empty
    left out.

    Args:
        configs: with a constant TOKENS.
        interpreted: the one that the interpreter takes, which has nothing to measure.
        least: tokens of the smallest tile.
        fits: what else a configuration must meet.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        configs = configs[interpreted : interpreted + 1]

    def fitting(configs: list[Any], args: dict[str, Any], **_: Any) -> list[Any]:
        most = max(least, triton.next_power_of_2(args["tokens"]))
        found = [c for c in configs if c.kwargs["TOKENS"] <= most and fits(c.kwargs, args)]
        return found or configs[:1]

    return triton.autotune(
        configs,
        key=["tuned_tokens", "cols", "rows"],
        prune_configs_by={"early_config_prune": fitting},
    )


def launch(
    kernel: Any,
    op: str,
    programs: Callable[[dict[str, int]], int],
    x: Tensor,
    packed: Sequence[Tensor],
    bias: Tensor | None,
    y: Tensor,
    sizes: tuple[int, int, int],
    clamp: tuple[float | None, float | None],
    *numbers: int,
    **constants: Any,
) -> Tensor:
    """y, written by kernel(x, *packed, bias, y, tokens, tuned_tokens, rows, cols, low, high, ...).

    Args:
        programs: (constants of the tile) -> how many.
        sizes: tokens (or output pixels), rows, columns.

    Raises:
        RuntimeError: sizes beyond :data:`MOST`.
    """
    tokens, rows, cols = sizes
    torch._check(
        max(sizes) < MOST,
        lambda: (
            f"{op}: tokens, rows and columns must be below {MOST}, got {tokens}, {rows}, {cols}; "
            "split the input"
        ),
    )
    if y.numel() == 0:
        return y
    low, high = clamp
    with torch.cuda.device(x.device if x.is_cuda else -1):
        kernel[lambda meta: (programs(meta),)](
            x, *packed, x if bias is None else bias, y, tokens, triton.next_power_of_2(tokens),
            rows, cols, -math.inf if low is None else low, math.inf if high is None else high,
            *numbers, HAS_BIAS=bias is not None, **constants,
        )  # fmt: skip
    return y
