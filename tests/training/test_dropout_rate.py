"""Dropout rates that follow the density of the layer behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparseprune import Masks, prune
from sparseprune.training import shrink_dropout


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 4), nn.Dropout(0.5), nn.ReLU(), nn.Dropout2d(0.2), nn.Linear(4, 4),
        nn.Dropout(0.4), nn.Linear(4, 4), nn.Dropout(0.3)
    )  # fmt: skip


def test_rates_by_hand_and_again() -> None:
    model = net()
    masks = prune(model, {"0": 0.5, "4": 0.75})
    original = shrink_dropout(model, masks)
    assert original == {"1": 0.5, "3": 0.2, "5": 0.4, "7": 0.3}
    rates = [model[i].p for i in (1, 3, 5, 7)]
    assert rates == pytest.approx([0.25, 0.1, 0.4, 0.3])  # no mask on "6", nothing behind "7"
    masks = prune(model, {"4": 1 - 1 / 16, "6": 0.75})
    assert shrink_dropout(model, masks, original) == original
    assert [model[i].p for i in (1, 3, 5, 7)] == pytest.approx([0.125, 0.05, 0.2, 0.3])


def test_a_tied_layer_has_its_mask_under_another_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    shrink_dropout(model, prune(model, 0.75))
    assert model[1].p == pytest.approx(0.25)


def test_an_unknown_dropout_changes_nothing() -> None:
    model = net()
    masks = Masks({"4.weight": torch.zeros(4, 4, dtype=torch.bool)})
    with pytest.raises(ValueError, match="keyed by dropouts of the model, got '2'"):
        shrink_dropout(model, masks, {"2": 0.5})
    assert model[1].p == 0.5
    shrink_dropout(model, masks)
    assert model[1].p == model[3].p == 0
