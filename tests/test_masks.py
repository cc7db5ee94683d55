"""Masks: bookkeeping, apply_ and from_model."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from masked_training import holds, net
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

from sparseprune.masks import Masks
from sparseprune.prune import prune

# --- bookkeeping


def by_hand() -> Masks:
    return Masks(
        {
            "a.weight": torch.tensor([[True, False, False, False]]),
            "b.weight": torch.tensor([True, False]),
        }
    )


def test_mapping_and_numbers_by_hand() -> None:
    masks = by_hand()
    assert list(masks) == ["a.weight", "b.weight"] and len(masks) == 2
    assert "a.weight" in masks and masks.get("c") is None
    assert masks.sparsity() == pytest.approx(4 / 6) and masks.compression() == pytest.approx(3)
    assert repr(masks) == "Masks(2 tensors, 6 weights, sparsity 0.6667)"


def test_numbers_of_nothing() -> None:
    assert Masks({}).sparsity() == 0.0 and Masks({}).compression() == 1.0
    none = Masks({"a": torch.zeros(3, dtype=torch.bool)})
    assert none.sparsity() == 1.0 and none.compression() == float("inf")
    assert "0.00%" in Masks({}).summary()


def test_summary_has_a_row_per_layer_and_a_total() -> None:
    lines = prune(net(), 0.5, scope="local").summary().splitlines()
    rows = [line.split() for line in lines if "%" in line]
    assert rows[0] == ["0.weight", "8", "x", "6", "24", "48", "50.00%"]
    assert rows[-1] == ["total", "68", "136", "50.00%"] and len(rows) == 4


def test_summary_shows_long_and_odd_names_whole() -> None:
    name = "[red]" + "layer." * 40 + "weight"
    assert name in Masks({name: torch.ones(2, dtype=torch.bool)}).summary()


def test_equality_is_by_name_and_bits() -> None:
    assert by_hand() == by_hand() and by_hand() != Masks({}) and by_hand() != 3
    other = Masks({**by_hand(), "b.weight": torch.tensor([True, True])})
    assert other != by_hand()


@pytest.mark.parametrize("mask", [torch.ones(2), [True], torch.ones(2, dtype=torch.uint8)])
def test_only_bool_tensors(mask: object) -> None:
    with pytest.raises(TypeError, match=r"Masks: mask 'w' must be a bool tensor.*pass mask != 0"):
        Masks({"w": mask})


# --- apply_


def test_apply_zeroes_without_negative_zero() -> None:
    masks = prune(net(), 0.6)
    model = net(1)
    for parameter in model.parameters():
        parameter.data.neg_()
    masks.apply_(model)
    assert holds(masks, model)


def test_apply_overwrites_nan() -> None:
    model = nn.Linear(2, 1)
    model.weight.data.fill_(float("nan"))
    Masks({"weight": torch.tensor([[False, False]])}).apply_(model)
    assert model.weight.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (
            {"2.weigth": torch.zeros(8, 8, dtype=torch.bool)},
            "apply_: masks must be of parameters that the model has, got '2.weigth'; did you mean "
            "'2.weight'",
        ),
        (
            {"2.weight": torch.zeros(8, 7, dtype=torch.bool)},
            "apply_: mask '2.weight' must be of the parameter's shape (8, 8), got (8, 7); use the",
        ),
    ],
    ids=["name", "shape"],
)
def test_apply_checks_all_before_it_changes_any(
    masks: dict[str, torch.Tensor], message: str
) -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=re.escape(message)):
        Masks({"0.weight": torch.zeros(8, 6, dtype=torch.bool), **masks}).apply_(model)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_a_meta_model_is_refused_and_the_masks_keep_their_values() -> None:
    masks = prune(net(), 0.5)
    with pytest.raises(ValueError, match=r"parameter '0\.weight' must be in memory, got a meta"):
        masks.apply_(net().to("meta"))
    assert masks == prune(net(), 0.5)


# --- from_model


def test_from_model_reads_exact_zeros() -> None:
    model = net()
    masks = prune(model, 0.5)
    model[0].weight.data[~masks["0.weight"]] = -0.0
    assert Masks.from_model(model) == masks
    assert list(Masks.from_model(model, ignore=["2"])) == ["0.weight", "4.weight"]


def test_from_model_reads_torch_prune() -> None:
    model = net()
    torch_prune.random_unstructured(model[2], "weight", 0.5)
    expected = model[2].weight_mask.bool()
    with torch.no_grad():
        model[2].weight_orig.add_(1)  # the attribute `weight` is stale until the next forward
    masks = Masks.from_model(model)
    assert list(masks) == ["0.weight", "2.weight", "4.weight"]
    assert torch.equal(masks["2.weight"], expected) and masks["0.weight"].all()
    torch_prune.remove(model[2], "weight")
    masks.apply_(model)
    assert Masks.from_model(model) == masks


def test_from_model_refuses_other_hooks_by_name() -> None:
    model = net()
    parametrizations.weight_norm(model[2])
    with pytest.raises(ValueError, match=r"Masks\.from_model: weight '2\.weight' must be a plain"):
        Masks.from_model(model)
