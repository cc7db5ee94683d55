"""The sensitivity scan: a layer at a time, the model untouched; its CSV, plot and `within`."""

from __future__ import annotations

import copy
import csv
from pathlib import Path

import pytest
import torch
from masked_training import batch, net
from prune_models import same_bits
from torch import nn

from sparseprune import prune, sensitivity
from sparseprune.budgets import Point, Sensitivity


def loss(model: nn.Module) -> float:
    x, y = batch(0)
    return nn.functional.cross_entropy(model(x), y).item()


def test_every_layer_alone_at_every_level() -> None:
    model = net()
    found = sensitivity(model, loss, (0.9, 0.5))
    assert found.baseline == loss(model)
    assert [(p.layer, p.weights) for p in found.points[::2]] == [
        ("0.weight", 48), ("2.weight", 64), ("4.weight", 24),
    ]  # fmt: skip
    for point in found.points:
        twin = net()
        masks = prune(twin, {point.layer: 0.5 if point.sparsity < 0.7 else 0.9})
        assert point.sparsity == pytest.approx(masks.sparsity())
        assert point.value == loss(twin) and point.worse == point.value - found.baseline


def test_the_model_is_left_as_it_was_even_by_errors() -> None:
    model = net().train()
    model[1].eval()

    def breaks(model: nn.Module) -> float:
        assert not model.training and not torch.is_grad_enabled()
        if not model[2].weight.all():
            raise RuntimeError("mine")
        return 1.0

    with pytest.raises(RuntimeError, match="mine"):
        sensitivity(model, breaks)
    assert same_bits(model, net())
    assert [m.training for m in model] == [True, False, True, True, True]


def test_scores_and_losses_point_the_same_way() -> None:
    by_loss = sensitivity(net(), loss, (0.5,))
    by_score = sensitivity(net(), lambda m: -loss(m), (0.5,), higher_is_better=True)
    assert [p.worse for p in by_loss.points] == [p.worse for p in by_score.points]


def by_hand() -> Sensitivity:
    lines = {"a": [(0.5, 1.0), (0.9, 5.0)], "b": [(0.5, -1.0), (0.9, -2.0)], "c": [(0.5, 10.0)]}
    points = [Point(n, s, 100, 2 + w, w) for n, line in lines.items() for s, w in line]
    return Sensitivity(2.0, tuple(points))


def test_within_is_linear_between_levels() -> None:
    assert by_hand().within(0) == {"b": 0.9}  # what gets better costs nothing
    assert by_hand().within(1) == {"a": 0.5, "b": 0.9, "c": pytest.approx(0.05)}
    assert by_hand().within(3) == {"a": pytest.approx(0.7), "b": 0.9, "c": pytest.approx(0.15)}
    assert by_hand().within(99) == {"a": 0.9, "b": 0.9, "c": 0.5}
    assert by_hand().within(-1) == by_hand().within(0)


def test_a_level_that_seems_better_than_those_below_is_not_trusted() -> None:
    points = (Point("a", 0.5, 9, 4.0, 4.0), Point("a", 0.8, 9, 1.0, 1.0))
    assert Sensitivity(0.0, points).within(2.0) == {"a": 0.25}


def test_csv_and_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = by_hand()
    found.to_csv(tmp_path / "scan.csv")
    rows = list(csv.DictReader((tmp_path / "scan.csv").open()))
    assert list(rows[0].values()) == ["a", "0.5", "100", "3.0", "1.0"] and len(rows) == 5
    found.plot(tmp_path / "scan.png", label="loss")
    assert (tmp_path / "scan.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"evaluate": lambda m: float("nan")}, "value of the model as it is must be a finite numb"),
        ({"evaluate": lambda m: None}, "must be a finite number, got NoneType; return e.g. loss"),
        ({"sparsities": ()}, "sparsities must be at least one share, got none"),
        ({"sparsities": (1.0,)}, r"sparsities must be a number in \[0, 1\), got 1.0"),
        ({"pattern": "2:4", "sparsities": (0.3,)}, "sparsity must be at least 0.5 with pattern"),
        ({"ignore": "nothing"}, "ignore must be names that the model has"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    model = net()
    before = copy.deepcopy(model)
    with pytest.raises((ValueError, TypeError), match=message):
        sensitivity(model, **{"evaluate": loss, **arguments})
    assert same_bits(model, before)
