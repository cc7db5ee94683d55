"""Han's threshold: magnitude in units of the layer's standard deviation."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseprune.criteria.interface import Stats


def han(weight: Tensor, stats: Stats | None = None) -> Tensor:
    """|w| / std(W), std over the whole weight. Higher is kept.

    One quality factor q for all layers, "keep |w| > q std(layer)", is then scope "global": the
    sparsity asked for sets q. (Han et al., 2015, arXiv:1506.02626)
    weight: any shape; the score has the same shape, at least float32. A constant weight, whose
    deviation is zero, is scored as if it were float epsilon: it is kept.
    """
    exact = weight.to(torch.promote_types(weight.dtype, torch.float32))
    deviation = exact.std(correction=0) if exact.numel() else exact.sum()
    # as large a score as there is, not infinite: 0 / 0 would be NaN
    return exact.abs() / deviation.clamp_min(torch.finfo(exact.dtype).eps)
