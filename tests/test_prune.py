"""prune: which weights go, how exactly, and what happens to bad input."""

from __future__ import annotations

import copy
import math
import re
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

from sparseprune.criteria import CRITERIA, magnitude
from sparseprune.errors import bad, bad_type, suggest
from sparseprune.masks import Masks
from sparseprune.patterns import Pattern, Unstructured
from sparseprune.patterns import unstructured as unstructured_module
from sparseprune.patterns.unstructured import lowest
from sparseprune.prune import prune
from sparseprune.selection import aliases, prunable_weights

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def small(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 16), nn.Linear(16, 4)
    )


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    """Bit-identical state: a NaN equals itself, -0.0 differs from 0.0."""
    left, right = a.state_dict(), b.state_dict()
    return list(left) == list(right) and all(
        torch.equal(left[n].reshape(-1).view(torch.uint8), right[n].reshape(-1).view(torch.uint8))
        for n in left
    )


def kept(masks: Masks) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.encoder = nn.Linear(8, 20)
        self.decoder = nn.Linear(8, 20)
        self.decoder.weight = self.encoder.weight = self.embedding.weight


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


def test_layers_of_different_dtype_rank_exactly_together() -> None:
    fine = 1.0009765625  # rounds to 1.0 in bfloat16
    scores = [torch.tensor([fine, 3.0]), torch.tensor([1.0], dtype=torch.bfloat16)]
    assert [mark.tolist() for mark in lowest(scores, 1)] == [[False, False], [True]]
    assert [mark.tolist() for mark in lowest(scores, 2)] == [[True, False], [True]]


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


# --- the floor: a global ranking empties no layer (trap 8)


def unequal() -> nn.Sequential:
    model = small()
    model[3].weight.data.mul_(1e-6)
    return model


def test_global_floor_keeps_every_layer_and_says_so() -> None:
    model = unequal()
    with pytest.warns(UserWarning, match=r"3\.weight \(0 -> 15\)") as record:
        masks = prune(model, 0.7)
    assert record[0].filename == __file__
    assert masks["3.weight"].sum() == round(0.1 * 0.3 * 512) == 15
    assert masks["3.weight"].sum() == (model[3].weight != 0).sum()
    total = sum(mask.numel() for mask in masks.values())
    assert total - kept(masks) == round(0.7 * total)  # the others gave more


def test_global_floor_keeps_the_best_of_the_layer() -> None:
    best = unequal()[3].weight.abs().flatten().topk(15).indices.sort().values
    with pytest.warns(UserWarning):
        masks = prune(unequal(), 0.7)
    assert torch.equal(masks["3.weight"].flatten().nonzero().flatten(), best)


def test_global_extreme_sparsity_leaves_one_weight_per_layer() -> None:
    with pytest.warns(UserWarning):
        masks = prune(small(), 0.9999)
    assert [int(mask.sum()) for mask in masks.values()] == [1, 1, 1]


def test_no_warning_without_need() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune(small(), 0.5)


def test_local_emptied_layer_is_named() -> None:
    with pytest.warns(UserWarning, match=r"no weight is left in 4\.weight") as record:
        prune(small(), {"4": 0.999})
    assert record[0].filename == __file__


# --- ranking: exact counts, deterministic ties, no concatenation of scores (trap 17)


def reference(scores: list[torch.Tensor], count: int) -> list[torch.Tensor]:
    """Stable sort by (score, position)."""
    flat = torch.cat([s.double().flatten() for s in scores])
    marks = torch.zeros(flat.numel(), dtype=torch.bool)
    marks[flat.sort(stable=True).indices[:count]] = True
    parts = marks.split([s.numel() for s in scores])
    return [part.view(s.shape) for part, s in zip(parts, scores, strict=True)]


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_lowest_is_the_stable_sort(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    shapes = data.draw(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), min_size=1))
    values = st.one_of(
        st.sampled_from([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf]),
        st.floats(-60000, 60000, width=16),
        st.floats(allow_nan=False, width=32),
    )
    scores = [
        torch.tensor(data.draw(st.lists(values, min_size=n, max_size=n)), dtype=torch.float64)
        .to(dtype)
        .view(shape)
        for shape in shapes
        for n in [math.prod(shape)]
    ]
    count = data.draw(st.integers(0, sum(s.numel() for s in scores)))
    for got, expected in zip(lowest(scores, count), reference(scores, count), strict=True):
        assert torch.equal(got, expected)


def test_lowest_streams_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [torch.randn(7, 11).round(decimals=1), torch.randn(50), torch.randn(3, 4).double()]
    whole = lowest(scores, 70)
    monkeypatch.setattr(unstructured_module, "CHUNK", 8)
    assert all(map(torch.equal, lowest(scores, 70), whole))
    assert all(map(torch.equal, whole, reference(scores, 70)))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    sparsity=st.floats(0, 1, exclude_max=True),
    levels=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_unstructured_removes_exactly_round(
    shape: list[int], sparsity: float, levels: int, seed: int
) -> None:
    score = torch.randint(levels, shape, generator=torch.Generator().manual_seed(seed)).float()
    mask = Unstructured().mask(score, sparsity)
    assert (~mask).sum() == round(sparsity * score.numel())
    assert mask.all() or not mask.any() or score[~mask].max() <= score[mask].min()
    assert torch.equal(mask, Unstructured().mask(score.clone(), sparsity))


def test_all_scores_tie() -> None:
    mask = Unstructured().mask(torch.ones(2, 5), 0.3)
    assert mask.tolist() == [[False] * 3 + [True] * 2, [True] * 5]


@settings(max_examples=40, deadline=None)
@given(sparsity=st.floats(0, 0.9), seed=st.integers(0, 99))
def test_global_total_is_exact(sparsity: float, seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        masks = prune(small(seed), sparsity)
    total = sum(mask.numel() for mask in masks.values())
    assert total - kept(masks) == round(sparsity * total)
    assert all(mask.any() for mask in masks.values())


# --- selection


def test_selection_names_and_order() -> None:
    assert list(prunable_weights(small())) == ["0.weight", "3.weight", "4.weight"]
    assert list(prunable_weights(nn.Linear(2, 2))) == ["weight"]


@pytest.mark.parametrize(
    "ignore",
    [("3",), "3", ("3.weight",), ("re:3",), ("re:.*3\\.wei",), (nn.Linear, "4")],
    ids=str,
)
def test_ignore_forms(ignore: object) -> None:
    left = prunable_weights(small(), ignore)
    assert "0.weight" in left and "3.weight" not in left


def test_ignore_container_and_type_cover_what_is_below() -> None:
    model = nn.ModuleDict({"a": small(), "ab": nn.Linear(2, 2), "m": nn.MultiheadAttention(4, 2)})
    assert list(prunable_weights(model, ["a", nn.MultiheadAttention])) == ["ab.weight"]


def test_attention_out_projection_is_pruned() -> None:
    """Trap 7: out_proj is a Linear subclass whose forward never runs."""
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    assert list(prune(attention, 0.5)) == ["out_proj.weight"]
    x = torch.randn(1, 3, 8)
    before = attention(x, x, x)[0]
    attention.out_proj.weight.data.zero_()
    assert not torch.equal(before, attention(x, x, x)[0])


def test_tied_weight_has_one_mask_and_counts_once() -> None:
    """Trap 5."""
    model = Tied()
    masks = prune(model, 0.5)
    assert list(masks) == ["encoder.weight"]
    assert masks["encoder.weight"].numel() == 160
    assert model.decoder.weight is model.embedding.weight
    assert torch.equal(model.decoder.weight != 0, masks["encoder.weight"])
    names = ["embedding.weight", "encoder.weight", "decoder.weight"]
    assert aliases(model)["decoder.weight"] == names


@pytest.mark.parametrize("name", ["embedding", "decoder.weight", "encoder"])
def test_any_alias_of_a_tied_weight_names_it(name: str) -> None:
    assert prunable_weights(Tied(), [name]) == {}
    assert list(prune(Tied(), {name: 0.5})) == ["encoder.weight"]


def test_shared_module_once() -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert list(prune(model, 0.5)) == ["0.weight"]
    assert prunable_weights(model, ["2"]) == {}


def hooked(kind: str) -> nn.Module:
    model = small()
    if kind == "weight_norm":
        parametrizations.weight_norm(model[3])
    elif kind == "old_weight_norm":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nn.utils.weight_norm(model[3])
    elif kind == "old_spectral_norm":
        nn.utils.spectral_norm(model[3])
    else:
        torch_prune.l1_unstructured(model[3], "weight", 0.5)
    return model


@pytest.mark.parametrize(
    ("kind", "way_out"),
    [
        ("weight_norm", "remove_parametrizations"),
        ("old_weight_norm", "remove_weight_norm"),
        ("old_spectral_norm", "remove_spectral_norm"),
        ("torch_prune", "Masks.from_model"),
    ],
)
def test_computed_weights_are_refused_with_the_way_out(kind: str, way_out: str) -> None:
    """Trap 15: a score of the computed weight would be written to a tensor that is recomputed."""
    model = hooked(kind)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=f"weight '3.weight' must be a plain.*{way_out}"):
        prune(model, 0.5)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert list(prune(model, 0.5, ignore=["3"])) == ["0.weight", "4.weight"]
    assert list(prune(model, 0.5, ignore=["3.weight"])) == ["0.weight", "4.weight"]


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
    "criterion": ({"criterion": "magnitud"}, "got 'magnitud'; did you mean 'magnitude'?"),
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
