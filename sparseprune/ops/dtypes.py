"""What ops of formats in several dtypes demand of their inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparseprune.formats.base import DTYPES


def check_dtype(op: str, x: Tensor, values: Tensor, dtypes: Sequence[torch.dtype] = DTYPES) -> None:
    """x in a dtype that the op serves, and in that of the weight's values.

    Raises:
        RuntimeError: another dtype, or not the weight's.
    """
    served = " or ".join(", ".join(map(_name, dtypes)).rsplit(", ", 1))
    torch._check(
        x.dtype in dtypes,
        lambda: f"{op}: x must be {served}, got {x.dtype}; convert it, e.g. with .float()",
    )
    torch._check(
        values.dtype not in dtypes or x.dtype == values.dtype,
        lambda: (
            f"{op}: x must be {_name(values.dtype)}, the dtype of the weight, got {x.dtype}; "
            "convert one of them"
        ),
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
