"""SparseGPT: L-OBS in one sweep over the columns of a weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from sparseprune.criteria.interface import Stats
from sparseprune.criteria.statistics.base import Layer
from sparseprune.criteria.statistics.inputs import InputGram
from sparseprune.criteria.surgery import damped, inverse
from sparseprune.patterns import Pattern, Unstructured


class InputFactor(InputGram):
    """U, upper triangular, with U^T U = (X^T X / n + damping * mean(diag) I)^-1: [groups, k, k]."""

    name = "input_factor"

    def __init__(self, damping: float) -> None:
        super().__init__()
        self.damping = damping

    def result(self, layer: Layer, sums: Mapping[str, Tensor]) -> Tensor:
        """From the Gram matrix, in float64."""
        inverted = inverse(damped(super().result(layer, sums), self.damping))
        upper: Tensor = torch.linalg.cholesky(inverted, upper=True)
        return upper


Choose: TypeAlias = Callable[[Tensor, slice], Tensor]
"""(scores of some columns, which) -> their mask."""


@dataclass(frozen=True)
class SparseGPT:
    """w_ij^2 / [U_jj]^2, U^T U = H^-1 (upper Cholesky), H = X^T X / n + damping. Higher is kept.

    U_jj^2 is [H^-1]_jj once columns before j are fixed. From left to right every removed weight
    spreads its error over the columns after it: w_i,j: -= w_ij / U_jj * U_j,j:.
    (Frantar & Alistarh, 2023, arXiv:2301.00774, algorithm 1.)

    In scope "local" with pattern "unstructured" or n:m the mask is chosen as in the paper: block
    by block of columns (`block`, or m), from weights that earlier columns have already changed. In
    scope "global", and with other patterns, it is chosen from the scores of the weights as given.
    The paper measures each layer behind already pruned ones, this one pass behind dense ones.

    damping: share of mean(diag) added to the diagonal. X: see `LOBS`, whose H it shares. Needs
    data, no loss; the score has the weight's shape, float64.
    """

    damping: float = 1e-2
    block: int = 128

    @property
    def needs(self) -> tuple[partial[InputFactor]]:
        """The factor of every layer's inverse Hessian, computed once."""
        return (partial(InputFactor, self.damping),)

    def __call__(self, weight: Tensor, stats: Stats) -> Tensor:
        upper = stats["input_factor"]
        grouped = weight.double().reshape(upper.shape[0], -1, upper.shape[1])
        score = (grouped / upper.diagonal(dim1=-2, dim2=-1).unsqueeze(1)).square()
        return score.reshape(weight.shape)

    def select(
        self, weight: Tensor, sparsity: float, pattern: Pattern, stats: Stats
    ) -> Tensor | None:
        """The mask block by block of columns, where every block of the pattern is legal alone."""
        block = self._columns(pattern)
        if block is None or weight.dim() != 2:
            return None
        mask, gone = torch.ones_like(weight, dtype=torch.bool), weight == 0

        def choose(score: Tensor, columns: slice) -> Tensor:
            score = score.masked_fill(gone[:, columns], -1)  # whatever earlier columns made of it
            mask[:, columns] = pattern.mask(score, sparsity)
            return mask[:, columns]

        _sweep(weight.double(), stats["input_factor"][0], choose, block)
        return mask

    def update(self, weight: Tensor, mask: Tensor, stats: Stats) -> Tensor:
        """The sweep with this mask."""
        upper = stats["input_factor"]
        shape = (upper.shape[0], -1, upper.shape[1])
        groups = zip(weight.double().reshape(shape), mask.reshape(shape), upper, strict=True)
        swept = [_sweep(w, u, lambda _, c, m=m: m[:, c], self.block) for w, m, u in groups]
        return torch.stack(swept).reshape(weight.shape)

    def _columns(self, pattern: Pattern) -> int | None:
        """How many columns to choose in at once; None if the pattern must see them all."""
        if isinstance(pattern, Unstructured):
            return self.block
        along_input = getattr(pattern, "axis", None) == "input"
        return getattr(pattern, "m", None) if along_input else None


def _sweep(weight: Tensor, upper: Tensor, choose: Choose, block: int) -> Tensor:
    """Algorithm 1 over a weight [rows, k]: the updated weight, zero where removed."""
    weight = weight.clone()
    for start in range(0, weight.shape[1], block):
        columns = slice(start, min(start + block, weight.shape[1]))
        diagonal = upper.diagonal()[columns]
        kept = choose((weight[:, columns] / diagonal).square(), columns)
        errors = torch.zeros_like(weight[:, columns])
        for i, j in enumerate(range(columns.start, columns.stop)):
            errors[:, i] = weight[:, j].masked_fill(kept[:, i], 0) / upper[j, j]
            inside = slice(j, columns.stop)
            weight[:, inside] -= errors[:, i : i + 1] * upper[j, inside]
            weight[:, j].masked_fill_(~kept[:, i], 0)
        after = slice(columns.stop, weight.shape[1])  # lazily, one product for the whole block
        weight[:, after] -= errors @ upper[columns, after]
    return weight
