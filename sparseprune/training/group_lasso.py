"""Group lasso: whole filters, channels, rows or layers go to zero together."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseprune import patterns
from sparseprune.errors import bad
from sparseprune.patterns import Groups, Pattern, Slices
from sparseprune.selection import Ignore
from sparseprune.training.penalties import Penalty

WHOLE = Slices("layer", dims=(0, 1, 2, 3))


class GroupLasso(Penalty):
    """R = sum_g ||w_g||_2; proximal: w_g <- w_g [1 - lr * strength / ||w_g||_2]_+.

    groups: a name or a pattern that partitions weights (`patterns.Groups`):
        "filter" W[f], "channel" W[:, c], "row" W[:, c, i, j], "layer" the whole weight, which are
        the groups of structured sparsity learning (Wen et al., 2016, arXiv:1608.03665);
        "row" alone is group brain damage (Lebedev & Lempitsky, 2016, arXiv:1506.02515, the l2,1
        norm); also "kernel", "block(r,c)", or a `Groups` of your own.
    Groups of all sizes weigh the same, as in both papers: no factor of sqrt(size). "layer" is
    meant for layers with a shortcut around them. For filters and channels at once use two methods.

    proximal=True gives groups that are exactly zero; the penalty alone leaves them near zero.
    Other arguments and errors as for `L1`; ValueError for a pattern without groups.
    """

    def __init__(
        self,
        strength: float,
        groups: str | Pattern = "filter",
        proximal: bool = False,
        ignore: Ignore = (),
    ) -> None:
        super().__init__(strength, proximal, ignore)
        partition = WHOLE if groups == "layer" else patterns.resolve(groups, "GroupLasso")
        if not isinstance(partition, Groups):
            expected, way_out = (
                "a partition into groups",
                "pass 'filter', 'channel', 'row', 'layer'",
            )
            raise bad("GroupLasso", "groups", expected, repr(partition.name), way_out)
        self.groups = partition

    def _value(self, weight: Tensor, groups: int) -> Tensor:
        return self._norms(weight, groups).sum()

    def _shrink_(self, weight: Tensor, by: float, groups: int) -> None:
        norms = self._norms(weight.to(torch.promote_types(weight.dtype, torch.float32)), groups)
        factors = torch.where(norms > by, 1 - by / norms, 0)  # 0 / 0 is not chosen
        spread = self.groups.spread(factors, weight.shape, groups)
        weight.mul_(spread).masked_fill_(spread == 0, 0)  # no -0.0

    def _norms(self, weight: Tensor, groups: int) -> Tensor:
        """||w_g||_2 of every group, as the pattern orders them; of gradient 0 where it is 0."""
        means, sizes = self.groups.pool(weight.square(), groups)
        live = means > 0
        return torch.where(live, (torch.where(live, means, 1) * sizes).sqrt(), 0)
