"""L0 regularisation by hard concrete gates: weights, inputs or outputs that learn to be zero."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparseprune.criteria.statistics import Layer
from sparseprune.errors import bad, check_count, suggest
from sparseprune.masks import Masks
from sparseprune.selection import Ignore, aliases, paths
from sparseprune.training.beside import Extended, substitute
from sparseprune.training.method import check_strength

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
"""Temperature and stretch of the hard concrete distribution."""

EDGE = 1e-6
"""u is drawn from (EDGE, 1 - EDGE)."""

LIMITS = (math.log(1e-2), math.log(1e2))
"""log alpha is held in here: beyond, gates are stuck at 0 or 1."""

GRANULARITIES = ("weight", "unit", "input", "output")


def sample(log_alpha: Tensor, u: Tensor) -> Tensor:
    """clip(s (zeta - gamma) + gamma, 0, 1), s = sigmoid((log u - log(1 - u) + log alpha) / beta).

    A gate for each u ~ U(0, 1). (Louizos, Welling & Kingma, 2018, arXiv:1712.01312, eq. 10-11.)
    """
    s = torch.sigmoid((u.log() - (-u).log1p() + log_alpha) / BETA)
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def mode(log_alpha: Tensor) -> Tensor:
    """clip(sigmoid(log alpha) (zeta - gamma) + gamma, 0, 1): the gate in eval mode (eq. 13)."""
    return (torch.sigmoid(log_alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def probability_open(log_alpha: Tensor) -> Tensor:
    """P(gate != 0) = sigmoid(log alpha - beta log(-gamma / zeta)) (eq. 12)."""
    return torch.sigmoid(log_alpha - BETA * math.log(-GAMMA / ZETA))


class HardConcrete(Extended):
    """w = theta z, z a hard concrete gate; loss + 1/N sum_g lambda |g| P(z_g != 0).

    Gates are sampled in train mode, once per call of the layer, and are `mode` in eval mode;
    `finalize` multiplies that in, so that the pruned model computes what the gated one did in eval
    mode. log alpha is a parameter `gate_log_alpha` beside the weight. (Louizos, Welling & Kingma,
    2018, arXiv:1712.01312; groups as in the authors' code.)
    """

    attribute = "gate_log_alpha"

    def __init__(
        self,
        strength: float | Mapping[str, float],
        samples: int,
        granularity: str = "weight",
        drop: float = 0.5,
        lr: float | None = None,
        ignore: Ignore = (),
    ) -> None:
        """
        strength: lambda; or {parameter or module name: lambda}, which gates the named layers and
            leaves all others alone (the longest name wins).
        samples: N, of the training set; the loss is a mean over samples.
        granularity: what one gate multiplies. "weight"; "input", all weights that read one input
            feature or channel; "output", all weights of one output and its bias; "unit", the
            paper's choice: inputs of linear layers, outputs (feature maps) of convolutions.
            |g| is the number of weights behind the gate.
        drop: the share of gates closed at the start: log alpha ~ N(logit(1 - drop), 0.01^2).
        lr: of log alpha; by default that of the optimizer's first group.
        ignore: modules to leave alone, as for `prune`.
        """
        super().__init__(lr, ignore)
        check_count("HardConcrete", "samples", samples)
        if granularity not in GRANULARITIES:
            way_out = suggest(granularity, GRANULARITIES)
            expected = "a known granularity"
            raise bad("HardConcrete", "granularity", expected, repr(granularity), way_out)
        if not 0 < drop < 1:
            raise bad("HardConcrete", "drop", "in (0, 1)", drop, "pass e.g. 0.5")
        named = strength if isinstance(strength, Mapping) else {"": strength}
        if not named:
            way_out = "pass {name: lambda} with at least one name"
            raise bad("HardConcrete", "strength", "a number or entries", "an empty dict", way_out)
        self.strength = {
            name: check_strength("HardConcrete", value, argument=f"strength {name}".strip())
            for name, value in named.items()
        }
        self.samples = samples
        self.granularity, self.drop = granularity, drop

    def penalty(self) -> Tensor:
        """1/N sum of lambda |g| P(z_g != 0) over all gates: a scalar."""
        total = super().penalty()
        for name, expected in self.expected_l0().items():
            total = total + self._strengths[name] / self.samples * expected
        return total

    def expected_l0(self) -> dict[str, Tensor]:
        """Weight name -> the expected number of its weights that are not gated to zero."""
        return {
            name: probability_open(own).sum() * (self.layers[name].weight.numel() / own.numel())
            for name, own in self._own().items()
        }

    def _chosen(self, model: nn.Module) -> dict[str, nn.Parameter]:
        weights = super()._chosen(model)
        same = aliases(model)
        reach = {name: {p for alias in same[name] for p in paths(alias)} for name in weights}
        for key in self.strength:
            if not any(key in around for around in reach.values()):
                way_out = suggest(key, [p for name in weights for p in paths(name)[1:]])
                expected = "keyed by names of layers to gate"
                raise bad("HardConcrete.prepare", "strength", expected, repr(key), way_out)
        keys = {n: [k for k in self.strength if k in around] for n, around in reach.items()}
        self._strengths = {n: self.strength[max(k, key=len)] for n, k in keys.items() if k}
        return {name: weights[name] for name in self._strengths}

    def _initial(self, layer: Layer) -> Tensor:
        shape = _gates(layer.modules[0], self.granularity)
        start = math.log(1 - self.drop) - math.log(self.drop)
        noise = torch.randn(shape, device=layer.weight.device, dtype=layer.dtype)
        return start + 1e-2 * noise

    def _follow(self, module: nn.Module) -> list[RemovableHandle]:
        return substitute(module, _Gated(self.granularity))

    def _after_step(self) -> None:
        for own in self._own().values():
            own.clamp_(*LIMITS)

    @torch.no_grad()
    def _end(self) -> Masks:
        gated = _Gated(self.granularity)
        for layer in self.layers.values():
            # all modules first: a tied weight must not be gated twice
            new = [gated.values(module, training=False) for module in layer.modules]
            for module, values in zip(layer.modules, new, strict=True):
                for name, value in values.items():
                    module.get_parameter(name).copy_(value)
        return super()._end()


@dataclass(frozen=True)
class _Gated:
    """Weight, and bias where outputs are gated, times the gates."""

    granularity: str

    def __call__(self, module: nn.Module) -> dict[str, Tensor]:
        return self.values(module, module.training)

    def values(self, module: nn.Module, training: bool) -> dict[str, Tensor]:
        """Parameter name -> its value behind the gates; exact +0.0 behind closed ones."""
        own = module.get_parameter(HardConcrete.attribute)
        u = torch.empty_like(own).uniform_(EDGE, 1 - EDGE) if training else None
        z = mode(own) if u is None else sample(own, u)
        weight = module.get_parameter("weight")
        values = {"weight": _times(weight, _spread(z, module, self.granularity))}
        bias = module._parameters.get("bias")
        if bias is not None and _kind(module, self.granularity) == "output":
            values["bias"] = _times(bias, z)
        return values


def _times(value: Tensor, z: Tensor) -> Tensor:
    return (value * z.to(value.dtype)).masked_fill(z == 0, 0)  # -1 * 0 would be -0.0


def _kind(module: nn.Module, granularity: str) -> str:
    if granularity != "unit":
        return granularity
    return "input" if isinstance(module, nn.Linear) else "output"


def _gates(module: nn.Module, granularity: str) -> tuple[int, ...]:
    """The shape of the gates of one layer."""
    weight = module.get_parameter("weight")
    kind = _kind(module, granularity)
    if kind == "weight":
        return tuple(weight.shape)
    return (weight.shape[0] if kind == "output" else weight.shape[1] * _groups(module),)


def _spread(z: Tensor, module: nn.Module, granularity: str) -> Tensor:
    """Gates as one of the weight's shape [out, in / groups, *kernel]."""
    weight = module.get_parameter("weight")
    kind = _kind(module, granularity)
    if kind == "weight":
        return z
    ones = (1,) * (weight.dim() - 2)
    if kind == "output":
        return z.reshape(-1, 1, *ones).expand_as(weight)
    groups = _groups(module)
    rows = z.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, 0)
    return rows.reshape(*rows.shape, *ones).expand_as(weight)


def _groups(module: nn.Module) -> int:
    return int(getattr(module, "groups", 1))


def architecture(masks: Mapping[str, Tensor]) -> dict[str, int]:
    """Weight name -> its units that are left: live inputs of a linear layer, live filters of a
    convolution, as published tables count them (e.g. 266-88-33, or 9-18-65-25).
    """
    return {
        name: int((mask.any(0) if mask.dim() == 2 else mask.flatten(1).any(1)).sum())
        for name, mask in masks.items()
    }
