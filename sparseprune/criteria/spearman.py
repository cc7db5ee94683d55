"""How well a criterion ranks units: Spearman's correlation with the oracle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparseprune.criteria.interface import Criterion
from sparseprune.criteria.oracle import Oracle
from sparseprune.criteria.scoring import unit_scores
from sparseprune.criteria.statistics import Data, Loss
from sparseprune.errors import bad
from sparseprune.selection import Ignore


@dataclass(frozen=True)
class Agreement:
    """Spearman's rho of a criterion's unit scores with the oracle's.

    layers: by weight name, NaN for a layer whose scores are all equal; mean: of the layers that
    have one; whole: over all units ranked together.
    """

    layers: dict[str, float]
    mean: float
    whole: float


def spearman(a: Tensor, b: Tensor) -> float:
    """rho = cov(rank a, rank b) / (sigma sigma), average ranks on ties. In [-1, 1].

    a, b: as many real numbers each, at least 2; NaN if one is constant. Raises ValueError for
    other lengths or NaN. (Spearman, 1904; the evaluation of Molchanov et al., 2017,
    arXiv:1611.06440.)
    """
    if a.numel() != b.numel() or a.numel() < 2:
        way_out = "pass the scores of the same units"
        got = f"{a.numel()} and {b.numel()}"
        raise bad("spearman", "a and b", "of one length, at least 2", got, way_out)
    if a.isnan().any() or b.isnan().any():
        raise bad("spearman", "a and b", "free of NaN", "NaN", "NaN has no rank")
    x, y = (r - r.mean() for r in (_ranks(a), _ranks(b)))
    scale = float((x.square().sum() * y.square().sum()).sqrt())
    return float((x * y).sum()) / scale if scale else math.nan


def spearman_to_oracle(
    model: nn.Module,
    criterion: str | Criterion,
    data: Data,
    loss: Loss | None = None,
    ignore: Ignore = (),
    oracle: Mapping[str, Tensor] | None = None,
) -> Agreement:
    """rho(rank of the criterion's unit scores, rank of the oracle's), layer by layer and in all.

    oracle: scores by weight name, e.g. from `unit_scores(model, "oracle", ...)`, to compare many
    criteria with one; measured if not given. Other arguments and errors as for `unit_scores`.
    """
    if oracle is None:
        oracle = unit_scores(model, Oracle(), data, loss, ignore)
    scores = unit_scores(model, criterion, data, loss, ignore)
    for name, score in scores.items():
        if name not in oracle or oracle[name].shape != score.shape:
            way_out = "measure it on this model, with the same ignore"
            raise bad(
                "spearman_to_oracle", "oracle", f"one score per unit of {name!r}", "others", way_out
            )
    layers = {
        n: spearman(score, oracle[n]) if len(score) > 1 else math.nan for n, score in scores.items()
    }
    known = [rho for rho in layers.values() if not math.isnan(rho)]
    together = (torch.cat([s[n].double().cpu() for n in scores]) for s in (scores, oracle))
    return Agreement(layers, sum(known) / len(known) if known else math.nan, spearman(*together))


def _ranks(values: Tensor) -> Tensor:
    """1-based ranks, equal values sharing the mean of theirs."""
    flat = values.detach().double().reshape(-1)
    _, place, counts = flat.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks: Tensor = last - (counts.double() - 1) / 2
    return ranks[place]
