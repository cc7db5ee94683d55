"""prune: score the weights, mask the lowest, set them to exact zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from sparseprune import criteria, patterns
from sparseprune.criteria import Criterion
from sparseprune.criteria.statistics import Data, Loss
from sparseprune.errors import bad, check_sparsity, suggest, warn
from sparseprune.masks import Masks
from sparseprune.patterns import Pattern
from sparseprune.ranked import SCOPES, Ranked
from sparseprune.selection import (
    PRUNABLE,
    Ignore,
    aliases,
    convolution_groups,
    overlooked,
    paths,
    prunable_weights,
)

Sparsity: TypeAlias = float | Mapping[str, float]
MOST_OVERLOOKED = 0.1
"""Share of the weights that may be in layers of other kinds without a word."""
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def prune(
    model: nn.Module,
    sparsity: Sparsity,
    criterion: str | Criterion = "magnitude",
    scope: str = "global",
    pattern: str | Pattern = "unstructured",
    ignore: Ignore = (),
    data: Data | None = None,
    loss: Loss | None = None,
) -> Masks:
    """Sets the least important weights of `model` to exact zero, in place; returns the masks.

    sparsity: share of weights to remove, in [0, 1); or {parameter or module name: share}, which
        prunes each named layer by itself and leaves all others alone (the longest name wins).
    criterion: a name of `criteria.CRITERIA`, or a callable (weight) -> score of the same shape,
        higher = keep (see `criteria.Criterion`). "obs", "lobs" and "sparsegpt" also change the
        survivors, to make good for what is gone.
    scope: "global" ranks all weights together, and never empties a layer (see
        `Unstructured.masks`); "local" removes the same share of each.
    pattern: a name of `patterns.PATTERNS` ("unstructured", "filter", "channel", "kernel", "row"),
        "n:m" (n of every m kept, e.g. "2:4", whose sparsity is 1 - n/m), "v:n:m", "block(r,c)",
        or a `Pattern`.
    ignore: module or parameter names, "re:pattern", or module types to leave alone.
    data: for criteria that measure: an iterable of batches, a DataLoader, or a callable that gives
        one. A batch is a tensor, a tuple (inputs, target) or a dict of keywords; it is moved to
        the model's device. For "movement" and "insensitive" a `criteria.Trajectory`.
    loss: for criteria that ask for one: a callable (output, target) -> scalar, or (output, batch)
        for batches without a target. Left out, the output's own `.loss`.

    The model is measured in eval mode and left as it was. Under torch.distributed what is measured
    is summed over all ranks, so that their masks are the same.

    A weight that is zero already goes first, so pruning again to a higher sparsity extends the
    earlier masks. Where over a tenth of the weights are in layers of other kinds, a UserWarning
    names them. Everything is checked before anything changes: on an error the model is as it
    was. Raises ValueError or TypeError naming the argument, what it must be and the way out.
    """
    shares, weights = targets(model, sparsity, ignore)
    ranked = rank(model, weights, criterion, scope, pattern, data, loss)
    if not isinstance(sparsity, Mapping):
        _name_overlooked(model, weights, ignore)
    return ranked.prune_(model, shares if isinstance(sparsity, Mapping) else float(sparsity))


def rank(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    criterion: str | Criterion,
    scope: str,
    pattern: str | Pattern,
    data: Data | None = None,
    loss: Loss | None = None,
    operation: str = "prune",
) -> Ranked:
    """Scores these weights of the model (see `targets`); arguments otherwise as for `prune`."""
    rule = criteria.resolve(criterion, operation)
    legal = patterns.resolve(pattern, operation)
    if scope not in SCOPES:
        raise bad(operation, "scope", "'global' or 'local'", repr(scope), suggest(scope, SCOPES))
    for name, weight in weights.items():
        _check_weight(operation, name, weight)
    scored = criteria.score(model, weights, rule, data, loss, operation)
    return Ranked(scored, convolution_groups(model), legal, scope)


def targets(
    model: nn.Module, sparsity: Sparsity, ignore: Ignore = (), operation: str = "prune"
) -> tuple[dict[str, float], dict[str, nn.Parameter]]:
    """Name -> sparsity, and name -> weight, of the weights that `prune` would touch: at least one.

    Raises ValueError or TypeError for a sparsity, a name or a model that does not fit.
    """
    weights = prunable_weights(model, ignore, operation)
    if not weights:
        kinds = ", ".join(kind.__name__ for kind in PRUNABLE)
        got = f"nothing to prune in {type(model).__name__} (ignore={ignore!r})"
        way_out = "pass such a model, or fewer names in ignore"
        raise bad(operation, "model", f"one with weights in {kinds}", got, way_out)
    shares = _shares(operation, sparsity, weights, aliases(model))
    return shares, {name: weights[name] for name in shares}


def _name_overlooked(model: nn.Module, weights: Mapping[str, Tensor], ignore: Ignore) -> None:
    """A warning where much of a model is in layers that `prune` does not know."""
    others = overlooked(model, ignore, "prune")
    left, taken = sum(others.values()), sum(weight.numel() for weight in weights.values())
    if left > MOST_OVERLOOKED * (left + taken):
        kinds = ", ".join(f"{kind} ({count:,})" for kind, count in others.items())
        known = ", ".join(kind.__name__ for kind in PRUNABLE)
        warn(
            f"prune: {left / (left + taken):.0%} of the weights stay as they are, in layers that "
            f"it does not know: {kinds}; replace these by layers of {known} "
            "(nn.MultiheadAttention: sparseprune.nn.MultiheadAttention.from_dense), set zeros "
            "there yourself, which convert finds, or name them in ignore"
        )


def _check_weight(operation: str, name: str, weight: Tensor) -> None:
    """An error if the weight has no values, or none that can be ranked."""
    what, way_out = f"weight {name!r}", "convert the model first, or add the name to ignore"
    if weight.is_meta:
        way_out = "load its values first, e.g. with model.to_empty and load_state_dict"
        raise bad(operation, what, "a tensor with values", "a meta tensor", way_out)
    if weight.dtype not in DTYPES or weight.layout != torch.strided:
        got = f"{weight.dtype}, {weight.layout}"
        raise bad(operation, what, "dense float32, float64, float16 or bfloat16", got, way_out)
    # one pass and no copy; min and max are NaN as soon as one entry is
    if weight.numel() and not torch.stack(weight.detach().aminmax()).isfinite().all():
        wrong = int((~weight.detach().isfinite()).sum())
        way_out = "repair the checkpoint, or add the name to ignore"
        raise bad(operation, what, "finite", f"{wrong} NaN or infinite values", way_out)


def _shares(
    operation: str,
    sparsity: Sparsity,
    weights: Mapping[str, Tensor],
    same: Mapping[str, list[str]],
) -> dict[str, float]:
    """Weight name -> its sparsity, in the order of `weights`; of a dict, only what it names."""
    if not isinstance(sparsity, Mapping):
        return dict.fromkeys(weights, check_sparsity(operation, "sparsity", sparsity))
    given = {key: check_sparsity(operation, f"sparsity[{key!r}]", s) for key, s in sparsity.items()}
    reach = {name: {p for alias in same[name] for p in paths(alias)} for name in weights}
    for key in given:
        if not any(key in around for around in reach.values()):
            known = [p for name in weights for p in (name, name.removesuffix(".weight"))]
            expected = "keyed by names of weights to prune"
            raise bad(operation, "sparsity", expected, repr(key), suggest(key, known))
    if not given:
        way_out = "pass {name: share} with at least one name"
        raise bad(
            operation, "sparsity", "a number or a dict with entries", "an empty dict", way_out
        )
    named = {name: [key for key in given if key in around] for name, around in reach.items()}
    return {name: given[max(keys, key=len)] for name, keys in named.items() if keys}
