"""prune: score the weights, mask the lowest, set them to exact zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from sparseprune import criteria, patterns
from sparseprune.criteria import Criterion
from sparseprune.errors import bad, bad_type, check_sparsity, suggest, warn
from sparseprune.masks import Masks
from sparseprune.patterns import Pattern
from sparseprune.ranked import SCOPES, Ranked
from sparseprune.selection import (
    PRUNABLE,
    Ignore,
    aliases,
    convolution_groups,
    paths,
    prunable_weights,
)

Sparsity: TypeAlias = float | Mapping[str, float]
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def prune(
    model: nn.Module,
    sparsity: Sparsity,
    criterion: str | Criterion = "magnitude",
    scope: str = "global",
    pattern: str | Pattern = "unstructured",
    ignore: Ignore = (),
    data: Iterable[Any] | None = None,
    loss: Callable[..., Tensor] | None = None,
) -> Masks:
    """Sets the least important weights of `model` to exact zero, in place; returns the masks.

    sparsity: share of weights to remove, in [0, 1); or {parameter or module name: share}, which
        prunes each named layer by itself and leaves all others alone (the longest name wins).
    criterion: a name of `criteria.CRITERIA`, or a callable (weight) -> score of the same shape,
        higher = keep.
    scope: "global" ranks all weights together, and never empties a layer (see
        `Unstructured.masks`); "local" removes the same share of each.
    pattern: a name of `patterns.PATTERNS` ("unstructured", "filter", "channel", "kernel", "row"),
        "n:m" (n of every m kept, e.g. "2:4", whose sparsity is 1 - n/m), "v:n:m", "block(r,c)",
        or a `Pattern`.
    ignore: module or parameter names, "re:pattern", or module types to leave alone.
    data, loss: batches and loss for criteria that measure; the others do not read them.

    A weight that is zero already goes first, so pruning again to a higher sparsity extends the
    earlier masks. Everything is checked before anything changes: on an error the model is as it
    was. Raises ValueError or TypeError naming the argument, what it must be and the way out.
    """
    shares, weights = targets(model, sparsity, ignore)
    ranked = rank(model, weights, criterion, scope, pattern, data, loss)
    masks = ranked.masks(shares if isinstance(sparsity, Mapping) else float(sparsity))
    emptied = [name for name, mask in masks.items() if mask.numel() and not mask.any()]
    if emptied:
        warn(f"prune: no weight is left in {', '.join(emptied)}")
    masks.apply_(model)
    return masks


def rank(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    criterion: str | Criterion,
    scope: str,
    pattern: str | Pattern,
    data: Iterable[Any] | None = None,
    loss: Callable[..., Tensor] | None = None,
) -> Ranked:
    """Scores these weights of the model (see `targets`); arguments otherwise as for `prune`."""
    rule, legal = criteria.resolve(criterion), patterns.resolve(pattern)
    if scope not in SCOPES:
        raise bad("prune", "scope", "'global' or 'local'", repr(scope), suggest(scope, SCOPES))
    for name, weight in weights.items():
        _check_weight(name, weight)
    with torch.no_grad():
        scores = _scores(weights, rule)
    return Ranked(scores, convolution_groups(model), legal, scope)


def targets(
    model: nn.Module, sparsity: Sparsity, ignore: Ignore = ()
) -> tuple[dict[str, float], dict[str, nn.Parameter]]:
    """Name -> sparsity, and name -> weight, of the weights that `prune` would touch: at least one.

    Raises ValueError or TypeError for a sparsity, a name or a model that does not fit.
    """
    weights = prunable_weights(model, ignore)
    if not weights:
        kinds = ", ".join(kind.__name__ for kind in PRUNABLE)
        got = f"nothing to prune in {type(model).__name__} (ignore={ignore!r})"
        way_out = "pass such a model, or fewer names in ignore"
        raise bad("prune", "model", f"one with weights in {kinds}", got, way_out)
    shares = _shares(sparsity, weights, aliases(model))
    return shares, {name: weights[name] for name in shares}


def _check_weight(name: str, weight: Tensor) -> None:
    """An error if the weight has no values, or none that can be ranked."""
    what, way_out = f"weight {name!r}", "convert the model first, or add the name to ignore"
    if weight.is_meta:
        way_out = "load its values first, e.g. with model.to_empty and load_state_dict"
        raise bad("prune", what, "a tensor with values", "a meta tensor", way_out)
    if weight.dtype not in DTYPES or weight.layout != torch.strided:
        got = f"{weight.dtype}, {weight.layout}"
        raise bad("prune", what, "dense float32, float64, float16 or bfloat16", got, way_out)
    # one pass and no copy; min and max are NaN as soon as one entry is
    if weight.numel() and not torch.stack(weight.detach().aminmax()).isfinite().all():
        wrong = int((~weight.detach().isfinite()).sum())
        way_out = "repair the checkpoint, or add the name to ignore"
        raise bad("prune", what, "finite", f"{wrong} NaN or infinite values", way_out)


def _shares(
    sparsity: Sparsity,
    weights: Mapping[str, Tensor],
    same: Mapping[str, list[str]],
) -> dict[str, float]:
    """Weight name -> its sparsity, in the order of `weights`; of a dict, only what it names."""
    if not isinstance(sparsity, Mapping):
        return dict.fromkeys(weights, check_sparsity("prune", "sparsity", sparsity))
    given = {key: check_sparsity("prune", f"sparsity[{key!r}]", s) for key, s in sparsity.items()}
    reach = {name: {p for alias in same[name] for p in paths(alias)} for name in weights}
    for key in given:
        if not any(key in around for around in reach.values()):
            known = [p for name in weights for p in (name, name.removesuffix(".weight"))]
            expected = "keyed by names of weights to prune"
            raise bad("prune", "sparsity", expected, repr(key), suggest(key, known))
    if not given:
        way_out = "pass {name: share} with at least one name"
        raise bad("prune", "sparsity", "a number or a dict with entries", "an empty dict", way_out)
    named = {name: [key for key in given if key in around] for name, around in reach.items()}
    return {name: given[max(keys, key=len)] for name, keys in named.items() if keys}


def _scores(weights: Mapping[str, Tensor], rule: Criterion) -> dict[str, Tensor]:
    """One checked score per weight; a weight that is zero already gets the lowest of all."""
    scores = {name: _score(name, weight, rule) for name, weight in weights.items()}
    bottom = min([0.0, *(float(score.min()) for score in scores.values() if score.numel())])
    for name, weight in weights.items():
        score = scores[name]
        overrated = (weight == 0).to(score.device) & (score > bottom)
        if overrated.any():  # never under magnitude: spares it a copy
            scores[name] = score.masked_fill(overrated, bottom)
    return scores


def _score(name: str, weight: Tensor, rule: Criterion) -> Tensor:
    """The criterion's verdict on one weight, or an error if it is no usable score."""
    known = rule in criteria.CRITERIA.values()
    # A foreign callable may write into its argument: it gets a copy.
    score = rule(weight.detach() if known else weight.detach().clone())
    what, way_out = f"criterion's score of {name!r}", "return one real number per weight, no NaN"
    if not isinstance(score, Tensor):
        raise bad_type("prune", what, "a tensor", type(score).__name__, way_out)
    if score.shape != weight.shape:
        expected = f"of the weight's shape {tuple(weight.shape)}"
        raise bad("prune", what, expected, tuple(score.shape), way_out)
    if score.is_complex() or score.dtype == torch.bool:
        raise bad("prune", what, "real", score.dtype, way_out)
    score = score.detach()
    if not score.is_floating_point():
        score = score.double()  # whole numbers below 2^53 stay exact
    if score.numel() and score.min().isnan():
        raise bad("prune", what, "free of NaN", f"{int(score.isnan().sum())} NaN", way_out)
    return score
