"""prune: which weights go, how exactly, and what happens to bad input."""

from __future__ import annotations

import copy
import math
import re
import warnings

import pytest
import torch
from prune_models import DTYPES, kept, same_bits, small, unequal
from torch import nn

from sparseprune.criteria import CRITERIA, magnitude
from sparseprune.errors import bad, bad_type, suggest
from sparseprune.patterns import Pattern, Unstructured
from sparseprune.prune import prune
from sparseprune.selection import prunable_weights

# --- what is removed


def test_magnitude_by_hand() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    model[0].weight.data = torch.tensor([[0.1, -4.0, 0.3], [-0.2, 5.0, 6.0]])
    model[1].weight.data = torch.tensor([[-7.0, 0.05]])
    masks = prune(model, 0.5)
    assert list(masks) == ["0.weight", "1.weight"]
    assert masks["0.weight"].tolist() == [[False, True, False], [False, True, True]]
    assert masks["1.weight"].tolist() == [[True, False]]
    assert model[0].weight.tolist() == [[0.0, -4.0, 0.0], [0.0, 5.0, 6.0]]
    assert model[1].weight.tolist() == [[-7.0, 0.0]]


def test_magnitude_score() -> None:
    weight = torch.tensor([[-2.0, 0.0, 1.0]])
    assert magnitude(weight).tolist() == [[2.0, 0.0, 1.0]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scope", ["global", "local"])
def test_exact_positive_zeros_in_every_dtype(dtype: torch.dtype, scope: str) -> None:
    model = small().to(dtype)
    before = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        masks = prune(model, 0.8, scope=scope)
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        assert mask.dtype == torch.bool and mask.shape == weight.shape and weight.dtype == dtype
        assert not torch.signbit(weight[~mask]).any() and not weight[~mask].any()
        assert torch.equal(weight[mask], before.get_parameter(name)[mask])
    total = sum(mask.numel() for mask in masks.values())
    exact = (
        round(0.8 * total)
        if scope == "global"
        else sum(round(0.8 * mask.numel()) for mask in masks.values())
    )
    assert total - kept(masks) == exact


def test_biases_norms_and_buffers_are_untouched() -> None:
    model = small()
    before = copy.deepcopy(model)
    masks = prune(model, 0.9, scope="local")
    for name, value in model.state_dict().items():
        assert name in masks or torch.equal(value, before.state_dict()[name])


def test_frozen_and_channels_last_weights() -> None:
    model = small().to(memory_format=torch.channels_last).requires_grad_(False)
    twin = small()
    assert prune(model, 0.7) == prune(twin, 0.7)
    assert torch.equal(model[0].weight, twin[0].weight)


def test_grad_mode_leaves_no_graph() -> None:
    model = small()
    with torch.enable_grad():
        prune(model, 0.5)
    assert all(p.is_leaf and p.requires_grad and p.grad_fn is None for p in model.parameters())
    model(torch.randn(2, 3, 4, 4)).sum().backward()


def test_local_removes_the_same_share_of_each_layer() -> None:
    masks = prune(small(), 0.75, scope="local")
    assert all((~mask).sum() == round(0.75 * mask.numel()) for mask in masks.values())


def test_global_is_one_threshold() -> None:
    model = small()
    values = torch.cat([w.detach().flatten() for w in prunable_weights(model).values()]).abs()
    masks = prune(model, 0.6)
    threshold = values.sort().values[round(0.6 * values.numel()) - 1]
    for name, mask in masks.items():
        assert torch.equal(mask, small().get_parameter(name).abs() > threshold)


def test_dict_prunes_named_layers_only() -> None:
    model = small()
    before = copy.deepcopy(model)
    masks = prune(model, {"0": 0.5, "4.weight": 0.25})
    assert list(masks) == ["0.weight", "4.weight"]
    assert [int((~m).sum()) for m in masks.values()] == [108, 16]
    assert torch.equal(model[3].weight, before[3].weight)


def test_dict_longest_name_wins() -> None:
    model = nn.ModuleDict({"body": small(), "head": nn.Linear(4, 4)})
    masks = prune(model, {"body": 0.5, "body.3": 0.25})
    assert {n: m.logical_not().float().mean().item() for n, m in masks.items()} == {
        "body.0.weight": 0.5,
        "body.3.weight": 0.25,
        "body.4.weight": 0.5,
    }


def test_zero_sparsity_keeps_everything() -> None:
    model = small()
    assert prune(model, 0).sparsity() == 0.0
    assert same_bits(model, small())


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("criterion", ["magnitude", lambda w: torch.rand_like(w) - 0.5])
def test_pruning_again_extends_the_masks(scope: str, criterion: object) -> None:
    model = small()
    first = prune(model, 0.4, criterion, scope)
    second = prune(model, 0.7, criterion, scope)
    for name in first:
        assert not (second[name] & ~first[name]).any()
        assert torch.equal(model.get_parameter(name) != 0, second[name])
    assert second.sparsity() == pytest.approx(0.7, abs=0.01)


def test_pruning_again_at_the_same_sparsity_changes_nothing() -> None:
    model = small()
    assert prune(model, 0.5) == prune(model, 0.5)


# --- criteria and patterns of the user


def test_user_criterion_and_pattern() -> None:
    model = nn.Linear(4, 1)
    model.weight.data = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    masks = prune(model, 0.5, criterion=lambda w: -w, pattern=Unstructured())
    assert masks["weight"].tolist() == [[True, True, False, False]]


def test_whole_number_scores() -> None:
    masks = prune(nn.Linear(2, 2), 0.5, criterion=lambda w: torch.arange(4).view(2, 2))
    assert masks["weight"].tolist() == [[False, False], [True, True]]


def test_user_criterion_cannot_touch_the_model() -> None:
    model = small()
    with pytest.raises(ValueError, match="free of NaN"):
        prune(model, 0.5, criterion=lambda w: w.fill_(math.nan))
    assert same_bits(model, small())


def test_unstructured_is_a_pattern() -> None:
    assert isinstance(Unstructured(), Pattern)
    assert CRITERIA["magnitude"] is magnitude


# --- bad input: the message, and a model that is as it was


def raising(weight: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("mine")


BAD = {
    "above": ({"sparsity": 1.5}, "prune: sparsity must be a number in [0, 1), got 1.5; pass the"),
    "one": ({"sparsity": 1.0}, "sparsity must be a number in [0, 1), got 1.0"),
    "negative": ({"sparsity": -0.1}, "got -0.1"),
    "nan": ({"sparsity": math.nan}, "got nan"),
    "infinite": ({"sparsity": math.inf}, "got inf"),
    "bool": ({"sparsity": True}, "got True (bool)"),
    "string": ({"sparsity": "0.9"}, "got '0.9' (str); pass the share of weights to remove"),
    "none": ({"sparsity": None}, "got None (NoneType)"),
    "dict value": ({"sparsity": {"3": 2}}, "sparsity['3'] must be a number in [0, 1), got 2"),
    "dict name": ({"sparsity": {"3.wieght": 0.5}}, "got '3.wieght'; did you mean '3.weight'"),
    "dict of norm": ({"sparsity": {"1": 0.5}}, "keyed by names of weights to prune, got '1'"),
    "dict ignored": ({"sparsity": {"3": 0.5}, "ignore": ["3"]}, "got '3'; known: 0.weight"),
    "empty dict": ({"sparsity": {}}, "got an empty dict"),
    "criterion": ({"criterion": "magnitud"}, "got 'magnitud'; did you mean 'magnitude'"),
    "criterion type": ({"criterion": 3}, "criterion must be a known name or a callable"),
    "scope": ({"scope": "globl"}, "got 'globl'; did you mean 'global'"),
    "pattern": ({"pattern": "unstructred"}, "got 'unstructred'; did you mean 'unstructured'?"),
    "pattern type": ({"pattern": Unstructured}, "pattern must be a known name or a Pattern"),
    "ignore": ({"ignore": ["3.weigh"]}, "got '3.weigh'; did you mean '3.weight'"),
    "ignore regex": ({"ignore": ["re:head"]}, "ignore must be names that the model has"),
    "ignore bad regex": ({"ignore": ["re:("]}, "ignore must be valid 're:' patterns, got 're:('"),
    "ignore type": ({"ignore": [3]}, "ignore must be names or module types, got 3"),
    "ignore all": ({"ignore": [nn.Linear, nn.Conv2d]}, "nothing to prune in Sequential"),
    "score shape": ({"criterion": lambda w: w[0]}, "of the weight's shape (8, 3, 3, 3), got"),
    "score nan": ({"criterion": lambda w: w / 0 * 0}, "must be free of NaN, got 216 NaN"),
    "score type": ({"criterion": lambda w: 1.0}, "must be a tensor, got float"),
    "score bool": ({"criterion": lambda w: w > 0}, "must be real, got torch.bool"),
    "score raises": ({"criterion": raising}, "mine"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_leave_the_model_alone(case: str) -> None:
    arguments, message = BAD[case]
    model = small()
    with pytest.raises((ValueError, TypeError, RuntimeError), match=re.escape(message)):
        prune(model, **{"sparsity": 0.5, **arguments})
    assert same_bits(model, small())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: m[4].weight.data[0, :2].fill_(math.nan), "'4.weight' must be finite, got 2 NaN"),
        (lambda m: m[3].weight.data[1, 1].fill_(-math.inf), "'3.weight' must be finite, got 1 NaN"),
        (
            lambda m: (
                m[4]
                .requires_grad_(False)
                .weight.__setattr__("data", m[4].weight.data.to(torch.complex64))
            ),
            "'4.weight' must be dense",
        ),
        (lambda m: m.append(nn.Linear(4, 4, device="meta")), "'5.weight' must be a tensor with"),
        (lambda m: m.append(nn.LazyLinear(4)), "'5.weight' must be created, got a lazy"),
    ],
    ids=["nan", "inf", "complex", "meta", "lazy"],
)
def test_bad_weights_are_named_and_left_alone(spoil: object, message: str) -> None:
    model = small()
    spoil(model)
    first = model[0].weight.clone()
    with pytest.raises(ValueError, match=re.escape(message)):
        prune(model, 0.5)
    assert torch.equal(model[0].weight, first)


def test_an_unselected_bad_weight_does_not_matter() -> None:
    model = small()
    model[4].weight.data.fill_(math.nan)
    prune(model, 0.5, ignore=["4"])
    prune(model, {"0": 0.7})


def test_a_warning_turned_error_leaves_the_model_alone() -> None:
    model = unequal()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning):
            prune(model, 0.7)
    assert same_bits(model, unequal())


def test_nothing_to_prune_and_no_module() -> None:
    with pytest.raises(ValueError, match="nothing to prune in ReLU"):
        prune(nn.ReLU(), 0.5)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got Tensor"):
        prune(torch.ones(3), 0.5)


def test_message_builders() -> None:
    for make, kind in ((bad, ValueError), (bad_type, TypeError)):
        error = make("op", "x", "y", 3, "do z")
        assert isinstance(error, kind) and str(error) == "op: x must be y, got 3; do z"
    assert suggest("magntude", ["magnitude", "taylor"]).startswith(
        "did you mean 'magnitude'? known"
    )
    assert suggest("q", [f"layer{i}" for i in range(20)]).endswith(", ... (20 in all)")
    assert suggest("q", []) == "known: none"


class Projection(nn.Module):
    """A layer of one's own, its weight the other way round, as Conv1D of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(8, 32)), nn.Parameter(torch.zeros(32))


def test_layers_that_prune_does_not_know_are_named() -> None:
    model = nn.ModuleDict({"a": nn.Linear(8, 8), "own": Projection(), "norm": nn.LayerNorm((2, 8)),
                           "attends": nn.MultiheadAttention(8, 2)})  # fmt: skip
    named = r"78% of the weights.*Projection \(256\), Multi.*\(192\)"
    with pytest.warns(UserWarning, match=named):
        prune(model, 0.5)
    assert (model["a"].weight == 0).any() and (model["own"].weight != 0).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune(model, 0.5, ignore=["own", "attends"])
        prune(model, {"a": 0.5})
        prune(nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 8)), 0.5)
