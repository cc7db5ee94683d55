"""From a criterion to scores: measure what it needs, ask it about every weight, check, expand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sparseprune.criteria.interface import (
    Criterion,
    Granularity,
    Selects,
    Stats,
    Updates,
    granularity_of,
    needs_of,
)
from sparseprune.criteria.registry import name_of, resolve
from sparseprune.criteria.statistics import Data, Layer, Loss, Run, collect
from sparseprune.criteria.statistics.quiet import unwrapped
from sparseprune.errors import bad, bad_type
from sparseprune.patterns import Pattern
from sparseprune.progress import progress
from sparseprune.selection import Ignore, prunable_weights


@dataclass(frozen=True)
class Scored:
    """What a criterion says of every weight, and what it was told.

    scores: weight name -> score of the weight's shape, real, no NaN, higher = keep. A weight that
        is zero already has the lowest score of all.
    """

    rule: Criterion
    weights: Mapping[str, Tensor]
    scores: dict[str, Tensor]
    stats: Mapping[str, Stats] = field(default_factory=dict)

    def masks(
        self, shares: Mapping[str, float], pattern: Pattern, groups: Mapping[str, int]
    ) -> dict[str, Tensor]:
        """The mask of each named weight by itself: the criterion's own, or the pattern's.

        groups: weight name -> groups of its convolution; 1 may be absent.
        """

        def ranked(name: str) -> Tensor:
            return pattern.mask(self.scores[name], shares[name], groups.get(name, 1))

        if not isinstance(self.rule, Selects):
            return {name: ranked(name) for name in shares}
        masks = {}
        for name, part in progress(list(shares.items()), "prune: choosing"):
            weight = self.weights[name].detach()
            own = self.rule.select(weight, part, pattern, self.stats.get(name, {}))
            masks[name] = ranked(name) if own is None else own
        return masks

    def updates(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weight name -> new value, for a criterion that changes the survivors; else empty.

        Raises ValueError for a value that is not finite, or not of the weight's shape.
        """
        if not isinstance(self.rule, Updates):
            return {}
        values = {}
        for name, mask in progress(list(masks.items()), "prune: adjusting survivors"):
            weight = self.weights[name].detach()
            value = self.rule.update(weight, mask, self.stats.get(name, {}))
            value = value.to(weight.dtype)  # which may overflow
            if value.shape != weight.shape or not value.isfinite().all():
                what, way_out = f"update of {name!r}", "raise the criterion's damping"
                got = f"shape {tuple(value.shape)}, not finite or not the weight's"
                raise bad("prune", what, "finite and of the weight's shape", got, way_out)
            values[name] = value
        return values


def score(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    criterion: str | Criterion,
    data: Data | None = None,
    loss: Loss | None = None,
    operation: str = "prune",
) -> Scored:
    """Scores these weights of the model; the model is left as it was.

    weights: parameter name -> weight of a linear layer or convolution, finite.
    Raises ValueError or TypeError for data or a loss that the criterion needs and cannot use, and
    for a score that is none.
    """
    rule = resolve(criterion, operation)
    run = Run(_asking(operation, rule), unwrapped(model), layers_of(model, weights), data, loss)
    stats = _stats(run, rule)
    granularity = granularity_of(rule)
    scores = {}
    with torch.no_grad():
        for name, layer in run.layers.items():
            raw = _raw(operation, name, layer.weight, rule, stats[name])
            scores[name] = expanded(raw, layer, granularity)
        _sink_zeros(run, scores, granularity)
    return Scored(rule, weights, scores, stats)


def weight_scores(
    model: nn.Module,
    criterion: str | Criterion,
    data: Data | None = None,
    loss: Loss | None = None,
    ignore: Ignore = (),
    operation: str = "weight_scores",
) -> dict[str, Tensor]:
    """Weight name -> the criterion's score of every weight, of its shape; higher = keep.

    A unit or channel score is repeated over the weights of the unit or channel. Arguments and
    errors as for `prune`; the model is left as it was.
    """
    weights = prunable_weights(model, ignore, operation)
    return score(model, weights, criterion, data, loss, operation).scores


def unit_scores(
    model: nn.Module,
    criterion: str | Criterion,
    data: Data | None = None,
    loss: Loss | None = None,
    ignore: Ignore = (),
) -> dict[str, Tensor]:
    """Weight name -> one score per unit, [out units]; higher = keep.

    The units of a linear layer are its outputs, those of a convolution its filters. A criterion of
    weights gives the sum over the unit's weights; a criterion of input channels ("reconstruction")
    one score per input channel, [in]. Arguments and errors as for `prune`.
    """
    rule = resolve(criterion, "unit_scores")
    weights = prunable_weights(model, ignore, "unit_scores")
    run = Run(_asking("unit_scores", rule), unwrapped(model), layers_of(model, weights), data, loss)
    stats = _stats(run, rule)
    with torch.no_grad():
        raw = {n: _raw("unit_scores", n, weights[n], rule, stats[n]) for n in weights}
    if granularity_of(rule) != "weight":
        return raw
    return {name: value.flatten(1).sum(1) for name, value in raw.items()}


def layers_of(model: nn.Module, weights: Mapping[str, nn.Parameter]) -> dict[str, Layer]:
    """Weight name -> the weight with every prunable module that uses it."""
    users: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        users.setdefault(id(module._parameters.get("weight")), []).append(module)
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {
        name: Layer(name, weight, tuple(m for m in users[id(weight)] if isinstance(m, kinds)))
        for name, weight in weights.items()
    }


def expanded(score: Tensor, layer: Layer, granularity: Granularity) -> Tensor:
    """A score per unit or channel as one of the weight's shape, without a copy where possible."""
    shape = layer.weight.shape
    if granularity == "unit":
        return score.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
    if granularity == "channel":
        per_group = score.reshape(layer.groups, -1).repeat_interleave(shape[0] // layer.groups, 0)
        return per_group.reshape(*shape[:2], *[1] * (len(shape) - 2)).expand(shape)
    return score


def _asking(operation: str, rule: Criterion) -> str:
    return f"{operation}, criterion {name_of(rule)!r}"


def _stats(run: Run, rule: Criterion) -> dict[str, Stats]:
    """Weight name -> what the criterion needs to know of it."""
    needs = needs_of(rule)
    found = collect(run, needs) if needs and run.layers else {}
    return {name: {key: of[name] for key, of in found.items()} for name in run.layers}


def _raw(operation: str, name: str, weight: Tensor, rule: Criterion, stats: Stats) -> Tensor:
    """The criterion's verdict on one weight, or an error if it is no usable score."""
    # A foreign callable may write into its argument: it gets a copy.
    own = getattr(rule, "__module__", "").startswith("sparseprune.")
    given = weight.detach() if own else weight.detach().clone()
    score = rule(given, stats) if needs_of(rule) else rule(given)
    what, way_out = f"criterion's score of {name!r}", "return one real number per weight, no NaN"
    if not isinstance(score, Tensor):
        raise bad_type(operation, what, "a tensor", type(score).__name__, way_out)
    granularity = granularity_of(rule)
    if not _fits(score, weight, granularity):
        expected = f"of the weight's shape {tuple(weight.shape)}"
        if granularity != "weight":
            way_out, expected = "return one real number each, no NaN", f"one per {granularity}"
        raise bad(operation, what, expected, tuple(score.shape), way_out)
    if score.is_complex() or score.dtype == torch.bool:
        raise bad(operation, what, "real", score.dtype, way_out)
    score = score.detach()
    if not score.is_floating_point():
        score = score.double()  # whole numbers below 2^53 stay exact
    if score.numel() and score.min().isnan():
        raise bad(operation, what, "free of NaN", f"{int(score.isnan().sum())} NaN", way_out)
    return score


def _fits(score: Tensor, weight: Tensor, granularity: Granularity) -> bool:
    if granularity == "weight":
        return score.shape == weight.shape
    if granularity == "unit":
        return score.shape == weight.shape[:1]
    groups_in, rest = divmod(score.numel(), max(1, weight.shape[1]))
    return score.dim() == 1 and groups_in > 0 and rest == 0  # grouped: groups * weight.shape[1]


def _sink_zeros(run: Run, scores: dict[str, Tensor], granularity: Granularity) -> None:
    """Gives weights that are zero already the lowest score of all, so that they go first.

    Of a unit score only where the whole unit is zero: a few zeros do not devalue the rest.
    """
    bottom = min([0.0, *(float(score.min()) for score in scores.values() if score.numel())])
    for name, layer in run.layers.items():
        zero = layer.weight == 0
        if granularity == "unit" and zero.numel():
            zero = zero.flatten(1).all(1).reshape(-1, *[1] * (zero.dim() - 1)).expand_as(zero)
        overrated = zero.to(scores[name].device) & (scores[name] > bottom)
        if overrated.any():  # never under magnitude: spares it a copy
            scores[name] = scores[name].masked_fill(overrated, bottom)
