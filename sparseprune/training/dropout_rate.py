"""Dropout for a pruned network: less of it, as there is less to regularise."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from sparseprune.errors import bad, suggest
from sparseprune.masks import Masks
from sparseprune.selection import aliases


def shrink_dropout(
    model: nn.Module, masks: Masks, original: Mapping[str, float] | None = None
) -> dict[str, float]:
    """D <- D_o * sqrt(kept / all) of every dropout of `model`, in place; returns the D_o.

    (Han et al., 2015, arXiv:1506.02626, eq. 2: D_o the rate before pruning, kept and all the
    connections of the layer.) The layer of a dropout is the one that reads its output: the next
    with a mask, in the order of `model.modules()`; without one the rate stays.

    original: the rates that the first call returned, for calls after further pruning. Left out,
        the present rates are the original ones.
    Raises ValueError, before anything changes, for an original rate of a dropout that is not there.
    """
    kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
    dropouts = {name: m for name, m in model.named_modules() if isinstance(m, kinds)}
    rates = {name: module.p for name, module in dropouts.items()} | dict(original or {})
    for name in rates:
        if name not in dropouts:
            way_out = suggest(name, dropouts)
            expected = "keyed by dropouts of the model"
            raise bad("shrink_dropout", "original", expected, repr(name), way_out)
    same, waiting = aliases(model), dict[str, nn.Module]()
    for path, module in model.named_modules():
        if path in dropouts:
            waiting[path] = module
        names = same.get(f"{path}.weight".lstrip("."), [])
        mask = next((masks[name] for name in names if name in masks), None)
        if mask is not None and mask.numel():
            density = int(mask.count_nonzero()) / mask.numel()
            for name, dropout in waiting.items():
                dropout.p = rates[name] * math.sqrt(density)  # type: ignore[assignment]
            waiting.clear()
    return rates
