"""Network slimming: an L1 penalty on the scales of batch norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparseprune.criteria.bn_scale import NORMS
from sparseprune.errors import bad, check_sparsity
from sparseprune.patterns.ranking import floor, lowest_together
from sparseprune.selection import Ignore, ignored_paths, paths
from sparseprune.training.method import Method, check_strength


class Slimming(Method):
    """J = L + strength * sum |gamma|: adds strength * sign(gamma) to the gradients of the scales.

    (Liu et al., 2017, Network Slimming, arXiv:1708.06519, eq. 1, by subgradient as there.)
    gamma: the weights of all batch norms that train and are not ignored. Added before the step of
    the optimizer, after clipping and unscaling of gradients; sign(0) = 0.

    Weight decay on gamma is refused, for the two would add up: an optimizer over
    `Slimming.parameter_groups(model, weight_decay)` leaves gamma out of it.
    Then `channel_masks`, or `prune(model, share, "bn_scale", pattern="filter")`, prunes channels,
    and fine-tuning follows; `finalize` alone changes nothing.
    """

    def __init__(self, strength: float, ignore: Ignore = ()) -> None:
        """strength: lambda, 1e-5 to 1e-3 in the paper; may be assigned anew while training.

        ignore: names of batch norms or of modules around them, or types, to leave alone.
        """
        super().__init__(ignore)
        self.strength = check_strength("Slimming", strength)
        self._scales: list[nn.Parameter] = []

    @staticmethod
    def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
        """Two groups for an optimizer: all parameters with this decay, and gammas without."""
        scales = {id(scale) for scale in _scales(model, (), "Slimming.parameter_groups").values()}
        rest = [p for p in model.parameters() if id(p) not in scales]
        return [
            {"params": rest, "weight_decay": weight_decay},
            {"params": [p for p in model.parameters() if id(p) in scales], "weight_decay": 0.0},
        ]

    def _begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        named = _scales(model, self.ignore, "Slimming.prepare")
        group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        for name, scale in named.items():
            group = group_of.get(id(scale))
            if scale.requires_grad and group is None:
                expected, way_out = "over all scales that train", "build it from this model"
                raise bad("Slimming.prepare", "optimizer", expected, f"no {name!r}", way_out)
            if group is not None and group.get("weight_decay"):
                expected, got = "without weight decay on batch norm scales", group["weight_decay"]
                way_out = "build it from Slimming.parameter_groups(model, weight_decay)"
                raise bad("Slimming.prepare", "optimizer", expected, f"{got} on {name!r}", way_out)
        self._scales = list(named.values())

    def _before_step(self) -> None:
        for scale in self._scales:
            if scale.grad is not None:
                scale.grad.add_(scale.sign(), alpha=self.strength)


def slimming_threshold(model: nn.Module, share: float, ignore: Ignore = ()) -> float:
    """The share-quantile of all |gamma|: the round(share * all)-th smallest, or 0 for none.

    (Liu et al., 2017, arXiv:1708.06519, section 3.) share in [0, 1). Raises as `channel_masks`.
    """
    part = check_sparsity("slimming_threshold", "share", share)
    found = _scales(model, ignore, "slimming_threshold").values()
    sizes = torch.cat([scale.detach().abs().float().cpu() for scale in found])
    count = round(part * sizes.numel())
    return float(sizes.kthvalue(count).values) if count else 0.0


def channel_masks(model: nn.Module, share: float, ignore: Ignore = ()) -> dict[str, Tensor]:
    """Name of a scale -> bool tensor of its channels, True = kept; `share` of all channels go.

    The lowest |gamma| by one threshold (`slimming_threshold`), ties by position. At shares like
    0.9 one threshold can empty a layer: each keeps `patterns.FLOOR` of the density, at least one
    channel, and a warning names the layers where that was needed.
    Raises ValueError or TypeError for a share, a name, or a model without batch norm scales.
    """
    part = check_sparsity("channel_masks", "share", share)
    found = _scales(model, ignore, "channel_masks")
    sizes = {name: scale.detach().abs() for name, scale in found.items()}
    count = round(part * sum(size.numel() for size in sizes.values()))
    least = {name: floor(size.numel(), part) for name, size in sizes.items()}
    return {name: ~gone for name, gone in lowest_together(sizes, count, least).items()}


def _scales(model: nn.Module, ignore: Ignore, operation: str) -> dict[str, nn.Parameter]:
    """Name -> gamma of every batch norm that is not ignored, each once: at least one."""
    ignored = ignored_paths(model, ignore, operation)
    found = {
        f"{path}.weight".lstrip("."): module.weight
        for path, module in model.named_modules()
        if isinstance(module, NORMS) and module.weight is not None
    }
    found = {name: scale for name, scale in found.items() if ignored.isdisjoint(paths(name))}
    if not found:
        got, way_out = f"none (ignore={ignore!r})", "use GroupLasso, or fewer names in ignore"
        raise bad(operation, "model", "one with batch norm scales", got, way_out)
    return found
