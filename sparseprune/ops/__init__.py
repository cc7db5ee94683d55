"""Ops: schema, fake kernel, reference and gradient of every format and of whole programs."""

from __future__ import annotations

from sparseprune.ops import bitmask, csr, csr_conv, run, run_times

__all__ = ["bitmask", "csr", "csr_conv", "run", "run_times"]
