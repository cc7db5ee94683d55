"""Ops: schema, fake kernel, reference and gradient of every format, in torch.library."""

from __future__ import annotations

from sparseprune.ops import bitmask, csr

__all__ = ["bitmask", "csr"]
