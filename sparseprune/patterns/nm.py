"""N of every M weights kept (N:M), and its form for wider groups (V:N:M)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseprune.errors import bad, check_count, suggest
from sparseprune.patterns.groups import as_boxes, rounded
from sparseprune.patterns.ranking import floor, lowest, lowest_together

AXES = ("input", "channel", "output")

SLACK = 1e-3
"""Sparsities this near to 1 - N/M mean the pattern itself: 0.667 for 1:3."""


class FixedSparsity:
    """A pattern that sets its own sparsity, 1 - N/M. More may go, less would be illegal.

    At a sparsity above 1 - N/M the lowest of the weights that the pattern keeps go as well, so
    that no group keeps more than N. Scope "global" then ranks these weights together, with the
    floor of `Unstructured`; at 1 - N/M itself global and local are the same.

    Raises ValueError for a sparsity below 1 - N/M.
    """

    n: int
    m: int

    @property
    def name(self) -> str:
        """How users and reports call the pattern."""
        raise NotImplementedError

    @property
    def least_sparsity(self) -> float:
        """1 - N/M."""
        return 1 - self.n / self.m

    def legal(self, score: Tensor, groups: int = 1) -> Tensor:
        """The mask that the pattern alone asks for, of the score's shape."""
        raise NotImplementedError

    def mask(self, score: Tensor, sparsity: float, groups: int = 1) -> Tensor:
        """The best N of every M, less the lowest of them if `sparsity` is above 1 - N/M.

        score: [out, in / groups, *kernel]; `groups` is the convolution's.
        """
        more = self._more(sparsity)
        mask = self.legal(score, groups)
        if more:
            count = round(sparsity * score.numel()) - int((~mask).count_nonzero())
            mask[mask.clone()] = ~lowest([score[mask]], max(0, count))[0]
        return mask

    def masks(
        self, scores: Mapping[str, Tensor], sparsity: float, groups: Mapping[str, int] | None = None
    ) -> dict[str, Tensor]:
        """The same for many weights; what goes beyond N:M is ranked together."""
        more = self._more(sparsity)
        masks = {n: self.legal(score, (groups or {}).get(n, 1)) for n, score in scores.items()}
        if more:
            left = {name: scores[name][mask] for name, mask in masks.items()}
            total = sum(score.numel() for score in scores.values())
            count = round(sparsity * total) - total + sum(map(len, left.values()))
            least = {n: min(len(left[n]), floor(s.numel(), sparsity)) for n, s in scores.items()}
            for name, gone in lowest_together(left, count, least).items():
                masks[name][masks[name].clone()] = ~gone
        return masks

    def _more(self, sparsity: float) -> bool:
        """Whether more is to go than the pattern removes; an error if less."""
        if sparsity < self.least_sparsity - SLACK:
            expected = f"at least {self.least_sparsity:g} with pattern {self.name!r}"
            way_out = f"pass {self.least_sparsity:g}, or pattern='unstructured'"
            raise bad("prune", "sparsity", expected, sparsity, way_out)
        return sparsity > self.least_sparsity + SLACK


@dataclass(frozen=True)
class NM(FixedSparsity):
    """At most `n` of every `m` consecutive weights are kept: the highest scores.

    (Zhou et al., 2021, arXiv:2102.04010; 2:4 is what NVIDIA's sparse tensor cores read, Mishra et
    al., 2021, arXiv:2104.08378.) N is the number kept; some tools mean the number pruned, which is
    the same for 2:4 alone.

    axis: along what the m weights lie.
        "input": columns of the matrix [out, in * kernel], the default;
        "channel": input channels at one place of the kernel, as tensor cores read a convolution;
        "output": rows of that matrix, inside each group of a grouped convolution.
    A last group of r < m weights keeps min(n, r), as if padded with zeros. Ties: the earlier goes.

    Raises ValueError or TypeError unless 1 <= n < m and the axis is known.
    """

    n: int
    m: int
    axis: str = "input"

    def __post_init__(self) -> None:
        _check_ratio("NM", self.n, self.m)
        if self.axis not in AXES:
            expected = " or ".join(map(repr, AXES))
            raise bad("NM", "axis", expected, repr(self.axis), suggest(self.axis, AXES))

    @property
    def name(self) -> str:
        return f"{self.n}:{self.m}" + ("" if self.axis == "input" else f" {self.axis}")

    def legal(self, score: Tensor, groups: int = 1) -> Tensor:
        boxes = as_boxes(score, groups)
        if self.axis == "input":
            kept = _best(boxes.flatten(2), self.n, self.m)
        else:
            dim = 1 if self.axis == "output" else 2
            kept = _best(boxes.movedim(dim, -1), self.n, self.m).movedim(-1, dim)
        return kept.reshape(score.shape)


@dataclass(frozen=True)
class VNM(FixedSparsity):
    """`n` of every `m` columns kept in each row, chosen from 4 columns that `v` rows share.

    VENOM (Castro et al., 2023, arXiv:2310.02065): in every block of v rows and m columns of the
    matrix [out, in * kernel] the `columns` of highest summed score stay, and of these the n
    highest in every row; with n = 2 and 4 columns what is left is 2:4 for the tensor cores, at
    any ratio 2:m. Smaller blocks at the edges follow the same rule. Ties: the earlier goes.

    Raises ValueError or TypeError unless v >= 1 and n <= columns <= m, n < m.
    """

    v: int
    n: int
    m: int
    columns: int = 4

    def __post_init__(self) -> None:
        check_count("VNM", "v", self.v)
        _check_ratio("VNM", self.n, self.m)
        check_count("VNM", "columns", self.columns, least=self.n)
        if self.columns > self.m:
            way_out = "pass a larger m, or fewer columns"
            raise bad("VNM", "columns", f"at most m, {self.m}", self.columns, way_out)

    @property
    def name(self) -> str:
        return f"{self.v}:{self.n}:{self.m}"

    def legal(self, score: Tensor, groups: int = 1) -> Tensor:
        matrix = as_boxes(score, groups).flatten(2)
        mask = torch.ones_like(matrix, dtype=torch.bool)
        for rows, v in _edges(matrix.shape[1], self.v):
            for columns, m in _edges(matrix.shape[2], self.m):
                mask[:, rows, columns] = self._blocks(matrix[:, rows, columns], v, m)
        return mask.reshape(score.shape)

    def _blocks(self, matrix: Tensor, v: int, m: int) -> Tensor:
        """The mask of a matrix [groups, rows, columns] that is all blocks of v x m."""
        blocks = matrix.unflatten(2, (-1, m)).unflatten(1, (-1, v))  # [groups, R, v, C, m]
        importance = rounded(blocks.sum(2, keepdim=True, dtype=torch.float64), matrix)
        shared = _best(importance, min(self.columns, m), m)
        # ascending places of the shared columns, so that ties still go by position
        places = shared.int().argsort(dim=-1, descending=True, stable=True)[..., : self.columns]
        places = places.expand(-1, -1, v, -1, -1)
        kept = _best(blocks.gather(-1, places), self.n, places.shape[-1])
        mask = torch.zeros_like(blocks, dtype=torch.bool).scatter_(-1, places, kept)
        return mask.flatten(3).flatten(1, 2)


def _check_ratio(operation: str, n: int, m: int) -> None:
    check_count(operation, "n", n)
    check_count(operation, "m", m)
    if n >= m:
        way_out = "pass n:m with n weights kept of every m, e.g. '2:4'"
        raise bad(operation, "n", f"below m, {m}", n, way_out)


def _edges(length: int, part: int) -> list[tuple[slice, int]]:
    """`length` as whole parts and what is left: 10, 4 -> [(slice(0, 8), 4), (slice(8, 10), 2)]."""
    whole = length // part * part
    edges = [(slice(0, whole), part), (slice(whole, length), length - whole)]
    return [(where, size) for where, size in edges if where.start < where.stop]


def _best(score: Tensor, n: int, m: int) -> Tensor:
    """Marks the n highest of every m consecutive along the last dimension; of equals the later."""
    marks = torch.ones(score.shape, dtype=torch.bool, device=score.device)
    for where, size in _edges(score.shape[-1], m):
        order = score[..., where].unflatten(-1, (-1, size)).argsort(dim=-1, stable=True)
        kept = torch.ones_like(order, dtype=torch.bool)
        marks[..., where] = kept.scatter_(-1, order[..., : max(0, size - n)], False).flatten(-2)
    return marks
