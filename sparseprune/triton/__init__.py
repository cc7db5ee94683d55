"""Kernels in Triton, for CUDA devices without the compiled ones; each file has its format's stem.

They are registered for the ops of the namespace ``sparseprune_triton``, when this package is
imported. Not yet run on a GPU.
"""

from __future__ import annotations

from sparseprune.triton import bitmask, block, csr, nm

__all__ = ["bitmask", "block", "csr", "nm"]
