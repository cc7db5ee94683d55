"""The algebra of optimal brain surgery: inverse Hessians, and survivors that make good."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseprune.errors import bad

NOTHING = 1e-30
"""Curvature along inputs that are always zero: weights there score lowest, and move no other."""


def damped(hessian: Tensor, damping: float) -> Tensor:
    """H + damping * mean(diag H) * I, in float64. hessian: [..., k, k].

    A zero H (inputs that are always zero: a dead channel) becomes next to nothing times I.
    """
    exact = hessian.double()
    mean = exact.diagonal(dim1=-2, dim2=-1).mean(-1)
    lift = torch.where(mean == 0, NOTHING, damping * mean)
    identity = torch.eye(exact.shape[-1], dtype=exact.dtype, device=exact.device)
    return exact + lift[..., None, None] * identity


def inverse(hessian: Tensor) -> Tensor:
    """H^-1 of a positive definite matrix [..., k, k]; ValueError if it is none."""
    factor, info = torch.linalg.cholesky_ex(hessian)
    if info.any():
        way_out = "raise the criterion's damping, or give more data"
        got = "a singular one: the data leave some directions free"
        raise bad("prune", "the Hessian", "positive definite", got, way_out)
    return torch.cholesky_inverse(factor)


def compensated(rows: Tensor, mask: Tensor, hessian: Tensor) -> Tensor:
    """w_K + H_KK^-1 H_KS w_S for every row w, K what `mask` keeps of it and S the rest; 0 on S.

    The minimum of (w' - w)^T H (w' - w) over all w' that are zero on S: where H is X^T X, the
    least-squares fit of X_K w'_K to X w. Removing S one by one by OBS, with its update each time,
    ends at the same point. rows: [n, k]; mask: [n, k] bool; hessian: [k, k], positive definite.
    Rows with the same mask are solved together.
    """
    result = torch.zeros_like(rows, dtype=hessian.dtype)
    masks, of = mask.unique(dim=0, return_inverse=True)
    for i, kept in enumerate(masks):
        chosen = of == i
        w = rows[chosen].to(hessian.dtype)
        inner, outer = hessian[kept][:, kept], hessian[kept][:, ~kept]
        moved = torch.linalg.solve(inner, outer @ w[:, ~kept].T).T
        part = torch.zeros_like(w)
        part[:, kept] = w[:, kept] + moved
        result[chosen] = part
    return result
