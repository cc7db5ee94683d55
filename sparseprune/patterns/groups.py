"""Groups of weights that go or stay together: filters, channels, kernels, rows, blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sparseprune.errors import bad, check_count, warn
from sparseprune.patterns.ranking import floor, lowest, lowest_together


def as_boxes(score: Tensor, groups: int) -> Tensor:
    """A score [out, in / groups, *kernel] as [groups, out / groups, in / groups, kernel]."""
    if score.dim() < 2 or score.shape[0] % groups:
        expected = f"of a Linear or convolution with {groups} groups"
        way_out = "pass one score [out, in / groups, *kernel]"
        raise bad("pattern", "score", expected, f"the shape {tuple(score.shape)}", way_out)
    out, inputs, *kernel = score.shape
    return score.reshape(groups, out // groups, inputs, math.prod(kernel))


class Groups:
    """A partition of every weight into groups; the groups of the lowest mean score go.

    The score of a group is the mean of its members, in float64. For a budget counted in weights
    that is what a greedy choice ranks by, the loss of a removal per weight removed, and the one
    measure that compares filters of 27 weights with filters of 4608 under one threshold; by sums
    the smallest groups would go first whatever they hold. Inside one layer, where groups are of
    one size, sum and mean agree. A group with a member of score +inf stays before all finite ones.

    As many groups are removed as come nearest to the share asked for; ties go by position. No
    layer loses its last group, and a warning says where that was needed.
    """

    @property
    def name(self) -> str:
        """How users and reports call the pattern."""
        raise NotImplementedError

    def pool(self, score: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        """The mean score of every group, and its number of weights (int64, of the same shape)."""
        raise NotImplementedError

    def spread(self, marks: Tensor, shape: torch.Size, groups: int) -> Tensor:
        """Marks of groups, as `pool` orders them -> marks of the weights, of this shape."""
        raise NotImplementedError

    def mask(self, score: Tensor, sparsity: float, groups: int = 1) -> Tensor:
        """Removes the groups of lowest mean, nearest to `sparsity` of the weights, but not all.

        score: [out, in / groups, *kernel]; `groups` is the convolution's.
        """
        if not score.numel():
            return torch.ones(score.shape, dtype=torch.bool, device=score.device)
        means, sizes = self.pool(score, groups)
        [removed] = lowest([means], round(sparsity * score.numel()), [sizes])
        if removed.all():
            shape = " x ".join(map(str, score.shape))
            warn(
                f"prune: a sparsity of {sparsity:g} would remove every {self.name} of the weight "
                f"{shape}; the best stays. Use a lower sparsity, or add the layer to ignore"
            )
            [removed] = lowest([means], score.numel() - int(sizes.max()), [sizes])
        return ~self.spread(removed, score.shape, groups)

    def masks(
        self, scores: Mapping[str, Tensor], sparsity: float, groups: Mapping[str, int] | None = None
    ) -> dict[str, Tensor]:
        """Removes groups by one threshold on their means, nearest to `sparsity` of all weights.

        No weight is emptied: each keeps at least `FLOOR` of the requested density, and one group.
        """
        of = groups or {}
        pools = {name: self.pool(score, of.get(name, 1)) for name, score in scores.items()}
        means = {name: mean for name, (mean, _) in pools.items()}
        sizes = {name: size for name, (_, size) in pools.items()}
        least = {
            name: floor(score.numel(), sparsity, int(sizes[name].max()) if score.numel() else 0)
            for name, score in scores.items()
        }
        count = round(sparsity * sum(score.numel() for score in scores.values()))
        removed = lowest_together(means, count, least, sizes)
        return {
            name: ~self.spread(removed[name], score.shape, of.get(name, 1))
            for name, score in scores.items()
        }


@dataclass(frozen=True)
class Slices(Groups):
    """Groups that are slices of the weight [groups, out / groups, in / groups, kernel].

    `dims` are the dimensions of that shape which a group spans. A Linear layer counts as a
    convolution of kernel 1, so its kernels are single weights.
    """

    name: str = "filter"
    dims: tuple[int, ...] = (2, 3)

    def pool(self, score: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        boxes = as_boxes(score, groups)
        count = math.prod(boxes.shape[dim] for dim in self.dims)
        means = rounded(boxes.sum(self.dims, keepdim=True, dtype=torch.float64) / count, score)
        return means, torch.full((), count, device=score.device).expand(means.shape)

    def spread(self, marks: Tensor, shape: torch.Size, groups: int) -> Tensor:
        whole = (groups, shape[0] // groups, shape[1], math.prod(shape[2:]))
        return marks.expand(whole).reshape(shape)


@dataclass(frozen=True)
class Block(Groups):
    """Blocks of `rows` x `columns` of the weight as a matrix [out, in * kernel], row-major.

    With `taps` the matrix is [out, kernel * in]: a block spans neighbouring input channels of one
    tap, which GPU kernels read at once. To a Linear layer it makes no difference.

    Sizes that the block does not divide leave smaller blocks at the lower and right edge, as if
    the matrix were padded; their mean is over the weights that exist. In a grouped convolution no
    block reaches across groups, whose rows read different inputs.

    Raises ValueError or TypeError unless both sizes are whole numbers of at least 1.
    """

    rows: int
    columns: int
    taps: bool = False

    def __post_init__(self) -> None:
        for argument in ("rows", "columns"):
            check_count("Block", argument, getattr(self, argument))

    @property
    def name(self) -> str:
        return f"block({self.rows},{self.columns}{',taps' if self.taps else ''})"

    def pool(self, score: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        boxes = as_boxes(score, groups)
        matrix = (boxes.transpose(2, 3) if self.taps else boxes).flatten(2)
        _, out, inputs = matrix.shape
        padded = F.pad(matrix, (0, -inputs % self.columns, 0, -out % self.rows))
        blocks = padded.unflatten(2, (-1, self.columns)).unflatten(1, (-1, self.rows))
        tall = _parts(out, self.rows, score.device)
        wide = _parts(inputs, self.columns, score.device)
        sizes = (tall[:, None] * wide).expand(groups, -1, -1)
        return rounded(blocks.sum((2, 4), dtype=torch.float64) / sizes, score), sizes

    def spread(self, marks: Tensor, shape: torch.Size, groups: int) -> Tensor:
        out, inputs = shape[0] // groups, math.prod(shape[1:])
        wide = marks.repeat_interleave(self.columns, 2)[:, :, :inputs]
        matrix = wide.repeat_interleave(self.rows, 1)[:, :out]
        if self.taps:
            matrix = matrix.unflatten(2, (-1, shape[1])).transpose(2, 3)
        return matrix.reshape(shape)


def rounded(means: Tensor, score: Tensor) -> Tensor:
    """Means of float32 or less as float32: devices that add in another order agree on ties."""
    means = means.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)  # inf and -inf
    return means if score.dtype == torch.float64 else means.float()


def _parts(length: int, part: int, device: torch.device) -> Tensor:
    """The sizes of the parts of `length`, the last one possibly smaller: 5, 2 -> [2, 2, 1]."""
    starts = torch.arange(0, length, part, device=device)
    return (length - starts).clamp(max=part)
