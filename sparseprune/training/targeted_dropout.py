"""Targeted dropout: drops what would be pruned, so that the network learns to do without."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparseprune.errors import bad, check_count, check_sparsity, suggest
from sparseprune.masks import Masks
from sparseprune.selection import Ignore
from sparseprune.training.beside import Following, substitute

GRANULARITIES = ("weight", "unit")


def candidates(weight: Tensor, share: float, granularity: str = "weight") -> Tensor:
    """What targeted dropout may drop: a bool tensor of the weight's shape.

    "weight": in every output column w[o], the floor(share * n) of its n weights with the smallest
    |w|. "unit": of all columns, the floor(share * out) with the smallest ||w[o]||_2, whole.
    An entry that ties with the first one that stays, stays. (Gomez et al., 2019,
    arXiv:1905.13678, eq. 4-5.)
    """
    columns = weight.detach().flatten(1).to(torch.promote_types(weight.dtype, torch.float32))
    size = columns.abs() if granularity == "weight" else columns.norm(dim=1).unsqueeze(0)
    count = math.floor(share * size.shape[1] + 1e-9)  # 0.29 * 100 is 28.999...
    if count >= size.shape[1]:
        return torch.ones_like(weight, dtype=torch.bool)
    low = size < size.kthvalue(count + 1, dim=1, keepdim=True).values
    if granularity == "weight":
        return low.reshape(weight.shape)
    return low.reshape(-1, *(1,) * (weight.dim() - 1)).expand_as(weight)


class TargetedDropout(Following):
    """In train mode, drops each candidate with probability alpha; candidates: the lowest gamma.

    Dropped weights are zero for one call of their layer and take no gradient from it; which are
    candidates is seen anew in every call. Eval mode is the plain network: nothing is pruned before
    `finalize(sparsity)`, or `prune` after it. (Gomez et al., 2019, arXiv:1905.13678.)

    The authors' code differs in two things: its eval mode always prunes gamma, and its unit
    variant drops single weights of the candidate columns; here, as in the paper, whole columns.

    `TargetedDropout(p, share=1, rescale=True)` drops every weight with probability p and keeps its
    mean: DropConnect (Wan et al., 2013, ICML; "inverted", as dropout is today). With
    granularity="unit" it is dropout of a layer's outputs without their bias.
    """

    def __init__(
        self,
        drop: float,
        share: float,
        granularity: str = "weight",
        ramp: int = 0,
        rescale: bool = False,
        ignore: Ignore = (),
    ) -> None:
        """
        drop: alpha, the probability in [0, 1] of dropping a candidate.
        share: gamma, the share in [0, 1] of weights or units that are candidates.
        granularity: "weight" or "unit", see `candidates`.
        ramp: steps T over which both grow, as in the authors' piecewise variant (T = 40,000):
            alpha linearly; gamma to 95 % in the first half, the rest in the second.
        rescale: divide candidates that stay by 1 - alpha, so that the mean weight is w.
        ignore: modules to leave alone, as for `prune`.
        """
        super().__init__(ignore)
        for argument, value in (("drop", drop), ("share", share)):
            if not 0 <= value <= 1:
                raise bad("TargetedDropout", argument, "in [0, 1]", value, "pass a share")
        if granularity not in GRANULARITIES:
            way_out = suggest(granularity, GRANULARITIES)
            got = repr(granularity)
            raise bad("TargetedDropout", "granularity", "'weight' or 'unit'", got, way_out)
        if rescale and drop == 1:
            way_out = "pass a lower drop, or rescale=False"
            raise bad("TargetedDropout", "drop", "below 1 with rescale", drop, way_out)
        check_count("TargetedDropout", "ramp", ramp, least=0)
        self.drop, self.share, self.granularity = drop, share, granularity
        self.ramp, self.rescale = ramp, rescale
        self.steps = 0
        self._sparsity = 0.0

    def rates(self) -> tuple[float, float]:
        """(alpha, gamma) at this step."""
        if self.steps >= self.ramp:
            return self.drop, self.share
        done = self.steps / self.ramp
        first, second = min(1.0, 2 * done), max(0.0, 2 * done - 1)
        return self.drop * done, self.share * (0.95 * first + 0.05 * second)

    def finalize(self, sparsity: float = 0.0) -> Masks:
        """Ends it, and prunes by the rule that ranked the candidates: lowest in every column.

        sparsity: share to prune of every column, or of the units of every layer, in [0, 1).
        Returns the masks. Raises ValueError or TypeError, before anything changes.
        """
        self._sparsity = check_sparsity("TargetedDropout.finalize", "sparsity", sparsity)
        return super().finalize()

    def _begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        super()._begin(model, optimizer)
        self.steps = 0
        self._dropping = _Dropping(*self.rates(), self.granularity, self.rescale)
        for layer in self.layers.values():
            for module in layer.modules:
                self._handles += substitute(module, self._dropping)

    def _after_step(self) -> None:
        self.steps += 1
        self._dropping.drop, self._dropping.share = self.rates()

    @torch.no_grad()
    def _end(self) -> Masks:
        for layer in self.layers.values():
            weight = layer.weight
            weight.masked_fill_(candidates(weight, self._sparsity, self.granularity), 0)
        return super()._end()


@dataclass
class _Dropping:
    """The weight of one call, in train mode."""

    drop: float
    share: float
    granularity: str
    rescale: bool

    def __call__(self, module: nn.Module) -> dict[str, Tensor]:
        if not module.training:
            return {}
        weight = module.get_parameter("weight")
        low = candidates(weight, self.share, self.granularity)
        many = weight.shape if self.granularity == "weight" else (len(weight),)
        fate = torch.rand(many, device=weight.device) < self.drop
        fate = fate.reshape(*many, *(1,) * (weight.dim() - len(many)))
        kept = torch.where(low, weight / (1 - self.drop), weight) if self.rescale else weight
        return {"weight": kept.masked_fill(low & fate, 0)}
