"""Ops: schema, fake kernel, reference and gradient of every format and of whole programs."""

from __future__ import annotations

import importlib

from sparseprune import backends
from sparseprune.ops import (
    bitmask,
    block,
    bound,
    csr,
    csr_conv,
    nm,
    nm_cusparselt,
    run,
    run_times,
    sell,
)

__all__ = [
    "bitmask",
    "block",
    "bound",
    "csr",
    "csr_conv",
    "nm",
    "nm_cusparselt",
    "run",
    "run_times",
    "sell",
]

if backends.TRITON.missing is None:
    importlib.import_module("sparseprune.triton")
